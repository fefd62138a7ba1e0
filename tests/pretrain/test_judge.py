"""Judges: sums of named terms, the same truth for a group of rollouts, clean frames as the truth of noisy ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.judge import Judge, PasteJudge, SummedJudge, make_judge, parse_judge
from autogaze.pretrain.reconstructor import Reconstructor, ReconstructorConfig
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.vit.load import LoadedViT

GRID = PatchGrid((32, 64), 16)


def no_reconstructor() -> Reconstructor:
    raise AssertionError("nobody asked for a reconstructor")


def gaze_at(ids: list[int], clips: int = 2, frames: int = 3) -> Gaze:
    wide = torch.tensor(ids).expand(clips, frames, -1)
    return Gaze(wide, torch.ones_like(wide, dtype=torch.bool), GRID)


def clip(clips: int = 2, frames: int = 3) -> torch.Tensor:
    return torch.rand(clips, frames, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_l1_is_that_of_the_pasted_picture() -> None:
    video, gaze = clip(), gaze_at([0, 7])
    judge = make_judge("2*l1", no_reconstructor)
    expected = 2 * (paste(video, gaze) - video).abs().mean((2, 3, 4))
    torch.testing.assert_close(judge.losses(video, gaze), expected)


def test_everything_seen_at_the_finest_scale_loses_nothing() -> None:
    assert make_judge("l1", no_reconstructor).losses(clip(), gaze_at(list(range(4, 20)))).amax() < 1e-6


def test_rollouts_of_a_group_share_the_truth() -> None:
    video, one, other = clip(), gaze_at([0, 7]), gaze_at([1, 9])
    both = Gaze(torch.cat([one.ids, other.ids]), torch.cat([one.chosen, other.chosen]), GRID)
    judge = make_judge("l1", no_reconstructor)
    together = judge.losses(video.repeat(2, 1, 1, 1, 1), both, truth=video)
    torch.testing.assert_close(together, torch.cat([judge.losses(video, one), judge.losses(video, other)]))


def test_noise_is_compared_with_the_clean_frames() -> None:
    video, gaze = clip(), gaze_at(list(range(4, 20)))
    noisy = video + 0.1
    loss = make_judge("l1", no_reconstructor).losses(noisy, gaze, truth=video)
    torch.testing.assert_close(loss, torch.full_like(loss, 0.1), atol=1e-5, rtol=0)


def test_a_sum_of_a_reconstructor_and_pictures_adds_both() -> None:
    torch.manual_seed(0)
    model = Reconstructor(ReconstructorConfig.tiny()).eval()
    grid = model.grid
    ids = torch.tensor([0, 5]).expand(1, 2, -1)
    gaze = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), grid)
    video = torch.rand(1, 2, 3, grid.height_px, grid.width_px) * 2 - 1
    summed = make_judge("0.5*reconstructor+l1", lambda: model)
    assert isinstance(summed, SummedJudge)
    parts = 0.5 * Judge(model).losses(video, gaze) + make_judge("l1", no_reconstructor).losses(video, gaze)
    torch.testing.assert_close(summed.losses(video, gaze), parts)
    assert isinstance(make_judge("reconstructor", lambda: model), Judge)


def test_features_of_a_folder_judge(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "vit")
    grid = PatchGrid((28, 56), 14)
    judge = make_judge(f"features:{tmp_path / 'vit'}", no_reconstructor)
    assert isinstance(judge, PasteJudge)
    ids = torch.tensor([0, 1, 2, 3]).expand(1, 2, -1)
    coarse = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), grid)
    every = torch.arange(4, 20).expand(1, 2, -1)
    video = torch.rand(1, 2, 3, 56, 56) * 2 - 1
    worse = judge.losses(video, coarse)
    best = judge.losses(video, Gaze(every, torch.ones_like(every, dtype=torch.bool), grid))
    assert bool((worse > 0.001).all()) and best.amax() < 1e-5


def test_layers_of_a_judge_are_averaged(tmp_path: Path) -> None:
    """The last layer alone is the judge without layers; a folder may have an @ of its own."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "mine@home")
    ids = torch.tensor([0, 1, 2, 3]).expand(1, 2, -1)
    gaze = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), PatchGrid((28, 56), 14))
    video = torch.rand(1, 2, 3, 56, 56) * 2 - 1

    def losses(layers: str) -> torch.Tensor:
        return make_judge(f"features:{tmp_path / 'mine@home'}{layers}", no_reconstructor).losses(video, gaze)

    first, last = losses("@1"), losses("@2")
    assert not torch.allclose(first, last, rtol=1e-3)
    torch.testing.assert_close(losses(""), last)
    torch.testing.assert_close(losses("@1,2"), (first + last) / 2)
    with pytest.raises(ValueError, match="has layers 1 to 2, asked for 1, 3"):
        losses("@1,3")


def test_layers_of_a_timm_model_are_those_of_its_blocks() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    vit, frames = LoadedViT("tiny", model, (0.5,) * 3, (0.5,) * 3, "timm"), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens, pooled = vit.tokens(frames, (12,))
        wanted, whole = vit.tokens(frames)
        assert vit.tokens(frames, (3, 12))[0].shape == (2, 4, 2 * 192)
    torch.testing.assert_close(tokens, torch.nn.functional.normalize(wanted, dim=-1))
    torch.testing.assert_close(pooled, torch.nn.functional.normalize(whole, dim=-1))
    with pytest.raises(ValueError, match="layers 1 to 12, asked for 13"):
        vit.tokens(frames, (13,))


@pytest.mark.parametrize(
    "spec, words",
    [
        ("psnr", "unknown term 'psnr'"),
        ("features", "features:MODEL"),
        ("x*l1", "must be a number"),
        ("", "unknown term ''"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_judge(spec)
