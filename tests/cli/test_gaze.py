"""`autogaze gaze` on odd but honest videos, and on everything that is not one."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.cli import archive
from autogaze.cli.main import main
from autogaze.cli.outputs import output_folders
from autogaze.core.gaze import Gaze
from autogaze.core.gaze_file import load_gaze
from autogaze.device import pick_device
from autogaze.gaze_video import GazeOptions, gaze_chunks, gaze_video
from autogaze.media.scenes import render_scene
from autogaze.media.video import open_writer, probe, read_chunks, read_video, write_video
from autogaze.model import AutoGaze
from tests.mp4_edit import rotate_clockwise, vary_frame_rate


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.mp4"
    write_video(path, render_scene(3, 10, (90, 120), "handheld"), 12)
    return path


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path) -> AutoGaze:
    return AutoGaze.from_pretrained(tiny_checkpoint)


def test_it_writes_what_generate_chooses(
    scene: Path, tiny_checkpoint: Path, model: AutoGaze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["gaze", str(scene), "--checkpoint", str(tiny_checkpoint), "--out", out, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = json.loads((tmp_path / "out/gaze.json").read_text())
    assert printed["counts"] == summary["counts"] and summary["frames"] == 10

    expected = model.generate(model.preprocessor(read_video(scene).frames), gazing_ratio=0.1)
    loaded = load_gaze(tmp_path / "out/gaze.npz")
    assert torch.equal(loaded.gaze().patch_mask(), expected.patch_mask())
    assert summary["counts"] == expected.counts[0].tolist() == [26] * 10
    assert summary["ratio"] == pytest.approx(float(expected.ratio[0]))
    assert sum(summary["patches_per_scale"].values()) == summary["patches"] == 260
    overlay = probe(tmp_path / "out/overlay.mp4")
    assert (overlay.frames, overlay.fps) == (10, 12)
    assert {"decode", "gaze", "write", "report", "total"} == summary["seconds"].keys()


def test_an_hours_long_video_is_only_ever_held_chunk_by_chunk(model: AutoGaze, tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        path = tmp_path / f"{frames}.mp4"
        write_video(path, np.zeros((frames, 32, 48, 3), np.uint8))
        tracemalloc.start()
        gaze_video(model, probe(path), tmp_path / str(frames), GazeOptions(0.02, None))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(16)  # imports and caches
    assert peak(96) < 1.3 * peak(32)


def test_chunk_size_does_not_change_the_gaze(scene: Path, model: AutoGaze) -> None:
    def gaze(size: int) -> torch.Tensor:
        pairs = gaze_chunks(model, read_chunks(scene, size), GazeOptions(0.1, None))
        return Gaze.join([gaze for _, gaze in pairs]).patch_mask()

    assert torch.equal(gaze(3), gaze(10))


@pytest.mark.parametrize("frames, height, width", [(1, 64, 64), (2, 1, 1), (3, 35, 57), (2, 16, 400)])
def test_one_frame_and_odd_sizes_work(model: AutoGaze, tmp_path: Path, frames: int, height: int, width: int) -> None:
    write_video(tmp_path / "v.mp4", render_scene(0, frames, (height, width)))
    summary = gaze_video(model, probe(tmp_path / "v.mp4"), tmp_path / "out", GazeOptions(0.1, None))
    assert summary.counts == [26] * frames == load_gaze(tmp_path / "out/gaze.npz").counts.tolist()


def test_rotated_and_variable_frame_rate_videos_work(scene: Path, model: AutoGaze, tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    path.write_bytes(scene.read_bytes())
    vary_frame_rate(path, [(4, 0.1), (6, 0.4)])
    rotate_clockwise(path)
    summary = gaze_video(model, probe(path), tmp_path / "out", GazeOptions(0.1, None))
    assert (summary.video["height"], summary.video["width"], summary.frames) == (120, 90, 10)
    steps = np.diff(load_gaze(tmp_path / "out/gaze.npz").times_s)
    assert np.allclose(steps[4:] / steps[0], 4, rtol=0.01)


def test_looking_at_nothing_is_legal(scene: Path, model: AutoGaze, tmp_path: Path) -> None:
    summary = gaze_video(model, probe(scene), tmp_path / "out", GazeOptions(0.0, None))
    assert summary.counts == [0] * 10 and summary.ratio == 0
    assert load_gaze(tmp_path / "out/gaze.npz").gaze().ids.shape == (1, 10, 0)


def test_tiles_look_at_every_part_of_a_large_frame(model: AutoGaze, tmp_path: Path) -> None:
    write_video(tmp_path / "wide.mp4", render_scene(0, 2, (240, 470), "pan"))
    summary = gaze_video(model, probe(tmp_path / "wide.mp4"), tmp_path / "out", GazeOptions(0.1, None, tiles=True))
    loaded = load_gaze(tmp_path / "out/gaze.npz")
    assert summary.grid["frame_size"] == [240, 470] and loaded.grid.frame_size == (240, 470)
    boxes = loaded.gaze().boxes()[0, 0]
    assert boxes[:, 2].max() <= 470 and boxes[:, 3].max() <= 240 and boxes[:, 0].max() > 224


def test_a_stride_looks_at_the_whole_of_a_large_frame_in_fewer_tiles(model: AutoGaze, tmp_path: Path) -> None:
    write_video(tmp_path / "wide.mp4", render_scene(0, 2, (240, 470), "pan"))
    options = GazeOptions(0.1, None, tiles=True, gaze_stride=2)
    summary = gaze_video(model, probe(tmp_path / "wide.mp4"), tmp_path / "out", options)
    loaded = load_gaze(tmp_path / "out/gaze.npz")
    assert summary.grid["frame_size"] == [240, 470] and summary.model["gaze_stride"] == 2
    finest = loaded.gaze().mask(-1).unflatten(-1, loaded.grid.sides[-1])[:, :, :14, :28]
    assert finest.any() and torch.equal(finest, finest[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gaze-stride", "2"], "gaze_stride=2 is for gazing in tiles"),
        (["--tiles", "--gaze-stride", "0"], "gaze_stride must be a whole number of at least 1, got 0"),
        (["--tiles", "--gaze-stride", "2"], "gaze_stride=2 gains nothing here"),  # the scene is smaller than a tile
    ],
)
def test_strides_that_do_not_fit_are_refused_before_any_work(
    scene: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert main(["gaze", str(scene), "--out", str(out), "--checkpoint", str(tiny_checkpoint), *arguments]) == 2
    assert message in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "ratio, loss, expected",
    [(None, None, (0.1, None)), (0.3, None, (0.3, None)), (None, 0.5, (1.0, 0.5)), (0.2, 0.5, (0.2, 0.5))],
)
def test_one_limit_alone_lifts_the_other(
    model: AutoGaze, ratio: float | None, loss: float | None, expected: tuple[float, float | None]
) -> None:
    args = argparse.Namespace(gazing_ratio=ratio, task_loss_requirement=loss)
    options = GazeOptions.of(model.config, *archive.given(args))
    assert (options.gazing_ratio, options.task_loss_requirement) == expected


def broken_videos(folder: Path, whole: bytes) -> dict[str, str]:
    """Files that are no readable video, and a word that the message must hold."""
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "words.mp4").write_text("not a video\n" * 50)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.mp4").mkdir()
    return {
        "empty.mp4": "is empty",
        "words.mp4": "not a video",
        "noise.mp4": "not a video",
        "truncated.mp4": "truncated",
        "folder.mp4": "is a directory",
        "missing.mp4": "no such video",
    }


@pytest.mark.parametrize("name", ["empty.mp4", "words.mp4", "noise.mp4", "truncated.mp4", "folder.mp4", "missing.mp4"])
def test_what_is_no_video_gives_one_line_and_leaves_nothing(
    scene: Path, tiny_checkpoint: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    word = broken_videos(tmp_path, scene.read_bytes())[name]
    out = tmp_path / "out"
    code = main(["gaze", str(tmp_path / name), "--checkpoint", str(tiny_checkpoint), "--out", str(out)])
    printed = capfd.readouterr()
    assert code == 2 and not out.exists() and not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("autogaze: ") and word in line and name in line


def test_a_file_that_breaks_on_the_way_leaves_nothing(
    scene: Path, model: AutoGaze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(path: Path) -> object:
        yield from list(read_chunks(path, 4))[:2]
        raise ValueError("damaged in the middle")

    monkeypatch.setattr("autogaze.gaze_video.read_chunks", breaking)
    with pytest.raises(ValueError, match="in the middle"):
        gaze_video(model, probe(scene), tmp_path / "out", GazeOptions(0.1, None))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--gazing-ratio", "1.5"], "gazing_ratio must be in"),
        (["--gazing-ratio", "nan"], "gazing_ratio must not be NaN"),
        (["--device", "cuda:99"], "no device"),
        (["--device", "toaster"], "unknown device"),
        (["--checkpoint", "nowhere"], "no checkpoint"),
    ],
)
def test_wrong_settings_give_one_line(
    scene: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["gaze", str(scene), "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out"), *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and message in line and not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    assert main(["gaze", str(scene), "--out", str(tmp_path / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err and (tmp_path / "out").read_text() == "mine"


def test_videos_of_one_name_get_folders_of_their_own() -> None:
    out = Path("out")
    assert output_folders([Path("a/x.mp4")], out) == [out]
    folders = output_folders([Path("a/x.mp4"), Path("b/x.mp4"), Path("y.mp4"), Path("c/x.avi"), Path("x-2.mp4")], out)
    assert len(set(folders)) == 5 and folders[0] == out / "x" and folders[2] == out / "y"


def test_the_device_is_picked() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_results_of_another_video_are_never_overwritten(
    scene: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "scene.mp4"
    write_video(other, render_scene(4, 3, (90, 120)), 12)
    words = ["--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--no-overlay"]
    assert main(["gaze", str(scene), *words]) == 0
    before = (tmp_path / "out/gaze.npz").read_bytes()
    assert main(["gaze", str(other), *words]) == 2
    assert "holds the results of scene.mp4" in capsys.readouterr().err
    assert (tmp_path / "out/gaze.npz").read_bytes() == before
    assert main(["gaze", str(scene), *words]) == 0  # the same video again
    several = [tmp_path / "many" / name for name in ("scene", "scene-2")]
    for _ in range(2):
        assert output_folders([probe(scene), probe(other)], tmp_path / "many") == several
        assert main(["gaze", str(scene), str(other), *words, "--out", str(tmp_path / "many")]) == 0
    assert output_folders([probe(other), probe(scene)], tmp_path / "many") == several[::-1]


def test_a_folder_is_gazed_at_without_what_was_written_there(
    scene: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(scene, tmp_path / "a.mp4")
    words = ["gaze", str(tmp_path), "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the overlay of the first call is no video of the second
        assert main([*words, "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out.splitlines()[-1])["video"]["name"] == "a.mp4"
    seconds = json.loads((tmp_path / "out/gaze.json").read_text())["seconds"]
    parts = sum(value for name, value in seconds.items() if name != "total")
    assert seconds["report"] > 0 and parts <= seconds["total"] * 1.001
    assert main([*words, "--no-overlay"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gaze.json", "gaze.npz"]


@pytest.mark.parametrize(
    "source, message",
    [("7", "7 is no file: cameras"), ("ftp://a/b.mp4", "ftp:// cannot be"), ("", "the word after gaze is empty")],
)
def test_cameras_and_unknown_addresses_are_refused_as_such(
    source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gaze", source, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_closed_standard_streams_change_nothing(scene: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = ["gaze", str(scene), "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--json"]
    command = f"{shlex.join([sys.executable, '-m', 'autogaze', *words])} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], capture_output=True, timeout=280).returncode == 0
    assert len(load_gaze(tmp_path / "out/gaze.npz").counts) == 10 == len(read_video(tmp_path / "out/overlay.mp4"))


def test_real_clips_of_several_sizes(shared: Path, model: AutoGaze, tmp_path: Path) -> None:
    clips = sorted((shared / "videos/val").glob("*.mp4"))[::9][:2]
    for clip in clips:
        info = probe(clip)
        short = tmp_path / clip.name
        with open_writer(short, info.fps) as writer:
            writer.write(read_video(clip, 4).frames)
        summary = gaze_video(model, probe(short), tmp_path / clip.stem, GazeOptions(0.1, None))
        assert summary.frames == 4 and (tmp_path / clip.stem / "overlay.mp4").stat().st_size > 1000


def test_a_run_shows_what_its_reconstructor_makes_of_it(scene: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig

    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint, run / "model")
    assert main(["gaze", str(scene), "--checkpoint", str(run), "--out", str(tmp_path / "without")]) == 0
    Reconstructor(ReconstructorConfig.tiny()).save_pretrained(run / "reconstructor")
    assert main(["gaze", str(scene), "--checkpoint", str(run), "--out", str(tmp_path / "with")]) == 0
    assert '"rebuilt": false' in (tmp_path / "without/report.html").read_text()
    assert '"rebuilt": true' in (tmp_path / "with/report.html").read_text()
