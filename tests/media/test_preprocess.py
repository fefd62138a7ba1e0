"""Preprocessing equals PIL and the recorded published cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from autogaze.media.preprocess import Preprocessor, filter_resize, resize

GOLDEN = Path(__file__).resolve().parents[1] / "golden/preprocess.safetensors"


def noise(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize("resample, code", [("bilinear", 2), ("bicubic", 3)])
@pytest.mark.parametrize(
    "source, target",
    [
        ((74, 106), (48, 48)),
        ((40, 30), (80, 91)),
        ((1, 1), (5, 4)),
        ((360, 641), (224, 224)),
        ((33, 65), (33, 20)),
        ((7, 900), (3, 2)),
    ],
)
def test_resize_equals_pil_to_the_last_bit(
    source: tuple[int, int], target: tuple[int, int], resample: str, code: int
) -> None:
    frames = noise(2, *source)
    for way in (resize, filter_resize):  # on a CPU, and on a GPU
        for ours, frame in zip(way(frames, target, resample), frames, strict=True):
            theirs = Image.fromarray(frame.numpy()).resize(target[::-1], code)
            assert np.array_equal(ours.numpy(), np.asarray(theirs))


@pytest.mark.parametrize("case", ["square", "shortest_edge"])
def test_recorded_cases_of_the_published_preprocessing_are_reproduced(case: str) -> None:
    with safe_open(GOLDEN, "pt") as file:
        setting = json.loads(file.metadata()[case])
        frames, expected = file.get_tensor("preprocess.frames"), file.get_tensor(f"preprocess.{case}")
    assert torch.allclose(Preprocessor.from_dict(setting)(frames)[0], expected, atol=1e-4, rtol=0)


def test_default_maps_bytes_to_minus_one_and_one_at_224() -> None:
    frames = torch.zeros(3, 50, 60, 3, dtype=torch.uint8)
    frames[1] = 255
    video = Preprocessor()(frames.numpy())
    assert video.shape == (1, 3, 3, 224, 224) and video.dtype == torch.float32
    assert torch.allclose(video[0, :, 0, 0, 0], torch.tensor([-1.0, 1.0, -1.0]), atol=1e-6)


def test_a_batch_of_clips_is_the_clips_one_by_one() -> None:
    clips = noise(6, 20, 30).unflatten(0, (2, 3))
    both = Preprocessor(size=(16, 16))(clips)
    assert torch.equal(both, torch.cat([Preprocessor(size=(16, 16))(clip) for clip in clips]))


def test_restore_undoes_normalise() -> None:
    frames = noise(2, 9, 8)
    imagenet = Preprocessor(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), rescale_factor=1 / 255, offset=False)
    for preprocessor in (Preprocessor(), imagenet):
        assert torch.equal(preprocessor.restore(preprocessor.normalise(frames)), frames)


@pytest.mark.parametrize(
    "preprocessor",
    [
        Preprocessor(),
        Preprocessor(size=40, mean=(0.1, 0.2, 0.3), resample="bicubic"),
        Preprocessor(size=(8, 9), offset=False, rescale_factor=1 / 255),
    ],
)
def test_settings_survive_the_file(preprocessor: Preprocessor, tmp_path: Path) -> None:
    preprocessor.save(tmp_path / "preprocessor_config.json")
    assert Preprocessor.load(tmp_path / "preprocessor_config.json") == preprocessor
    assert Preprocessor.load(tmp_path / "nowhere.json") == Preprocessor()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        "frames",
    ],
)
def test_wrong_frames_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="frames must"):
        Preprocessor()(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change, message",
    [({"do_center_crop": True}, "crops"), ({"resample": 1}, "resample"), ({"size": {"width": 3}}, "size")],
)
def test_unsupported_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessor.from_dict(Preprocessor().to_dict() | change)
