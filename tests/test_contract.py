"""Short claims that other people's code leans on; each is a line of the API reference."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import autogaze
from autogaze import AutoGaze, Gaze
from tests.gaze_models import random_video, small_model

USER_SCRIPT = """
import autogaze
from autogaze import AutoGaze, Gaze

def look(path: str) -> Gaze:
    model = AutoGaze.from_pretrained("autogaze-base", device="cpu")
    gaze = model.gaze(path, gazing_ratio=0.1)
    for clip in gaze:
        print(clip.counts, clip.ratio, clip[0].boxes().shape)
    return gaze

print(autogaze.__version__)
"""


@pytest.fixture(scope="module")
def model() -> AutoGaze:
    return small_model(residual_map=True)


@pytest.fixture(scope="module")
def gaze(model: AutoGaze) -> Gaze:
    return model.generate(random_video(3, 4), gazing_ratio=0.5)


def test_the_package_says_its_version_and_that_it_is_typed() -> None:
    assert autogaze.__version__ == version("autogaze")
    assert (Path(autogaze.__file__).parent / "py.typed").is_file()


def test_a_user_script_passes_strict_type_checks(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "user.py"
    script.write_text(USER_SCRIPT)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, cwd=Path(autogaze.__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout


def test_a_gaze_prints_shapes_and_no_tensors(gaze: Gaze) -> None:
    words = repr(gaze)
    assert len(words) < 200 and "3 clips" in words and "4 frames" in words and "tensor" not in words


def test_a_gaze_has_a_length_and_gives_its_clips(gaze: Gaze) -> None:
    assert len(gaze) == 3 and [len(clip) for clip in gaze] == [1, 1, 1]
    assert torch.equal(gaze[1].ids, gaze.ids[1:2]) and torch.equal(gaze[-1].ids, gaze.ids[2:])
    with pytest.raises(IndexError):
        gaze[3]


def test_a_gaze_is_cut_along_its_frames(gaze: Gaze) -> None:
    assert torch.equal(gaze[:, 1:3].ids, gaze.ids[:, 1:3])


def test_a_list_means_what_a_tensor_and_an_array_mean(model: AutoGaze) -> None:
    video = random_video(3, 4)
    ratios = [[0.2], [0.5], [0.9]]
    found = [model.generate(video, gazing_ratio=value) for value in (ratios, torch.tensor(ratios), np.array(ratios))]
    assert all(torch.equal(one.ids, found[0].ids) for one in found)


def test_every_call_has_the_models_own_defaults(model: AutoGaze) -> None:
    video = random_video(1, 2)
    own = model.generate(video)
    asked = model.generate(
        video, gazing_ratio=model.config.gazing_ratio, task_loss_requirement=model.config.task_loss_requirement
    )
    stream = model.stream()
    frames = [stream.step(video[:, t]) for t in range(2)]
    assert torch.equal(own.patch_mask(), asked.patch_mask())
    assert all(torch.equal(own.patch_mask()[:, t], frame.patch_mask()[:, 0]) for t, frame in enumerate(frames))


def test_a_calibrated_model_is_another_model(model: AutoGaze) -> None:
    other = model.with_calibration(((0.1, 0.2),))
    assert other is not model and model.config.calibration == () and other.config.calibration == ((0.1, 0.2),)


@pytest.mark.parametrize("ratio", ["0.1", True, -0.1, 1.5, float("nan")])
def test_a_ratio_that_makes_no_sense_is_refused(model: AutoGaze, ratio: object) -> None:
    with pytest.raises((TypeError, ValueError), match="gazing_ratio"):
        model.generate(random_video(1, 2), gazing_ratio=ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize("requirement", ["0.1", True, -0.1, float("nan")])
def test_a_requirement_that_makes_no_sense_is_refused(model: AutoGaze, requirement: object) -> None:
    with pytest.raises((TypeError, ValueError), match="task_loss_requirement"):
        model.generate(random_video(1, 2), task_loss_requirement=requirement)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 255.0])
def test_video_that_cannot_be_right_is_refused(model: AutoGaze, value: float) -> None:
    video = random_video(1, 2).clamp(-1, 1)
    video[0, 1, 0, 3, 3] = value
    with pytest.raises(ValueError, match="video"):
        model.generate(video, gazing_ratio=0.5)


def test_only_the_asked_scales_are_chosen_from(model: AutoGaze) -> None:
    gaze = model.generate(random_video(2, 2), gazing_ratio=0.5, scales=(model.grid.scales[-1],))
    first = model.grid.offsets[-1]
    assert bool((gaze.ids[gaze.chosen] >= first).all())
