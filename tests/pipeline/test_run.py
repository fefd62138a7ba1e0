"""`autogaze train` from end to end on rendered scenes: every stage leaves its files, mistakes are one line, a run that
was killed goes on to the same numbers."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.cli.main import main
from autogaze.media.scenes import write_scenes
from autogaze.model import AutoGaze
from autogaze.network.config import AutoGazeConfig
from autogaze.pipeline.run import needed
from autogaze.pipeline.samplings import RunSamplings, neighbouring
from autogaze.pipeline.stages import Run
from autogaze.pipeline.summary import Summary
from autogaze.pretrain.labels.file import Label, read_labels, write_labels
from autogaze.training.data.clip import ClipRecipe
from autogaze.training.data.sources import resolve
from autogaze.training.launch import launch
from autogaze.training.recipes import STAGES, load_recipes
from autogaze.training.world import rank, wait

COMPARED = ["pretrain.frames=2", "pretrain.validate_clips=2"]  # on what, and calibrated, whatever the stages
COMPARED += ["pretrain.calibration_clips=2", "pretrain.calibration_thresholds=2"]
SMALL = [
    "frames=2",
    "validate_clips=2",
    "max_steps=2",
    "batch_clips=2",
    "validate_every=2",
    "checkpoint_every=1",
    "labels.clips=2",
    "labels.mean_ratio=0.02",
    "rl.group_size=2",
    "rl.max_gazing_ratio=0.05",
    "max_minutes=null",
    "pretrain.on_policy=false",
    *COMPARED,
    "pretrain.judge=reconstructor",
    "rl.judge=reconstructor",
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, clips=4, frames=4, size=(96, 96), share_val=0.5)
    return folder


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--data", str(scenes), "--out", str(run), *SMALL]) == 0
    return run


def test_all_stages_leave_what_the_next_one_reads(finished: Path) -> None:
    for name in (
        "reconstructor/model.safetensors",
        "labels.parquet",
        "pretrain/last.ckpt",
        "rl/metrics.csv",
        "model/config.json",
        "summary.json",
        "clips.parquet",
    ):
        assert (finished / name).is_file(), name
    model = AutoGaze.from_pretrained(finished)
    assert model.config.task_loss_requirement is not None and model.config.task_loss_requirement < 0.7


def test_the_summary_compares_the_model_with_its_start_and_random(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    losses = summary["val"]["reconstruction_loss"]
    assert {"trained", "untrained", "random", "NTP", "NTP+RL", "difference"} <= losses.keys()
    assert summary["val"]["kept"] in ("NTP", "NTP+RL")
    assert losses["untrained, no residual map"] > losses["untrained"]
    assert summary["val"]["gazing_ratio"] == 0.1 and summary["val"]["dense"] < min(losses.values())


def test_the_summary_says_where_the_loss_comes_from() -> None:
    losses = {
        "untrained": 0.0236,
        "untrained, no residual map": 0.13,
        "NTP": 0.024,
        "NTP+RL": 0.0235,
        "difference": 0.02,
    }
    said = Summary(0.1, 8, losses, 0.01, kept="NTP+RL").lines()
    assert (
        "kept NTP+RL, the lowest of NTP and NTP+RL: its loss is 81.9% below that of 'untrained, no residual map'"
        in said
    )
    assert "17.5% above that of 'difference'" in said and "comes from the residual map" in said
    assert "comes from" not in Summary(0.1, 8, {**losses, "NTP+RL": 0.02}, 0.01, kept="NTP+RL").lines()


def test_labels_that_nothing_reads_are_not_made(capsys: pytest.CaptureFixture[str]) -> None:
    recipes = load_recipes("tiny")
    assert recipes.pretrain.on_policy and not needed("labels", STAGES, recipes)
    assert "no labels are needed" in capsys.readouterr().err
    assert needed("labels", ("labels",), recipes) and needed("labels", STAGES, load_recipes("base"))
    assert not needed("reconstructor", STAGES, recipes) and needed("reconstructor", ("reconstructor",), recipes)


def test_a_reconstructor_is_trained_only_if_a_judge_needs_it() -> None:
    pasted = ["pretrain.judge=l1", "rl.judge=l1"]
    assert needed("reconstructor", STAGES, load_recipes("base", overrides=pasted))  # which searches the labels
    assert not needed("reconstructor", STAGES, load_recipes("base", overrides=[*pasted, "labels.judge=l1"]))
    assert needed("reconstructor", STAGES, load_recipes("base", overrides=["labels.judge=l1"]))


def test_labels_are_searched_with_the_judge_that_is_named(scenes: Path, tmp_path: Path) -> None:
    settings = ["frames=2", "clips=2", "mean_ratio=0.01", "judge=l1"]
    run = tmp_path / "run"
    assert main(["train", "--stage", "labels", "--data", str(scenes), "--out", str(run), *settings]) == 0
    assert len(read_labels(run / "labels.parquet")) == 2 and not (run / "reconstructor").exists()
    with pytest.raises(ValueError, match="mode='exact' needs judge='reconstructor', got 'l1'"):
        load_recipes("base", overrides=["labels.judge=l1", "labels.mode=exact"])


def test_finished_stages_are_skipped_on_resume(
    finished: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("last.ckpt")}
    arguments = ["train", "--data", str(scenes), "--out", str(finished), "--stage", "rl", "--resume", "--json", *SMALL]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rl"]["steps"] == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_stop_rule_is_calibrated_again_without_training(finished: Path, scenes: Path) -> None:
    config = finished / "model" / "config.json"
    before = {path: path.stat().st_mtime_ns for path in (*finished.rglob("last.ckpt"), config)}
    arguments = [
        "train",
        "--data",
        str(scenes),
        "--out",
        str(finished),
        "--stage",
        "calibrate",
        "frames=2",
        "validate_clips=2",
        "calibration_thresholds=3",
    ]
    assert main(arguments) == 0
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {config}


def test_a_new_start_sets_the_old_stage_aside(finished: Path, scenes: Path) -> None:
    assert main(["train", "--data", str(scenes), "--out", str(finished), "--stage", "reconstructor", *SMALL[:6]]) == 0
    assert (finished / "reconstructor.1" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/no/such/folder"], "no data folder /no/such/folder"),
        (["--data", "EMPTY"], "holds no readable video"),
        (["--data", "SCENES", "learning_rat=1"], "did you mean learning_rate"),
        (["--data", "SCENES", "--config", "/no/such.yaml"], "no such recipe file"),
        (["--data", "SCENES", "--stage", "labels"], "run `autogaze train --stage reconstructor"),
        (["--data", "SCENES", "--stage", "pretrain", "on_policy=false"], "no labels at"),
        (["--data", "SCENES", "--stage", "calibrate"], "run `autogaze train --stage pretrain"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"EMPTY": str(tmp_path / "empty"), "SCENES": str(scenes)}
    assert main(["train", "--out", str(tmp_path / "run"), *(names.get(word, word) for word in arguments)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("autogaze: ") and message in line


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(
    finished: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (finished / "rl" / "last.ckpt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    arguments = ["--stage", "rl", "--resume", *SMALL, "max_steps=4"]
    assert main(["train", "--data", str(scenes), "--out", str(finished), *arguments]) == 2
    assert "no space left" in capsys.readouterr().err
    assert (finished / "rl" / "last.ckpt").read_bytes() == kept
    assert [path.name for path in (finished / "rl").glob(".*")] == []


def test_a_stage_starts_from_the_weights_and_labels_it_is_told(finished: Path, scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "reconstructor", run / "reconstructor")
    start = AutoGaze.from_pretrained(finished / "model").with_calibration(((0.1, 0.1), (0.2, 0.3)))
    start.save_pretrained(tmp_path / "start")
    arguments = ["train", "--data", str(scenes), "--out", str(run)]
    settings = [*SMALL, "learning_rate=1e-12", "weight_decay=0", f"start={tmp_path / 'start'}"]
    assert main([*arguments, "--stage", "pretrain", *settings, f"labels={finished / 'labels.parquet'}"]) == 0
    assert main([*arguments, "--stage", "rl", *settings]) == 0
    for stage in ("pretrain", "rl"):
        model = AutoGaze.from_pretrained(run / stage)
        torch.testing.assert_close(model.connector.pos_embed, start.connector.pos_embed)
        assert not model.config.calibration, "it was fitted to the model that this one started from"


def test_rl_alone_needs_no_reconstructor_if_its_judge_needs_none(scenes: Path, tmp_path: Path) -> None:
    """A perceptual map with a gate and smoothed frames learns too, each clip's losses as shares of their mean."""
    start = AutoGaze(replace(AutoGazeConfig.tiny(), perceptual=True, residual_blur_px=0.8))
    start.save_pretrained(tmp_path / "start")
    settings = [*SMALL[:6], "group_size=2", "max_gazing_ratio=0.05", *COMPARED]
    more = ["judge=l1", "relative_reward=true", f"start={tmp_path / 'start'}", "learning_rate=0.01"]
    run = tmp_path / "run"
    assert main(["train", "--stage", "rl", "--data", str(scenes), "--out", str(run), *settings, *more]) == 0
    trained = AutoGaze.from_pretrained(run)
    assert trained.residual_map is not None and trained.residual_map.gate is not None
    assert trained.config.residual_blur_px == 0.8 and float(trained.residual_map.gate.weight.detach().abs().max()) > 0
    assert not (run / "reconstructor").exists() and trained.config.calibration


def test_labels_of_videos_that_are_not_in_the_data_are_refused(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "reconstructor", tmp_path / "run" / "reconstructor")
    recipe = ClipRecipe("video", "elsewhere.mp4", 2)
    label = Label(recipe, np.array([2, 1]), np.array([3, 0, 5]), np.zeros(5, np.float32))
    write_labels(tmp_path / "labels.parquet", [label], {"source": "elsewhere"})
    arguments = ["train", "--data", str(scenes), "--out", str(tmp_path / "run"), "--stage", "pretrain", *SMALL]
    assert main([*arguments, f"labels={tmp_path / 'labels.parquet'}"]) == 2
    assert "elsewhere.mp4" in capsys.readouterr().err


def test_several_processes_make_the_labels_of_one(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes by turns, in this one; in `tests.training.test_nodes` they are real ones."""

    def by_turns(work: Callable[[Run], None], processes: int, run: Run) -> None:
        for number in reversed(range(processes)):
            with monkeypatch.context() as patched:
                for name in ("RANK", "LOCAL_RANK"):
                    patched.setenv(name, str(number))
                for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                    patched.setenv(name, str(processes))
                work(run)

    monkeypatch.setattr("autogaze.pipeline.stages.launch", by_turns)
    files = []
    for name, devices in (("one", 1), ("two", 2)):
        shutil.copytree(finished / "reconstructor", tmp_path / name / "reconstructor")
        settings = ["frames=2", "clips=9", "batch_clips=2", "mode=difference", "max_minutes=null", f"devices={devices}"]
        arguments = ["train", "--data", str(scenes), "--out", str(tmp_path / name), "--stage", "labels", *settings]
        assert main([*arguments, "accelerator=cpu"]) == 0
        files.append(read_labels(tmp_path / name / "labels.parquet"))
    assert [label.recipe for label in files[0]] == [label.recipe for label in files[1]] and len(files[0]) == 9
    assert all((a.ids == b.ids).all() for a, b in zip(*files, strict=True))
    assert not (tmp_path / "two" / "labels.shards").exists()


def train_and_go_on_from_a_copy(whole: list[str], cut: list[str], begun: Path, copy: Path) -> None:
    """The work of each of two processes: a run to its end, and one that goes on from what was there in the middle."""

    def take() -> None:
        while not (begun / "reconstructor" / "last.ckpt").is_file():
            time.sleep(0.01)
        shutil.copytree(begun, copy, ignore=shutil.ignore_patterns(".*"))

    taking = threading.Thread(target=take, daemon=True)
    if rank() == 0:
        taking.start()
    assert main(whole) == 0
    if rank() == 0:
        taking.join()
    wait()
    step = torch.load(copy / "reconstructor" / "last.ckpt", weights_only=False)["global_step"]
    assert step < 12, "copied too late"
    assert main(cut) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)  # new interpreters, on a machine that may do other things
@pytest.mark.parametrize("devices", [1, 2])
def test_a_killed_run_resumes_to_the_numbers_of_an_unbroken_one(devices: int, scenes: Path, tmp_path: Path) -> None:
    words = ["train", "--data", str(scenes), "--stage", "reconstructor", "frames=2", "validate_clips=2", "max_steps=12"]
    words += ["batch_clips=1", "validate_every=6", "checkpoint_every=2", "max_minutes=null", "ema_decay=0.9"]
    words += [f"devices={devices}", "accelerator=cpu"]
    whole, cut = ([*words, "--out", str(tmp_path / name)] for name in ("whole", "cut"))
    if devices == 1:
        assert main(whole) == 0
        process = subprocess.Popen(
            [sys.executable, "-m", "autogaze.cli.main", *cut],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 600
        while not (tmp_path / "cut" / "reconstructor" / "last.ckpt").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert main([*cut, "--resume"]) == 0
    else:
        launch(train_and_go_on_from_a_copy, 2, whole, [*cut, "--resume"], tmp_path / "whole", tmp_path / "cut")
    curves = []
    for run in ("whole", "cut"):
        with (tmp_path / run / "reconstructor" / "metrics.csv").open() as file:
            curves.append([{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)])
    assert curves[0] == curves[1]


def test_neighbouring_frames_come_from_the_middle_of_the_spread_ones() -> None:
    spread = ClipRecipe("video", "a.mp4", frames=4, start=10, stride=5)  # 10, 15, 20, 25
    assert neighbouring(spread) == ClipRecipe("video", "a.mp4", frames=4, start=16, stride=1)  # 16 to 19


@pytest.fixture
def taken(tmp_path: Path) -> RunSamplings:
    write_scenes(tmp_path, clips=6, frames=8, size=(96, 96), share_val=0.34)
    (tmp_path / "manifest.csv").write_text("file,source_group\nval/pan-0000.mp4,one\ntrain/handheld-0002.mp4,two\n")
    recipes = load_recipes("tiny", None, ["pretrain.frames=2", "pretrain.validate_clips=2"], STAGES)
    return RunSamplings(Run(tmp_path / "run", tmp_path, recipes), recipes.pretrain)


def test_the_stop_rule_is_calibrated_on_spread_and_on_neighbouring_frames(taken: RunSamplings) -> None:
    data = taken.held_out
    assert data.spread.sources == data.closer.sources == ["one", "val/zoom-0003.mp4"]
    (spread,), (closer,) = data.spread.clips, data.closer.clips
    assert spread.shape == closer.shape
    assert bool(((closer[:, 1] - closer[:, 0]).abs().mean() < (spread[:, 1] - spread[:, 0]).abs().mean()).all())


def test_training_clips_calibrate_too_and_damaged_ones_are_left_out(taken: RunSamplings) -> None:
    assert taken.learned_from(2).spread.sources == ["train/cut-0004.mp4", "two"]  # evenly over the list
    everything = taken.held_out + taken.learned_from(9)
    names = ["one", "val/zoom-0003.mp4", "train/cut-0004.mp4", "train/flicker-0005.mp4", "two", "train/object-0001.mp4"]
    assert everything.spread.sources == everything.closer.sources == names
    assert sum(map(len, everything.spread.clips)) == 6 and taken.learned_from(0).spread.clips == []
    (taken.folder / "train" / "flicker-0005.mp4").write_bytes(b"cut off")
    taken.data.batch_clips = 1  # a batch that holds nothing else ends nothing either
    assert taken.learned_from(9).closer.sources == [names[2], *names[4:]]


def test_a_run_whose_validation_clips_are_all_damaged_says_so(taken: RunSamplings) -> None:
    for path in (taken.folder / "val").iterdir():
        path.write_bytes(b"cut off")
    with pytest.raises(ValueError, match="none of the 2 validation clips"):
        _ = taken.held_out


def test_a_folder_without_validation_clips_is_said_once_and_not_called_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_scenes(tmp_path / "scenes", clips=3, frames=4, size=(64, 64), share_val=0.34)
    shutil.rmtree(tmp_path / "scenes" / "val")
    arguments = ["train", "--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "run"), *SMALL, "max_steps=1"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "on 2 training clips, since none is held out" in said and "held-out" not in said
    assert caplog.text.count("holds no clip for validation") == 1
    assert "kept NTP" in said and "v_num" not in said and "weights_only" not in said


def test_a_home_folder_and_a_file_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.mp4").touch()
    assert resolve("~/videos", tmp_path / "run") == tmp_path / "videos"
    with pytest.raises(FileNotFoundError, match="is a file: name a folder of videos"):
        resolve("~/a.mp4", tmp_path / "run")
