"""The reconstructor: causal, blind to what was not looked at, the same frame by frame, and able to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.reconstructor.gaze_mix import sample_budgets, sample_masks, top_of
from autogaze.pretrain.reconstructor.module import ReconstructorModule
from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.pretrain.reconstructor.search import attempt, commit, look, start

CONFIG = ReconstructorConfig(scales=(16, 32, 64), width=32, depth=2, heads=2, mlp_ratio=2)


@pytest.fixture
def model() -> Reconstructor:
    """Small, with heads that are not zero."""
    torch.manual_seed(1)
    model = Reconstructor(CONFIG)
    for head in (model.residual, model.mixture):
        torch.nn.init.normal_(head.weight, std=0.1)
    return model.eval()


def clips(count: int = 2, frames: int = 4) -> torch.Tensor:
    return F.interpolate(torch.randn(count * frames, 3, 8, 8), 64, mode="bilinear").unflatten(0, (count, frames))


def masks(count: int = 2, frames: int = 4, share: float = 0.2) -> torch.Tensor:
    return torch.rand(count, frames, CONFIG.grid.patches_per_frame) < share


def test_sizes_are_as_announced() -> None:
    counts = [
        sum(p.numel() for p in Reconstructor(preset()).parameters()) / 1e6
        for preset in (ReconstructorConfig.tiny, ReconstructorConfig.small, ReconstructorConfig.base)
    ]
    assert counts[0] < 0.5 and 5.5 < counts[1] < 6.5 and 22 < counts[2] < 27


def test_later_frames_and_gazes_cannot_change_earlier_frames(model: Reconstructor) -> None:
    video, mask = clips(), masks()
    base = model.reconstruct(video, mask)
    changed, changed_mask = video.clone(), mask.clone()
    changed[:, 2:], changed_mask[:, 2:] = torch.randn_like(video[:, 2:]), ~mask[:, 2:]
    other = model.reconstruct(changed, changed_mask)
    torch.testing.assert_close(base.frames[:, :2], other.frames[:, :2])
    assert not torch.allclose(base.frames[:, 2:], other.frames[:, 2:])


def test_earlier_gazes_do_change_later_frames(model: Reconstructor) -> None:
    video, mask = clips(), masks()
    less = mask.clone()
    less[:, 0] = False
    assert not torch.allclose(model.reconstruct(video, mask).frames[:, 3], model.reconstruct(video, less).frames[:, 3])


def test_what_was_not_looked_at_never_enters(model: Reconstructor) -> None:
    video, mask = clips(1), torch.zeros(1, 4, 21, dtype=torch.bool)
    mask[0, 0, CONFIG.grid.id_at(64, 0, 0)] = True
    other = torch.randn_like(video)
    other[:, 0, :, :16, :16] = video[:, 0, :, :16, :16]
    torch.testing.assert_close(model.reconstruct(video, mask).frames, model.reconstruct(other, mask).frames)


def test_padding_and_order_of_slots_do_not_matter(model: Reconstructor) -> None:
    video, gaze = clips(), Gaze.from_patch_mask(masks(), CONFIG.grid)
    padded = Gaze(F.pad(gaze.ids.flip(-1), (2, 1), value=5), F.pad(gaze.chosen.flip(-1), (2, 1)), CONFIG.grid)
    assert torch.equal(model(video, gaze).frames, model(video, padded).frames)


def test_each_clip_is_rebuilt_as_if_alone(model: Reconstructor) -> None:
    video, mask = clips(3), masks(3)
    together = model.reconstruct(video, mask).loss
    alone = torch.cat([model.reconstruct(video[b : b + 1], mask[b : b + 1]).loss for b in range(3)])
    torch.testing.assert_close(together, alone)


def test_an_empty_gaze_has_a_finite_loss_and_gradient() -> None:
    model = Reconstructor(CONFIG)
    empty = Gaze(torch.zeros(2, 4, 0, dtype=torch.int64), torch.zeros(2, 4, 0, dtype=torch.bool), CONFIG.grid)
    loss = model(clips(), empty).loss
    assert loss.isfinite().all()
    loss.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_it_starts_close_to_paste_and_upsample() -> None:
    video, gaze = clips(), Gaze.from_patch_mask(masks(share=0.5), CONFIG.grid)
    error = (Reconstructor(CONFIG)(video, gaze).frames - paste(video, gaze)).abs().mean()
    assert error < 0.1 * paste(video, gaze).abs().mean()


def test_loss_is_that_of_the_config(model: Reconstructor) -> None:
    video, mask = clips(), masks()
    result = model.reconstruct(video, mask)
    torch.testing.assert_close(model.objective(result.frames, video), result.loss)
    plain = Reconstructor(replace(CONFIG, loss="l1"))
    out = plain.reconstruct(video, mask)
    torch.testing.assert_close(out.loss, (out.frames - video).abs().mean((2, 3, 4)))


def test_frame_by_frame_equals_the_whole_clip(model: Reconstructor) -> None:
    video, mask = clips(), masks()
    whole, memory = model.reconstruct(video, mask), start(model, 2)
    for t in range(4):
        sight = look(model, memory, video[:, t])
        candidates = torch.stack([~mask[:, t], mask[:, t]], 1)  # the other candidate must not disturb
        trial = attempt(model, sight, candidates)
        torch.testing.assert_close(trial.frames[:, 1], whole.frames[:, t], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(trial.loss[:, 1], whole.loss[:, t], atol=1e-5, rtol=1e-5)
        some = attempt(model, sight[torch.tensor([1])], candidates[1:])
        torch.testing.assert_close(some.loss, trial.loss[1:])
        memory = commit(model, sight, mask[:, t])


def test_it_learns_to_fill_what_it_has_not_seen() -> None:
    """One colour fills the frame: a quarter of it tells the rest."""
    torch.manual_seed(0)
    model = Reconstructor(replace(CONFIG, loss="l1"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mask = torch.zeros(8, 1, 21, dtype=torch.bool)
    mask[:, :, 1] = True
    losses = []
    for _ in range(60):
        video = (torch.rand(8, 1, 3, 1, 1) * 2 - 1).expand(-1, -1, -1, 64, 64).contiguous()
        loss = model.reconstruct(video, mask).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_saved_and_loaded_it_gives_the_same(model: Reconstructor, tmp_path: Path) -> None:
    video, mask = clips(), masks()
    model.save_pretrained(tmp_path / "judge")
    again = Reconstructor.from_pretrained(tmp_path / "judge")
    assert again.config == model.config and not again.training
    assert torch.equal(again.reconstruct(video, mask).loss, model.reconstruct(video, mask).loss)
    assert sorted(p.name for p in (tmp_path / "judge").iterdir()) == ["config.json", "model.safetensors"]


def test_half_size_files_load_as_float32(model: Reconstructor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, torch.bfloat16)
    again = Reconstructor.from_pretrained(tmp_path)
    assert again.place.dtype == torch.float32
    torch.testing.assert_close(again.place, model.place, atol=1e-2, rtol=1e-2)


def test_damaged_and_missing_files_are_named(model: Reconstructor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        Reconstructor.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        Reconstructor.from_pretrained(tmp_path)


def test_wrong_shapes_and_grids_are_refused(model: Reconstructor) -> None:
    with pytest.raises(ValueError, match="video must be"):
        model.reconstruct(torch.zeros(1, 2, 3, 32, 32), masks(1, 2))
    with pytest.raises(ValueError, match="must cover the video's"):
        model.reconstruct(clips(1, 2), masks(1, 3))
    other = Gaze(torch.zeros(1, 2, 1, dtype=torch.int64), torch.ones(1, 2, 1, dtype=torch.bool), PatchGrid())
    with pytest.raises(ValueError, match="this reconstructor knows"):
        model(clips(1, 2), other)
    with pytest.raises(ValueError, match="multiple of 2"):
        ReconstructorConfig(width=30, heads=4)


def test_drawn_gazes_cover_every_ratio_and_repeat_with_the_seed(model: Reconstructor) -> None:
    video = clips(64, 2)
    drawn = sample_masks(video, model.painter, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, sample_masks(video, model.painter, torch.Generator().manual_seed(3)))
    counts = drawn.sum(-1)
    assert counts.min() >= 1 and counts.max() == 21 and len(counts.unique()) > 10
    asked = sample_masks(video, model.painter, torch.Generator().manual_seed(3), 0.3).float().mean()
    assert 0.2 < asked < 0.4


def test_budgets_keep_their_mean_and_differ_from_frame_to_frame() -> None:
    budgets = sample_budgets(torch.full((200,), 0.1), 8, PatchGrid(), torch.Generator().manual_seed(0))
    assert budgets.float().mean().item() == pytest.approx(26.5, rel=0.1)
    assert budgets.float().std(1).mean() > 5


def test_the_best_scores_are_taken() -> None:
    scores = torch.tensor([[[1.0, 3.0, 2.0]]])
    assert top_of(scores, torch.tensor([[2]])).tolist() == [[[False, True, True]]]


def test_a_training_step_is_the_same_when_repeated(model: Reconstructor) -> None:
    from autogaze.training.data.clip import Clip, ClipRecipe

    module = ReconstructorModule(model, seed=4)
    module.log = lambda *args, **kwargs: None  # there is no trainer here
    batch = Clip(clips(), (ClipRecipe("scene", "0", 4),) * 2)
    assert torch.equal(module.training_step(batch, 0), module.training_step(batch, 0))
    assert not torch.equal(module.training_step(batch, 0), module.training_step(batch, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_on_the_gpu_is_close_to_float32(model: Reconstructor, compile: bool) -> None:
    video, mask = clips(), masks()
    expected = model.reconstruct(video, mask).loss
    gpu = Reconstructor(CONFIG)
    gpu.load_state_dict(model.state_dict())
    rebuild = torch.compile(gpu.cuda().reconstruct) if compile else gpu.cuda().reconstruct
    with torch.autocast("cuda", torch.bfloat16):
        loss = rebuild(video.cuda(), mask.cuda()).loss
    torch.testing.assert_close(loss.cpu(), expected, atol=0.01, rtol=0.02)
    loss.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gpu.parameters())
