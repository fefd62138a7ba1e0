"""The residual map, and the part that it takes in decoding."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

from autogaze import AutoGaze
from autogaze.core.grid import PatchGrid
from autogaze.evaluate.evaluation import load_reconstructor
from autogaze.media.scenes import render_scene
from autogaze.network.config import AutoGazeConfig
from autogaze.network.residual import LEAST_GAIN, ResidualMap, blurred, patch_at, predicted_loss, smoothing
from autogaze.pretrain.judge import Judge
from autogaze.selectors.difference import DifferenceSelector
from tests.gaze_models import random_video, small_model

GRID = PatchGrid((32, 64, 112, 224))


def rule() -> ResidualMap:
    return ResidualMap(GRID, 14, 16)


def with_error(**config: object) -> AutoGaze:
    return small_model(residual_map=True, **config)


def test_places_lie_in_the_patch_that_holds_their_centre() -> None:
    table = patch_at(GRID, 14)
    boxes = GRID.boxes(torch.arange(265))  # x0, y0, x1, y1
    centre = torch.arange(14) * 16 + 8
    y, x = (axis.flatten() for axis in torch.meshgrid(centre, centre, indexing="ij"))
    for of_scale in table:
        left, top, right, bottom = boxes[of_scale].T
        assert bool(((left <= x) & (x < right) & (top <= y) & (y < bottom)).all())
    assert torch.equal(table[-1], torch.arange(69, 265))


def test_errors_of_a_place_are_those_of_its_pixels() -> None:
    frame, canvas = torch.randn(2, 1, 1, 224, 224)
    own = rule()
    own.weight.data = torch.tensor([2.0, 0.5])
    errors = own.errors(frame, canvas)
    assert errors.shape == (1, 196, 5) and not errors[..., 4].any()
    row, column = 3, 11
    cut = (frame - canvas)[0, :, 48:64, 176:192]
    steps = cut.diff(dim=1).abs().mean() + cut.diff(dim=2).abs().mean()
    torch.testing.assert_close(errors[0, row * 14 + column, 0], 2.0 * cut.abs().mean() + 0.5 * steps)
    seen = frame[0, :, 48:64, 176:192]
    halves = torch.nn.functional.avg_pool2d(seen, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    d = seen - halves  # the coarsest scale resolves 7 pixels: blocks of 8
    steps = d.diff(dim=1).abs().mean() + d.diff(dim=2).abs().mean()
    torch.testing.assert_close(errors[0, row * 14 + column, 1], 2.0 * d.abs().mean() + 0.5 * steps)


def test_a_perceptual_map_that_measures_plainly_is_a_plain_one_with_a_gate() -> None:
    frame, canvas = torch.randn(2, 1, 1, 224, 224)
    plain, gated = rule(), ResidualMap(GRID, 14, 16, perceptual=True)
    assert not torch.allclose(gated.errors(frame, canvas), plain.errors(frame, canvas), rtol=0.1)
    gated.measure_plainly()
    torch.testing.assert_close(gated.errors(frame, canvas), plain.errors(frame, canvas), atol=1e-6, rtol=1e-5)
    visual = torch.randn(1, 196, 192)
    assert not torch.allclose(gated.errors(frame, canvas, visual), plain.errors(frame, canvas), rtol=0.1)


def test_a_place_that_is_only_held_counts_once_to_four_times_what_is_wrong_with_it() -> None:
    errors = torch.tensor([[[now, 0.9, 0.5, 0.1, 0.0]] for now in (0.0, 0.005, 0.03, 0.2)])
    held = predicted_loss(errors, torch.zeros(4, 1, dtype=torch.int64))
    torch.testing.assert_close(held, torch.tensor([0.0, 0.02, 0.04, 0.2]))
    seen = predicted_loss(errors, torch.full((4, 1), 3))
    torch.testing.assert_close(seen, torch.full((4,), 0.1))


def test_what_a_patch_takes_away_is_what_is_gone_after_it() -> None:
    own, frame = rule(), torch.randn(2, 1, 224, 224)
    error = own.begin(frame, torch.randn(2, 1, 224, 224))
    for ids in ([0, 3], [150, 20], [70, 4], [70, 69]):  # coarse, fine, the same place again, and beside it
        chosen = torch.tensor(ids)
        gain = own.gains(error.errors, error.level)[torch.arange(2), chosen]
        before = error.predicted_loss()
        error.take(chosen)
        torch.testing.assert_close(before - error.predicted_loss(), gain, atol=1e-6, rtol=1e-5)
    assert torch.equal(error.scores()[0, 70], own.strength * torch.tensor(LEAST_GAIN).log())  # nothing is left to gain


def test_a_coarse_look_after_a_fine_one_changes_nothing_there() -> None:
    own, frame = rule(), torch.randn(1, 1, 224, 224)
    one, other = (own.begin(frame, torch.zeros_like(frame)) for _ in range(2))
    for ids in (100, 0):
        one.take(torch.tensor([ids]))
    for ids in (0, 100):
        other.take(torch.tensor([ids]))
    assert torch.equal(one.level, other.level) and torch.equal(one.predicted_loss(), other.predicted_loss())


def test_the_canvas_holds_blocks_of_the_last_look() -> None:
    own, first, second = rule(), torch.randn(1, 1, 224, 224), torch.randn(1, 1, 224, 224)
    yes = torch.tensor([[True, True]])
    canvas = own.look(own.open(first), first, torch.tensor([[0, 69]]), yes)  # a quarter, and the first place finely
    assert torch.equal(canvas[..., :16, :16], first[..., :16, :16])
    assert torch.equal(canvas[..., 16:112, :112], blurred(first, 8)[..., 16:112, :112])
    assert not canvas[..., 112:, :].any() and not canvas[..., 112:].any()
    later = own.look(canvas, second, torch.tensor([[0, 69]]), torch.tensor([[True, False]]))
    assert torch.equal(later[..., :112, :112], blurred(second, 8)[..., :112, :112])
    assert torch.equal(own.look(canvas, second, torch.tensor([[0, 69]]), ~yes), canvas)


def test_scores_decide_and_the_predicted_loss_is_what_is_left() -> None:
    model, video = with_error(), random_video(2, 3)
    model.gaze_decoder.lm_head.weight.data.zero_()
    gaze = model.generate(video, gazing_ratio=0.3)
    assert gaze.task_loss is not None and model.residual_map is not None
    first = video[:, 0].mean(1, keepdim=True)
    error = model.residual_map.begin(first, torch.zeros_like(first))
    for slot in range(gaze.ids.shape[-1]):
        torch.testing.assert_close(gaze.task_loss[:, 0, slot], error.predicted_loss())
        best = error.scores().scatter(1, gaze.ids[:, 0, :slot], -torch.inf).argmax(-1)
        assert torch.equal(gaze.ids[:, 0, slot], best)
        error.take(best)


@pytest.mark.parametrize(
    "config",
    [{}, {"num_multi_token_pred": 1}, {"max_num_frames": 2}],
    ids=["in groups", "one at a time", "past the window"],
)
def test_ways_and_streams_agree(config: dict[str, object]) -> None:
    model, video = with_error(**config), random_video(2, 5)
    gazes = []
    for way in ("reference", "auto"):
        model.decoding = way
        gazes.append(model.generate(video, gazing_ratio=0.4, task_loss_requirement=0.8))
    stream = model.stream(gazing_ratio=0.4, task_loss_requirement=0.8, batch=2)
    steps = [stream.step(frame) for frame in video.unbind(1)]
    assert torch.equal(gazes[0].ids, gazes[1].ids) and torch.equal(gazes[0].chosen, gazes[1].chosen)
    assert 0 < int(gazes[0].counts.min()) < int(gazes[0].counts.max())  # the rule stops some frames before others
    for t, step in enumerate(steps):
        size = step.ids.shape[-1]
        assert torch.equal(step.chosen[:, 0], gazes[0].chosen[:, t, :size]) and not gazes[0].chosen[:, t, size:].any()
        assert torch.equal(step.ids[:, 0], gazes[0].ids[:, t, :size])


def test_what_was_sampled_is_scored_as_it_was_sampled() -> None:
    """The id of every slot is the best of noisy scores: without noise, scoring must rank it first."""
    model, video = with_error(), random_video(2, 4)
    gaze = model.generate(video, gazing_ratio=0.5)
    scores = model.score(video, gaze, temperature=1e-3)
    assert scores.log_action_probs.exp().min() > 0.5
    assert gaze.task_loss is not None  # before each id; scores tell it after
    torch.testing.assert_close(scores.task_loss_prediction[..., :-1], gaze.task_loss[..., 1:], atol=1e-5, rtol=1e-5)


def test_the_strength_is_trained_and_the_weights_are_not() -> None:
    model, video = with_error(), random_video(1, 3)
    gaze = model.generate(video, gazing_ratio=0.4)
    scores = model.score(video, gaze, temperature=1.0)
    assert model.residual_map is not None
    (strength,) = torch.autograd.grad(scores.log_action_probs.sum(), model.residual_map.strength)
    assert strength != 0 and not model.residual_map.weight.requires_grad
    assert not scores.task_loss_prediction.requires_grad


def test_autocast_changes_neither_errors_nor_scores() -> None:
    model, video = with_error(), random_video(1, 3)
    gaze = model.generate(video, gazing_ratio=0.4)
    assert model.residual_map is not None
    known = video.mean(2, keepdim=True), gaze.ids, gaze.chosen
    exact = model.residual_map.along(*known)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.residual_map.along(*known)
        model.score(video, gaze, temperature=1.0)
    assert all(torch.equal(a, b) for a, b in zip(exact, cast, strict=True))


def test_a_saved_model_has_it_again(tmp_path: Path) -> None:
    model, video = with_error(), random_video(1, 3)
    model.save_pretrained(tmp_path)
    loaded = AutoGaze.from_pretrained(tmp_path)
    assert loaded.config.residual_map
    assert torch.equal(loaded.generate(video, gazing_ratio=0.2).ids, model.generate(video, gazing_ratio=0.2).ids)


def test_patches_must_have_a_side_that_blocks_divide() -> None:
    with pytest.raises(ValueError, match="power of two"):
        small_model(residual_map=True, patch_size=14, scales=(28, 56))


def test_even_untrained_heads_look_about_as_well_as_the_difference_selector() -> None:
    """A model whose heads say nothing is a coarser difference selector: rendered scenes, the shipped judge."""
    model = AutoGaze.from_pretrained("autogaze-base").eval()
    model.gaze_decoder.lm_head.weight.data.zero_()
    video = torch.cat([model.preprocessor(render_scene(seed, frames=4)) for seed in (1, 2)])
    judge = Judge(load_reconstructor(None))
    own, other = (
        judge.losses(video, gaze).mean()
        for gaze in (model.generate(video, gazing_ratio=0.1), DifferenceSelector(model.grid)(video, 0.1))
    )
    assert own < 1.1 * other


def test_a_perceptual_map_sees_a_weak_contrast_almost_as_a_strong_one() -> None:
    """The same change of texture at a fifth of its contrast: pixels call it a fifth, a perceptual map clearly more."""
    plain, perceptual = (ResidualMap(PatchGrid(), 14, 16, perceptual=kind) for kind in (False, True))
    perceptual.response.data[0] = 0.01  # contrasts far above the floor
    frame = torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(0)) * 0.3
    shares = [
        float(
            rule.errors(0.2 * frame, torch.zeros_like(frame))[..., 0].mean()
            / rule.errors(frame, frame * 0)[..., 0].mean()
        )
        for rule in (plain, perceptual)
    ]
    power = float(perceptual.response[2] * (1 - perceptual.response[1]))
    assert shares[0] == pytest.approx(0.2, rel=1e-4)
    assert shares[1] == pytest.approx(0.2**power, rel=0.1)


def test_a_perceptual_map_finds_nothing_wrong_after_the_finest_scale() -> None:
    rule = ResidualMap(PatchGrid(), 14, 16, perceptual=True)
    errors = rule.errors(torch.rand(1, 1, 224, 224), torch.zeros(1, 1, 224, 224))
    assert bool((errors[..., -1] == 0).all()) and bool((errors[..., :-1] > 0).all())


def test_a_gate_multiplies_the_errors_of_a_cell_by_what_its_token_says() -> None:
    model = AutoGaze(AutoGazeConfig(residual_map=True, perceptual=True)).eval()
    rule = model.residual_map
    assert rule is not None and rule.gate is not None
    frame, visual = torch.rand(1, 1, 224, 224), torch.randn(1, 196, 192)
    before = rule.errors(frame, torch.zeros_like(frame))
    torch.testing.assert_close(rule.errors(frame, torch.zeros_like(frame), visual), before)  # closed in a new model
    torch.nn.init.normal_(rule.gate.weight, std=0.1)
    torch.nn.init.normal_(rule.gate.bias, std=0.1)
    factors = (visual[0, 7] @ rule.gate.weight.t() + rule.gate.bias).exp()
    after = rule.errors(frame, torch.zeros_like(frame), visual)
    torch.testing.assert_close(after[0, 7, :-1], before[0, 7, :-1] * factors)
    assert bool((after[..., -1] == 0).all())


def test_decoding_and_scoring_read_the_gate() -> None:
    model = AutoGaze(AutoGazeConfig(residual_map=True, perceptual=True)).eval()
    rule, video = model.residual_map, random_video(1, 2, side=224)
    assert rule is not None and rule.gate is not None
    torch.nn.init.normal_(rule.gate.weight, std=0.5)
    opened = model.generate(video, gazing_ratio=0.05)
    assert opened.task_loss is not None
    scores = model.score(video, opened, as_decoded=True)
    told, known = scores.task_loss_prediction[:, :, :-1], opened.task_loss[:, :, 1:]
    torch.testing.assert_close(told, known, rtol=1e-4, atol=1e-6)
    rule.gate.weight.data.zero_()
    assert not torch.equal(model.generate(video, gazing_ratio=0.05).ids, opened.ids)


def test_smoothing_is_a_gaussian_that_repeats_the_edges() -> None:
    lines, frame = smoothing(40, 1.2), torch.rand(40, 40)
    expected = cv2.GaussianBlur(frame.numpy(), (9, 9), 1.2, borderType=cv2.BORDER_REPLICATE)
    torch.testing.assert_close(lines @ frame @ lines.t(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_a_smoothing_map_compares_smoothed_frames() -> None:
    model = AutoGaze(AutoGazeConfig(residual_blur_px=1.0)).eval()
    video = random_video(1, 2, side=224)
    grey, lines = model.embed(video)[0].grey, smoothing(224, 1.0)
    assert grey is not None
    torch.testing.assert_close(grey, lines @ video.mean(2, keepdim=True) @ lines.t())
