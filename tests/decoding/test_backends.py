"""The C++ back end chooses what the reference chooses, whatever is asked; both forget what they may."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from autogaze import AutoGaze, Gaze
from autogaze.decoding import backends, reference
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.cpu.backend import NativeMemory
from autogaze.decoding.reference import Memory
from autogaze.decoding.request import allowed_ids, make_request
from tests.gaze_models import random_video, small_model, typical_loss


@pytest.fixture(params=list(backends.BACKENDS))
def way(request: pytest.FixtureRequest) -> str:
    why_not = importlib.import_module(backends.BACKENDS[request.param]).why_not
    if reason := why_not(small_model(), True):
        pytest.skip(reason)
    return request.param


def both(way: str, model: AutoGaze, video: torch.Tensor, *arguments: Any, **named: Any) -> tuple[Gaze, Gaze]:
    gazes = []
    for model.decoding in ("reference", way):
        gazes.append(model.generate(video, *arguments, **named))
    return gazes[0], gazes[1]


def assert_same(ours: Gaze, theirs: Gaze) -> None:
    assert torch.equal(ours.chosen, theirs.chosen) and torch.equal(ours.ids, theirs.ids)
    torch.testing.assert_close(ours.task_loss, theirs.task_loss, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [None, 0.3, [0.8, 0.1, 0.0, 0.5, 0.05], torch.tensor([0.1, 0.0, 0.9])])
@pytest.mark.parametrize("quantile", [None, 0.2])
def test_it_equals_the_reference(way: str, seed: int, ratio: Any, quantile: float | None) -> None:
    model, video = small_model(seed), random_video(3, 5, seed=seed)
    asked = None if quantile is None else typical_loss(model, video, quantile)
    assert_same(*both(way, model, video, ratio, asked))


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("quantile", [None, 0.2])
def test_it_equals_the_reference_beyond_the_window(way: str, window: int, quantile: float | None) -> None:
    model, video = small_model(max_num_frames=window), random_video(3, 8)
    asked = None if quantile is None else typical_loss(model, video, quantile)
    assert_same(*both(way, model, video, 0.6, asked))


@pytest.mark.parametrize("seed", range(3))
def test_positions_may_be_moved_back_without_changing_a_choice(
    way: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    model, video = small_model(seed, max_num_frames=2), random_video(2, 12, seed=seed)
    expected = both(way, model, video, 0.4)[0]
    moved = []
    memory = NativeMemory if way == "cpu" else Memory
    turn = memory.turn
    monkeypatch.setattr(reference, "REBASE_AT", 60)
    monkeypatch.setattr(memory, "turn", lambda self, by: moved.append((self.position, by)) or turn(self, by))
    assert_same(both(way, model, video, 0.4)[1], expected)
    assert moved and all(by < 0 and position < 60 + 2 * 24 for position, by in moved)


def test_each_clip_with_a_request_of_its_own_gets_what_it_gets_alone(way: str) -> None:
    model, video = small_model(), random_video(3, 5)
    ratios = torch.tensor([0.2, 1.0, 0.6])
    asked = (typical_loss(model, video) + torch.tensor([0.0, 0.3, -0.3])).clamp(min=0)
    together = both(way, model, video, ratios, asked)
    for gaze in together:
        for i in range(3):
            alone = model.generate(video[i : i + 1], float(ratios[i]), float(asked[i]))
            assert torch.equal(gaze[i : i + 1].patch_mask(), alone.patch_mask())
            assert torch.equal(gaze[i : i + 1].packed().ids, alone.packed().ids)


@pytest.mark.parametrize("residual_map", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_clip_is_decoded_as_if_alone_whatever_is_beside_it(way: str, seed: int, residual_map: bool) -> None:
    """In batches of any size, all asked the same, or beside clips that are asked to go on for longer, or to stop."""
    model, video = small_model(seed, residual_map=residual_map), random_video(4, 5, seed=seed)
    asked = typical_loss(model, video, 0.7)
    model.decoding = way
    alone = [model.generate(clip[None], 0.8, asked) for clip in video]
    for beside in (1.0, 1.0001, 0.0, 9e9):
        requirements = torch.tensor([asked, asked * beside, asked, asked * beside])[:, None]
        for count in range(1, 5):
            gaze = model.generate(video[:count], 0.8, asked if beside == 1 else requirements[:count])
            for i in range(0, count, 1 if beside == 1 else 2):
                assert torch.equal(gaze[i : i + 1].packed().ids, alone[i].packed().ids)
    assert len({int(gaze.counts.sum()) for gaze in alone}) > 1


@pytest.mark.parametrize("scales", [(16,), (64,), (16, 64)])
@pytest.mark.parametrize("residual_map", [False, True])
def test_ids_of_scales_that_are_not_allowed_are_never_chosen(
    way: str, scales: tuple[int, ...], residual_map: bool
) -> None:
    model, video = small_model(residual_map=residual_map), random_video(3, 4)
    allowed = allowed_ids(model.grid, scales)
    assert allowed is not None
    for ratio, requirement, temperature in (
        (1.0, None, None),
        (0.5, typical_loss(model, video, 0.4), None),
        (torch.tensor([0.05, 0.4, 1.0]), None, None),
        (0.5, None, 1.0),
    ):
        gazes = []
        for model.decoding in ("reference", way):
            generator = torch.Generator().manual_seed(1)
            request = make_request(model.grid, 3, 4, ratio, requirement, temperature, generator, scales)
            gazes.append(decode_clip(model, video, request))
        assert_same(*gazes)
        mask = gazes[1].patch_mask()
        assert not bool(mask[..., ~allowed].any()) and torch.equal(mask.sum(-1), gazes[1].counts)
        if isinstance(ratio, float) and ratio == 1.0:
            assert bool(mask[..., allowed].all())


@pytest.mark.parametrize("quantile", [None, 0.2])
def test_the_order_of_clips_does_not_matter(way: str, quantile: float | None) -> None:
    model, video = small_model(), random_video(4, 4)
    asked = None if quantile is None else typical_loss(model, video, quantile)
    order = torch.tensor([2, 0, 3, 1])
    moved = both(way, model, video[order], 0.6, asked)
    for ours, theirs in zip(moved, both(way, model, video, 0.6, asked), strict=True):
        assert_same(ours, theirs[order])


def test_sampling_with_one_seed_gives_one_result(way: str) -> None:
    model, video = small_model(), random_video(1, 4)
    gazes = []
    for model.decoding in ("reference", way):
        gazes.append(model.generate(video, 0.5, temperature=1.0, generator=torch.Generator().manual_seed(3)))
    assert_same(*gazes)
    assert not torch.equal(gazes[0].ids, model.generate(video, 0.5).ids)


@pytest.mark.parametrize("ratio", [0.3, [0.8, 0.1, 0.0, 0.5, 0.05], torch.tensor([0.1, 0.0, 0.9])])
@pytest.mark.parametrize("quantile", [None, 0.4])
def test_residual_map_is_kept_up_as_in_the_reference(way: str, ratio: Any, quantile: float | None) -> None:
    model, video = small_model(residual_map=True), random_video(3, 5)
    asked = None if quantile is None else typical_loss(model, video, quantile)
    assert_same(*both(way, model, video, ratio, asked))
    gazes = []
    for model.decoding in ("reference", way):
        gazes.append(model.generate(video[:1], 0.5, temperature=1.0, generator=torch.Generator().manual_seed(3)))
    assert_same(*gazes)


@pytest.mark.parametrize("residual_map", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_run_and_mostly_agree(dtype: torch.dtype, residual_map: bool) -> None:
    model, video = small_model(residual_map=residual_map), random_video(2, 1)
    expected = model.generate(video, 0.2)
    model.to(dtype)
    for gaze in both("reference", model, video.to(dtype), 0.2):
        assert (gaze.patch_mask() == expected.patch_mask()).float().mean() > (0.999 if dtype == torch.float64 else 0.8)
    scores = model.score(video.to(dtype), gaze, temperature=1.0).log_action_probs
    assert bool(scores.isfinite().all())


def test_results_are_ordinary_tensors(way: str) -> None:
    """Not those of inference mode, which autograd refuses: the gaze is what training scores."""
    model, video = small_model(), random_video(2, 2)
    model.decoding = way
    for ratio in (0.5, torch.tensor([[0.5], [0.2]])):
        gaze = model.generate(video, ratio)
        assert gaze.task_loss is not None and not gaze.ids.is_inference() and not gaze.task_loss.is_inference()
        model.score(video, gaze, 1.0).log_action_probs.sum().backward()


def test_choosing_keeps_no_graph_of_gradients(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = small_model(residual_map=True), random_video(1, 2)
    model.decoding, embed, seen = way, model.embed, []
    monkeypatch.setattr(model, "embed", lambda *given: seen.append(torch.is_grad_enabled()) or embed(*given))
    model.generate(video, 0.5)
    model.stream(0.5).step(video[:, 0])
    assert seen == [False, False]


def test_weights_that_change_are_used_at_once(way: str) -> None:
    model, video = small_model(), random_video(1, 2)
    model.decoding = way
    before = model.generate(video, 0.5).ids
    model.load_state_dict(small_model(seed=5).state_dict())
    assert not torch.equal(model.generate(video, 0.5).ids, before)
    assert_same(*both(way, model, video, 0.5))


def test_old_names_of_back_ends_are_taken_with_a_warning() -> None:
    model = small_model()
    for old, new in backends.OLD_NAMES.items():
        model.decoding = old
        with pytest.warns(DeprecationWarning, match=f'decoding="{old}" is now "{new}"'):
            if new == "cuda":
                with pytest.raises(ValueError, match='decoding="cuda" cannot be used: the model is on cpu'):
                    backends.pick_backend(model)
            else:
                assert backends.current_name(old) == new
    model.decoding = "quick"
    with pytest.raises(ValueError, match="decoding must be auto or one of reference, cpu, cuda, got 'quick'"):
        backends.pick_backend(model)


def test_what_a_model_says_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.setenv("AUTOGAZE_DECODING", "cuda")
    with pytest.raises(ValueError, match='decoding="cuda" cannot be used'):
        backends.pick_backend(model)
    model.decoding = "reference"
    assert backends.pick_backend(model) == ("reference", "")
