"""AutoGaze as people call it: size, checks at the door, budgets, whole videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze import AutoGaze
from autogaze.media.preprocess import Preprocessor
from autogaze.media.video import write_video
from autogaze.model import AutoGazeConfig
from tests.gaze_models import random_video, small_model, typical_loss


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_the_base_model_has_the_published_size() -> None:
    assert sum(p.numel() for p in AutoGaze(AutoGazeConfig(residual_map=False)).parameters()) == 3_258_240
    shipped = AutoGaze.from_pretrained("autogaze-base").config
    limits = {"gazing_ratio": 0.75, "task_loss_requirement": 0.7, "calibration": ()}
    assert AutoGazeConfig() == AutoGazeConfig.base() == replace(shipped, **limits)
    assert AutoGazeConfig.tiny().grid == AutoGazeConfig().grid


def test_a_budget_is_spent_and_no_id_comes_twice() -> None:
    model, video = small_model(), random_video(2, 4)
    gaze = model.generate(video, gazing_ratio=0.5)
    assert gaze.ids.shape == (2, 4, 10) and bool(gaze.chosen.all()) and gaze.counts.unique().tolist() == [10]
    assert bool((gaze.patch_mask().sum(-1) == 10).all())
    assert int(gaze.ids.max()) < 21  # never eos


def test_without_limits_everything_is_chosen_once() -> None:
    gaze = small_model().generate(random_video(1, 2), gazing_ratio=None)
    assert torch.equal(gaze.ids.sort(-1).values, torch.arange(21).expand(1, 2, 21))


def test_a_smaller_budget_is_a_prefix_of_a_larger_one_in_the_first_frame() -> None:
    model, video = small_model(), random_video(1, 1)
    some, more = (model.generate(video, gazing_ratio=ratio).ids[0, 0] for ratio in (0.3, 0.9))
    assert torch.equal(some, more[: len(some)])


def test_a_requirement_stops_early_and_a_weaker_one_stops_no_later() -> None:
    model, video = small_model(), random_video(2, 4)
    asked = typical_loss(model, video)
    counts = [int(model.generate(video[:, :1], 1.0, limit).counts.sum()) for limit in (None, asked, asked + 9.0)]
    assert counts[0] == 2 * 21 and counts[0] > counts[1] >= counts[2]
    assert model.generate(video, 1.0, 1e9).counts.unique().tolist() == [1]  # a frame's first id is never padding


@pytest.mark.parametrize("way", ["reference", "auto"])
def test_a_ratio_of_zero_looks_at_nothing(way: str) -> None:
    model, video = small_model(), random_video(2, 3)
    model.decoding = way
    gaze = model.generate(video, gazing_ratio=0)
    assert gaze.ids.shape == (2, 3, 0) and gaze.to_gazing_info()["gazing_pos"].shape == (2, 0)
    mixed = model.generate(video, gazing_ratio=torch.tensor([0.0, 0.5]))
    assert mixed.counts.tolist() == [[0] * 3, [10] * 3]


def test_the_model_is_left_as_it_was() -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.generate(random_video(), 0.5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@torch.inference_mode()
def test_it_works_under_inference_mode() -> None:
    model, video = small_model(), random_video()
    stream = model.stream(0.5, batch=2)
    first = stream.step(video[:, 0])
    assert torch.equal(first.ids, model.generate(video, 0.5).ids[:, :1])


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), "float, got torch.uint8"),
        (torch.zeros(3, 3, 8, 8), r"got torch.float32 \(3, 3, 8, 8\)"),
        (torch.zeros(1, 2, 4, 8, 8), r"\(B, T, 3, H, W\)"),
        (torch.zeros(1, 0, 3, 8, 8), "must not be empty"),
        (torch.zeros(1, 2, 3, 8, 8, device="meta"), "on the meta device"),
        (torch.zeros(1, 2, 3, 8, 8).to_sparse(), "a torch.sparse_coo tensor"),
        (np.zeros((1, 2, 3, 8, 8)), "got ndarray"),
    ],
)
def test_generate_and_score_refuse_what_is_not_a_video(video: torch.Tensor, message: str) -> None:
    model = small_model()
    gaze = model.generate(random_video(1, 2), 0.1)
    for call in (lambda: model.generate(video), lambda: model.score(video, gaze)):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_unknown_way_of_decoding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.decoding = "quick"
    with pytest.raises(ValueError, match="decoding must be auto or one of reference, cpu, cuda"):
        model.generate(random_video())
    model.decoding = "auto"
    monkeypatch.setenv("AUTOGAZE_DECODING", "cuda")
    with pytest.raises(ValueError, match='decoding="cuda" cannot be used: the model is on cpu'):
        model.generate(random_video())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 15}, "even head_dim"),
        ({"gazing_ratio": 0.0}, "gazing_ratio"),
        ({"num_multi_token_pred": 0}, "positive"),
        ({"scales": (64, 32)}, "ascend"),
        ({"calibration": ((0.5, 0.4), (0.4, 0.5))}, "ascend"),
    ],
)
def test_a_config_refuses_nonsense(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoGaze(replace(AutoGazeConfig.tiny(), **change))


def test_calibration_is_piecewise_linear_and_moves_along_outside() -> None:
    config = replace(AutoGazeConfig(), calibration=((0.2, 0.1), (0.4, 0.2), (0.8, 0.7)))
    asked = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])
    torch.testing.assert_close(config.threshold(asked), torch.tensor([0.0, 0.1, 0.15, 0.2, 0.45, 0.7, 0.9]))
    assert torch.equal(AutoGazeConfig().threshold(asked), asked)
    one = replace(config, calibration=((0.5, 0.4),))
    torch.testing.assert_close(one.threshold(asked), asked - 0.1)


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_a_calibrated_model_stops_where_its_threshold_says(way: str) -> None:
    model, video = small_model(), random_video(1, 3)
    asked = typical_loss(model, video) + 0.1

    def counts(requirement: float | None) -> list[int]:
        if way == "generate":
            return model.generate(video, 1.0, requirement).counts[0].tolist()
        stream = model.stream(1.0, requirement)
        return [int(stream.step(video[:, t]).counts) for t in range(3)]

    plain = counts(asked)
    model.config = replace(model.config, calibration=((0.0, asked), (1.0, asked + 1)))
    assert counts(0.0) == plain != counts(None)


def test_gaze_equals_preprocess_and_generate() -> None:
    model, frames = small_model(), noise(20, 40, 60)
    assert model.preprocessor == Preprocessor(size=(64, 64))
    whole = model.generate(model.preprocessor(frames), 0.3)
    for source in (frames, torch.from_numpy(frames)):
        assert torch.equal(model.gaze(source, gazing_ratio=0.3).ids, whole.ids)


def test_gaze_reads_files_of_any_length(tmp_path: Path) -> None:
    model, path = small_model(max_num_frames=3), tmp_path / "clip.mp4"
    write_video(path, noise(21, 36, 48), fps=10)
    gaze = model.gaze(path, gazing_ratio=0.3)
    assert gaze.ids.shape == (1, 21, 6) and gaze.grid == model.grid
    assert torch.equal(gaze.ids, model.gaze(str(path), gazing_ratio=0.3).ids)


def test_gaze_takes_both_defaults_from_the_config_or_none() -> None:
    frames = noise(3, 64, 64)
    model = small_model(gazing_ratio=0.4, task_loss_requirement=None)
    assert model.gaze(frames).counts.unique().tolist() == [8]
    model.config = replace(model.config, task_loss_requirement=1e9)
    assert model.gaze(frames).counts.unique().tolist() == [1]
    assert model.gaze(frames, gazing_ratio=0.4).counts.unique().tolist() == [8]
    assert model.gaze(frames, task_loss_requirement=None).counts.unique().tolist() == [21]


def test_gaze_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    model = small_model()
    with pytest.raises(FileNotFoundError, match="no such video"):
        model.gaze(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="is a directory"):
        model.gaze(tmp_path)
    with pytest.raises(ValueError, match="uint8 RGB"):
        model.gaze(random_video())
    with pytest.raises(ValueError, match="gazing_ratio must be in"):
        model.gaze(noise(2, 32, 32), gazing_ratio=1.5)
