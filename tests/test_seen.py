"""What the decoder is told about places that it has looked at before."""

from __future__ import annotations

import pytest
import torch

from autogaze import AutoGaze, Gaze, PatchGrid
from autogaze.seen import NEVER, FrameTokens, Seen, patch_at
from tests.gaze_models import random_video, small_model, typical_loss


def remembering(**config: object) -> AutoGaze:
    return small_model(seen_memory=True, **config)


@pytest.fixture(params=[False, True], ids=["memory", "memory and paste error"])
def model(request: pytest.FixtureRequest) -> AutoGaze:
    return remembering(paste_error=request.param)


def tokens_of(model: AutoGaze, video: torch.Tensor) -> FrameTokens:
    with torch.no_grad():
        return model.embed(video)[0]


def test_places_lie_in_the_patch_that_holds_their_centre() -> None:
    table = patch_at(PatchGrid(), 14)
    boxes = PatchGrid().boxes(torch.arange(265))  # x0, y0, x1, y1
    centre = torch.arange(14) * 16 + 8
    y, x = (axis.flatten() for axis in torch.meshgrid(centre, centre, indexing="ij"))
    for of_scale in table:
        left, top, right, bottom = boxes[of_scale].T
        assert bool(((left <= x) & (x < right) & (top <= y) & (y < bottom)).all())
    assert torch.equal(table[-1], torch.arange(69, 265))


def test_the_finest_patch_of_a_look_counts() -> None:
    memory = remembering().seen
    assert memory is not None  # places of scales 16, 32, 64: 1, 4 and 16 patches
    levels = memory.levels(torch.tensor([[0, 1, 5, 7], [0, 0, 1, 9]]), torch.tensor([[True, True, True, False],
                                                                                     [False, False, True, False]]))
    assert levels[0].reshape(4, 4).tolist() == [[3, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert levels[1].reshape(4, 4).tolist() == [[2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_what_was_seen_stays_until_it_is_seen_again() -> None:
    model = remembering()
    memory, tokens = model.seen, tokens_of(model, random_video(1, 3))
    assert memory is not None and tokens.trace is not None
    fine, none, coarse = torch.tensor([[5]]), torch.tensor([[0]]), torch.tensor([[1]])
    yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    seen = memory.look(memory.open(tokens.frame(0)), tokens.frame(0), fine, yes)
    assert seen.level[0, 0] == 3 and torch.equal(seen.held[0, 0], tokens.trace[0, 0, 0])
    assert bool((seen.level[0, 1:] == NEVER).all()) and not seen.held[0, 1:].any()
    later = memory.look(seen, tokens.frame(1), none, no)
    assert torch.equal(later.held, seen.held) and torch.equal(later.level, seen.level)
    again = memory.look(later, tokens.frame(2), coarse, yes)
    assert again.level[0, 0] == 2 and torch.equal(again.held[0, 5], tokens.trace[0, 2, 5])


def test_a_place_that_has_not_changed_is_told_so_exactly() -> None:
    model = remembering().bfloat16()
    memory, tokens = model.seen, tokens_of(model, random_video(1, 1).bfloat16())
    assert memory is not None and tokens.trace is not None
    level = torch.full(tokens.trace.shape[:1] + tokens.trace.shape[2:3], 3)
    told = memory.tell(tokens.frame(0), Seen(tokens.trace[:, 0], level))
    torch.testing.assert_close(told, tokens.visual[:, 0] + memory.level_embed.weight[3], rtol=0, atol=0)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("way", ["cached", "native", "auto"])
def test_every_way_remembers_alike(model: AutoGaze, way: str, stops: bool) -> None:
    video = random_video(3, 6)
    asked = typical_loss(model, video) if stops else None
    model.decoding = "plain"
    plain = model.generate(video, 0.5, asked)
    model.decoding = way
    if way == "native":
        pytest.importorskip("autogaze.decoding.native_pass")
        from autogaze.decoding import native_pass

        if reason := native_pass.why_not(model):
            pytest.skip(reason)
    fast = model.generate(video, 0.5, asked)
    assert torch.equal(plain.chosen, fast.chosen) and torch.equal(plain.ids, fast.ids)


def test_a_stream_remembers_past_its_window() -> None:
    model, video = remembering(max_num_frames=2), random_video(2, 6)
    stream = model.stream(0.4, batch=2)
    steps = Gaze.join([stream.step(video[:, t]) for t in range(6)])
    assert torch.equal(steps.ids, model.generate(video, 0.4).ids)


@pytest.mark.parametrize("stops", [False, True])
def test_scores_know_what_the_gaze_saw(model: AutoGaze, stops: bool) -> None:
    """The loss predicted before each id is what decoding predicted, so every token was told the same."""
    video = random_video(1, 5)
    gaze = model.generate(video, 0.5, typical_loss(model, video) if stops else None)
    assert gaze.task_loss is not None
    scores = model.score(video, gaze, temperature=1.0)
    after, before = scores.task_loss_prediction[..., :-1], gaze.task_loss[..., 1:]
    slot = torch.arange(1, gaze.ids.shape[-1])
    within = gaze.chosen[..., 1:] & gaze.chosen[..., :-1] & (slot % 4 != 0)  # the same group's heads
    assert within.any()
    torch.testing.assert_close(after[within], before[within], atol=1e-4, rtol=1e-4)


def test_memory_matters_and_learns() -> None:
    model, video = remembering(), random_video(1, 4)
    gaze = model.generate(video, 0.5)
    model.score(video, gaze, temperature=1.0).log_action_probs.sum().backward()
    assert model.seen is not None
    for weight in (model.seen.trace_proj.weight, model.seen.level_embed.weight):
        assert weight.grad is not None and bool(weight.grad.any())
    with torch.no_grad():
        model.seen.level_embed.weight.zero_()
        model.seen.trace_proj.weight.zero_()
    assert not torch.equal(model.generate(video, 0.5).ids, gaze.ids)


def test_a_folder_keeps_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, video = remembering(), random_video(1, 3)
    model.save_pretrained(tmp_path / "m")
    loaded = AutoGaze.from_pretrained(tmp_path / "m")
    assert loaded.config.seen_memory and loaded.seen is not None
    assert torch.equal(loaded.eval().generate(video, 0.3).ids, model.generate(video, 0.3).ids)
