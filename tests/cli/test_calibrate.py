"""Calibrating a model folder again: its pairs change and nothing else; clips of a source are known by the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autogaze import AutoGaze
from autogaze.cli.main import main as autogaze
from autogaze.training.data.manifest import UNKNOWN, clip_facts
from tests.evaluate.evaluate_folder import make_folder


def calibrate(*words: object) -> int:
    return autogaze(["calibrate", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def test_only_the_pairs_of_the_config_change(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    assert (
        calibrate(
            folder / "model",
            "--data",
            folder / "clips",
            "--reconstructor",
            folder / "judge",
            "--frames",
            "4",
            "--count",
            "5",
            "--device",
            "cpu",
        )
        == 0
    )
    after = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"config.json"} and before.keys() == after.keys()
    old, new = json.loads(before["config.json"]), json.loads(after["config.json"])
    pairs = new.pop("calibration")
    assert old.pop("calibration") == [] and old == new
    assert AutoGaze.from_pretrained(folder / "model").config.calibration == tuple(map(tuple, pairs)) != ()
    assert len(capsys.readouterr().out.splitlines()) == len(pairs)


@pytest.mark.parametrize("residual_map, fitted", [(False, "task_loss_prediction_head"), (True, "residual_map.weight")])
def test_what_predicts_the_loss_is_fitted_first_and_kept_in_the_type_it_had(
    folder: Path, capsys: pytest.CaptureFixture[str], residual_map: bool, fitted: str
) -> None:
    config = replace(AutoGaze.from_pretrained(folder / "model").config, residual_map=residual_map)
    AutoGaze(config).save_pretrained(folder / "model", torch.bfloat16)
    before = load_file(folder / "model" / "model.safetensors")
    assert (
        calibrate(
            folder / "model",
            "--data",
            folder / "clips",
            "--reconstructor",
            folder / "judge",
            "--frames",
            "4",
            "--count",
            "5",
            "--device",
            "cpu",
            "--fit-head",
            folder / "clips",
        )
        == 0
    )
    after = load_file(folder / "model" / "model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 1 and fitted in changed[0]
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert AutoGaze.from_pretrained(folder / "model").config.calibration != ()
    assert "predicted loss: " in capsys.readouterr().err


def test_nothing_is_written_if_what_to_calibrate_on_is_not_there(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    assert (
        calibrate(
            folder / "model",
            "--data",
            folder / "nowhere",
            "--reconstructor",
            folder / "judge",
            "--fit-head",
            folder / "clips",
            "--device",
            "cpu",
        )
        == 2
    )
    assert before == {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


def test_named_thresholds_are_those_that_are_tried(folder: Path) -> None:
    assert (
        calibrate(
            folder / "model",
            "--data",
            folder / "clips",
            "--reconstructor",
            folder / "judge",
            "--frames",
            "4",
            "--thresholds",
            "9,8",
            "--device",
            "cpu",
        )
        == 0
    )
    pairs = json.loads((folder / "model" / "config.json").read_text())["calibration"]
    assert [threshold for _, threshold in pairs] == [8.0, 9.0]


def test_clips_of_several_folders_count_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [folder / "model", "--reconstructor", folder / "judge", "--frames", "4", "--device", "cpu"]
    lines = []
    for folders in (["clips"], ["clips", "clips"], ["clips", "nowhere"]):
        code = calibrate(*words, "--thresholds", "2,8", "--data", *(folder / name for name in folders))
        assert code == (2 if "nowhere" in folders else 0)
        lines.append(capsys.readouterr().out)
    assert lines[0] and lines[0] == lines[1]  # the same sources twice: nothing new is known of new ones


@pytest.mark.parametrize(
    ("name", "data", "message"), [("nowhere", "clips", "no checkpoint"), ("model", "nowhere", "no folder")]
)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, data: str, message: str
) -> None:
    assert calibrate(folder / name, "--data", folder / data, "--reconstructor", folder / "judge") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("autogaze: ") and message in line


def test_a_clip_that_is_a_link_is_found_in_the_manifest_by_its_name(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.mp4"
    (folder / "clips" / "pan.mp4").rename(elsewhere)
    (folder / "clips" / "pan.mp4").symlink_to(elsewhere)
    assert clip_facts(folder / "clips", folder / "clips" / "pan.mp4") == ("pan", "source-0")
    assert clip_facts(folder, folder / "clips" / "pan.mp4") == ("pan", "source-0")
    assert clip_facts(folder, folder / "more" / "pan.mp4") == (UNKNOWN, "more/pan.mp4"), "a source of its own"
