"""The model equals the published implementation on every recorded case (see data/README.md).

Clips and tiles that may stop early were recorded in a batch, which published models decode in step; ours are decoded as
if alone. There the published loop, which is checked against the recordings in the batch, is compared clip by clip.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autogaze import AutoGaze, Gaze, PatchGrid
from autogaze.core.tiling import make_tiling
from benchmarks.published_loop import generate_published

DATA = Path(__file__).parent / "data"
CASES: dict[str, dict[str, Any]] = json.loads((DATA / "cases.json").read_text())["cases"]
SCORED = ("ratio", "ratio_each_frame", "threshold", "threshold_only")
IN_STEP = ("threshold", "threshold_only", "streaming", "tiles")  # cases that depend on the batch
ALONE = [case for case in CASES if case not in IN_STEP]


@pytest.fixture(scope="module")
def model() -> AutoGaze:
    model = AutoGaze.from_pretrained(DATA / "model")
    model.decoding = "reference"
    return model


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(DATA / "cases.safetensors")


@pytest.fixture(scope="module")
def videos() -> dict[str, Tensor]:
    """The inputs of the recordings, which were drawn like this: a (2, 6, 3, 64, 64) clip, and frames for tiles."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, 6, 3, 64, 64, generator=generator)
    tiles = torch.randn(2, 6, 3, 96, 96, generator=generator)
    for t in range(1, video.shape[1]):
        video[:, t] = 0.8 * video[:, t - 1] + 0.6 * video[:, t]
    assert [round(float(clip.double().square().mean()), 5) for clip in (video, tiles)] == [1.00616, 1.00249]
    return {"video": video, "tiles": tiles}


def generated(model: AutoGaze, case: str, videos: dict[str, Tensor]) -> Gaze:
    arguments = dict(CASES[case])
    video = videos["tiles" if case == "tiles" else "video"]
    if not arguments.pop("one_frame_at_a_time", False):
        return model.generate(video, **arguments)
    stream = model.stream(batch=len(video), **arguments)
    return Gaze.join([stream.step(video[:, t]) for t in range(video.shape[1])])


def recorded_gaze(recorded: dict[str, Tensor], case: str, grid: PatchGrid) -> Gaze:
    keys = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")
    return Gaze.from_gazing_info({key: recorded[f"{case}.{key}"] for key in keys}, grid)


@pytest.mark.parametrize("case", ALONE)
def test_ids_counts_and_masks_are_the_published_ones(
    model: AutoGaze, recorded: dict[str, Tensor], videos: dict[str, Tensor], case: str
) -> None:
    info = generated(model, case, videos).to_gazing_info()
    padded = recorded[f"{case}.if_padded_gazing"]
    assert torch.equal(info["num_gazing_each_frame"], recorded[f"{case}.num_gazing_each_frame"])
    assert torch.equal(info["if_padded_gazing"], padded)
    assert torch.equal(info["gazing_pos"][~padded], recorded[f"{case}.gazing_pos"][~padded])
    masks = [recorded[key] for key in sorted(recorded) if key.startswith(f"{case}.gazing_mask.")]
    for ours, theirs in zip(info["gazing_mask"], masks, strict=True):
        assert torch.equal(ours, theirs.long())


@pytest.mark.parametrize("case", IN_STEP)
def test_clips_that_may_stop_are_the_published_ones_alone(
    model: AutoGaze, recorded: dict[str, Tensor], videos: dict[str, Tensor], case: str
) -> None:
    asked = {key: CASES[case][key] for key in ("gazing_ratio", "task_loss_requirement") if key in CASES[case]}
    tiling = make_tiling(model.grid, (96, 96), CASES[case]["target_scales"], 12) if case == "tiles" else None
    clips = videos["video"] if tiling is None else resized(tiling.cut(videos["tiles"]))
    mask = generate_published(model, clips, **asked).patch_mask()
    whole = model.grid if tiling is None else tiling.whole
    theirs = recorded_gaze(recorded, case, whole).patch_mask()
    assert torch.equal(mask if tiling is None else tiling.join(mask), theirs)
    ours = generated(model, case, videos).patch_mask()
    alone = torch.cat([generate_published(model, clip[None], **asked).patch_mask() for clip in clips])
    assert torch.equal(ours, alone if tiling is None else tiling.join(alone))


def resized(tiles: Tensor) -> Tensor:
    """Tiles (N, T, 3, 48, 48) as the model's encoder sees them."""
    frames = torch.nn.functional.interpolate(tiles.flatten(0, 1), size=(64, 64), mode="bicubic")
    return frames.unflatten(0, tiles.shape[:2])


@pytest.mark.parametrize("case", SCORED)
def test_scores_are_the_published_ones(
    model: AutoGaze, recorded: dict[str, Tensor], videos: dict[str, Tensor], case: str
) -> None:
    gaze = recorded_gaze(recorded, case, model.grid)
    with torch.no_grad():
        scores = model.score(videos["video"], gaze)
    counts = recorded[f"{case}.num_gazing_each_frame"].tolist()
    kept = ~recorded[f"{case}.if_padded_gazing"]
    for ours, name in (
        (scores.log_action_probs, "log_action_probs"),
        (scores.task_loss_prediction, "task_loss_prediction"),
    ):
        flat = torch.cat([ours[:, t, :count] for t, count in enumerate(counts)], dim=1)
        torch.testing.assert_close(flat[kept], recorded[f"{case}.{name}"][kept], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ALONE)
def test_the_published_dict_comes_back_as_the_same_gaze(
    model: AutoGaze, recorded: dict[str, Tensor], videos: dict[str, Tensor], case: str
) -> None:
    ours, theirs = generated(model, case, videos), recorded_gaze(recorded, case, model.grid)
    assert torch.equal(ours.patch_mask(), theirs.patch_mask())
    assert torch.equal(ours.packed().ids, theirs.packed().ids)


def test_the_stop_rule_was_exercised(recorded: dict[str, Tensor]) -> None:
    """The recordings hold what is hard to get right: frames that stop early, and a hole in the middle of a group."""
    gaze = recorded_gaze(recorded, "threshold_only", PatchGrid((16, 32, 64)))
    assert gaze.counts.unique().numel() > 2
    assert bool((~gaze.chosen[..., :-1] & gaze.chosen[..., 1:]).any())


def test_a_checkpoint_that_was_saved_again_is_the_published_one(model: AutoGaze, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "again")
    ours, theirs = load_file(tmp_path / "again" / "model.safetensors"), load_file(DATA / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_drawn_videos_are_the_recorded_ones(shared: Path, videos: dict[str, Tensor]) -> None:
    full = load_file(shared / "compat" / "tiny" / "cases.safetensors")
    assert torch.equal(videos["video"], full["video"]) and torch.equal(videos["tiles"], full["tiles.video"])
