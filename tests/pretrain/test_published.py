"""The published reconstructor: equal to recordings of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autogaze.core.gaze import Gaze
from autogaze.pretrain.published import PublishedConfig, PublishedReconstructor


@pytest.fixture(scope="module")
def model(shared: Path) -> PublishedReconstructor:
    return PublishedReconstructor.from_pretrained(
        shared / "compat/parts", "videomae_config.json", "videomae_model.safetensors"
    )


@pytest.fixture(scope="module")
def case(shared: Path, model: PublishedReconstructor) -> tuple[torch.Tensor, dict, dict]:
    recorded = load_file(shared / "compat/parts/parts.safetensors")
    cases = load_file(shared / "compat/tiny/cases.safetensors")
    info = {name: cases[f"threshold.{name}"] for name in ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")}
    return cases["video"], info, recorded


def test_it_reproduces_the_recorded_frames_and_losses(model: PublishedReconstructor, case: tuple) -> None:
    video, info, recorded = case
    with torch.no_grad():
        result = model(video, info, frame_idx_to_reconstruct=recorded["videomae.frame_idx_to_reconstruct"])
    torch.testing.assert_close(result.reconstruction, recorded["videomae.reconstruction"], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        result.loss_each_reconstruction_frame, recorded["videomae.loss_each_reconstruction_frame"], rtol=0, atol=1e-4
    )


def test_each_frame_is_rebuilt_as_if_it_were_the_only_one(model: PublishedReconstructor, case: tuple) -> None:
    """A rebuilt frame's own queries are seen by later ones, so only the first of several must equal the single one."""
    video, info, _ = case
    with torch.no_grad():
        both = model(video, info, [1, 4]).reconstruction
        one = model(video, info, [1]).reconstruction
    torch.testing.assert_close(both[:, 0], one[:, 0])


def test_later_gazes_cannot_change_earlier_frames(model: PublishedReconstructor, case: tuple) -> None:
    video, info, _ = case
    gaze = Gaze.from_gazing_info(info, model.grid)
    chosen = gaze.chosen.clone()
    chosen[:, 3:] = False
    with torch.no_grad():
        base = model(video, gaze, [2]).reconstruction
        less = model(video, Gaze(gaze.ids, chosen, gaze.grid), [2]).reconstruction
    torch.testing.assert_close(base, less)


def test_frames_outside_the_clip_are_refused(model: PublishedReconstructor, case: tuple) -> None:
    with pytest.raises(ValueError, match="frame_idx_to_reconstruct must name some of the frames 0 to 5"):
        model(case[0], case[1], [6])


def test_a_config_with_another_architecture_is_refused(shared: Path, tmp_path: Path) -> None:
    data = json.loads((shared / "compat/parts/videomae_config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, "causal": False}))
    with pytest.raises(ValueError, match="only causal = True is supported"):
        PublishedConfig.from_json(tmp_path / "config.json")


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        PublishedReconstructor.from_pretrained(tmp_path)
