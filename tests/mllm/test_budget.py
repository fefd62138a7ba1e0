"""How many units stay: a budget for a whole prompt, the stop rule, tiles, ratios, and numbers that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from autogaze.core.gaze import Gaze  # noqa: E402
from autogaze.core.grid import PatchGrid  # noqa: E402
from autogaze.mllm import GazedVideoLM, UnitGrid  # noqa: E402
from autogaze.mllm.gazing import UnitGazer  # noqa: E402
from autogaze.mllm.units import Choice, cells_of, cut_tiles, keep_units, tiles_for  # noqa: E402
from autogaze.model import AutoGaze  # noqa: E402
from tests.mllm.mllm_models import BY_NAME, CASES, Case, built, clip, gaze, gazed, settings, talk  # noqa: E402

QWEN = BY_NAME["Qwen3-VL"]
each_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def prepared(case: Case, **options: Any) -> Any:
    return gazed(case, **options).prepare(talk(clip(case)), **settings(case))


@each_family
def test_a_prompt_has_at_most_the_visual_tokens_asked_for(case: Case) -> None:
    steps = len(prepared(case).kept[0])
    free = prepared(case, gazing_ratio=1.0)
    budget = (steps + free.visual_tokens) // 2
    prompt = prepared(case, gazing_ratio=None, max_visual_tokens=budget)
    assert prompt.visual_tokens == budget
    assert bool(prompt.kept[0].flatten(1).any(1).all())  # every step keeps a unit
    assert bool((prompt.kept[0] <= free.kept[0]).all())
    with pytest.raises(ValueError, match=f"max_visual_tokens={steps - 1} is less than one token for each of {steps}"):
        prepared(case, max_visual_tokens=steps - 1)


def test_the_budget_is_of_each_prompt_of_a_batch_and_of_all_its_videos() -> None:
    lm = gazed(QWEN, gazing_ratio=None, max_visual_tokens=20)
    one, other = clip(QWEN, seed=1), clip(QWEN, seed=2)
    (message,) = talk(one)
    two = [{**message, "content": [{"type": "video", "video": other}, *message["content"]]}]
    prompt = lm.prepare([two, talk(other)], **settings(QWEN, 3))
    assert prompt.prompt_of == (0, 0, 1)
    tokens = [int(mask.sum()) for mask in prompt.kept]
    assert tokens[0] + tokens[1] == 20 and tokens[2] == 20


def test_a_budget_counts_what_earlier_turns_hold() -> None:
    lm = gazed(QWEN, gazing_ratio=None, max_visual_tokens=40)
    first = gazed(QWEN, gazing_ratio=None, max_visual_tokens=25).prepare(talk(clip(QWEN)), **settings(QWEN))
    messages = [*talk(clip(QWEN)), {"role": "assistant", "content": "a"}, *talk(clip(QWEN, seed=2), "and this")]
    second = lm.prepare(messages, previous=first, **settings(QWEN, 2))
    assert [int(mask.sum()) for mask in second.kept] == [25, 15]


def test_a_looser_requirement_keeps_fewer_units_and_spreads_them() -> None:
    counts = []
    losses = torch.cat([part[part.isfinite()] for part in predicted(QWEN)])
    for requirement in (0.0, float(losses.median()), float(losses.max()) + 1):
        prompt = prepared(QWEN, gazing_ratio=None, task_loss_requirement=requirement)
        assert bool(prompt.kept[0][0].all()) and bool(prompt.kept[0].flatten(1).any(1).all())
        counts.append(int(prompt.kept[0][1:].sum()))
    assert prompt.kept[0][1:].numel() >= counts[0] >= counts[1] >= counts[2] and counts[0] > counts[2]


def predicted(case: Case) -> list[torch.Tensor]:
    """The losses that the gaze model predicts for the case's video."""
    lm = gazed(case, gazing_ratio=1.0)
    videos = lm.family.videos(lm._read(talk(clip(case)), **settings(case)))
    return [choice.loss[1:] for choice in lm._look(videos)]


def test_a_lower_ratio_keeps_a_subset() -> None:
    few, more = (prepared(QWEN, gazing_ratio=ratio) for ratio in (0.1, 0.5))
    assert bool((few.kept[0] <= more.kept[0]).all()) and few.visual_tokens < more.visual_tokens
    per_step = few.kept[0][0].numel()
    assert set(few.kept[0][1:].flatten(1).sum(1).tolist()) == {int(0.1 * per_step)}
    assert set(more.kept[0][1:].flatten(1).sum(1).tolist()) == {per_step // 2}


def test_without_a_first_step_in_full_every_step_has_its_share() -> None:
    prompt = prepared(QWEN, first_step=False)
    assert set(prompt.kept[0].flatten(1).sum(1).tolist()) == {int(0.2 * 24)}


def test_a_video_wider_than_a_gaze_tile_is_gazed_at_in_tiles() -> None:
    grid = gaze().grid
    rows, columns = grid.sides[-1]
    wide = (32 * rows, 32 * 3 * columns)  # three tiles of 32 x 32 px units side by side
    case = Case("wide", QWEN.build, wide)
    assert tiles_for(UnitGrid(3, rows, 3 * columns), (rows, columns)) == (1, 3)
    prompt = prepared(case)
    assert prompt.kept[0].shape == (3, rows, 3 * columns)
    share = max(1, int(0.2 * rows * 3 * columns))
    assert set(prompt.kept[0][1:].flatten(1).sum(1).tolist()) == {share}
    for start in range(0, 3 * columns, columns):  # every tile spends
        assert bool(prompt.kept[0][1:, :, start : start + columns].any())


@pytest.mark.parametrize("options", [{"gazing_ratio": 0.2}, {"gazing_ratio": None, "max_visual_tokens": 40}])
def test_nothing_is_decoded_that_is_no_unit(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a first step in full the gaze model chooses cells, one for a unit, and no more than may be kept."""
    grid, seen = gaze().grid, []
    generate = AutoGaze.generate

    def noted(*args: Any, **given: Any) -> Gaze:
        seen.append(generate(*args, **given))
        return seen[-1]

    monkeypatch.setattr(AutoGaze, "generate", noted)
    rows, columns = grid.sides[-1]
    case = Case("cell for cell", QWEN.build, (32 * rows, 32 * columns))
    prompt = prepared(case, **options)
    (chosen,) = seen
    assert bool((chosen.ids[chosen.chosen] >= grid.offsets[-1]).all())
    counts = chosen.counts[0].tolist()
    if options["gazing_ratio"]:
        assert counts == [rows * columns] + [int(0.2 * rows * columns)] * 2
        assert prompt.visual_tokens == sum(counts)
    else:
        assert counts == [rows * columns] * 3


def test_without_a_first_step_in_full_the_gaze_model_may_take_coarse_patches() -> None:
    assert UnitGazer(gaze(), 0.2).scales == gaze().grid.scales[-1:]
    assert UnitGazer(gaze(), 0.2, first_step=False).scales == gaze().grid.scales


def test_tiles_are_parts_of_the_frame_and_units_find_their_cell_again() -> None:
    frames = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    tiles = cut_tiles(frames, (2, 3))
    assert tiles.shape == (6, 2, 3, 2, 2) and torch.equal(tiles[4], frames[..., 2:4, 2:4])
    grid = PatchGrid((32,), 16)  # 2 x 2 cells
    ids = torch.tensor([3]).view(1, 1, 1).repeat(6, 1, 1)  # the lower right cell of every tile
    choice = Choice.of(Gaze(ids, torch.ones_like(ids, dtype=torch.bool), grid), UnitGrid(1, 4, 6), (2, 3))
    first = (choice.loss > -torch.inf).view(4, 6)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1::2, 1::2] = True
    assert torch.equal(first, expected) and choice.order.sort(-1).values.tolist() == [list(range(24))]


def test_a_coarse_patch_stands_for_the_cells_under_it() -> None:
    grid = PatchGrid((16, 64), 16)  # one coarse patch, then 4 x 4
    ids, chosen = torch.tensor([[[1, 0]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    when, loss = cells_of(Gaze(ids, chosen, grid, task_loss=torch.tensor([[[0.5, 0.25]]])))
    assert when[0, 0, 0, 0] == 0 and (when[0, 0].flatten()[1:] == 1).all()
    assert loss[0, 0, 0, 0] == 0.5 and (loss[0, 0].flatten()[1:] == 0.25).all()


def test_a_budget_goes_to_the_units_of_the_highest_loss_wherever_they_are() -> None:
    order = torch.arange(4).expand(3, 4)
    loss = torch.tensor([[torch.inf, 4.0, 3.0, 0.1], [torch.inf, 0.3, 0.2, 0.1], [torch.inf, 9.0, 8.0, 7.0]])
    (kept,) = keep_units([Choice(order, loss)], None, max_units=7, first_step=False)
    assert kept.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]


@pytest.mark.parametrize(("options", "message"), [
    ({"gazing_ratio": 0.0}, r"gazing_ratio must be in \(0, 1\], got 0.0"),
    ({"gazing_ratio": 1.5}, r"gazing_ratio must be in \(0, 1\], got 1.5"),
    ({"max_visual_tokens": 0}, "max_visual_tokens must be positive, got 0"),
    ({"task_loss_requirement": float("nan")}, "task_loss_requirement must be a number, got nan"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gazed(QWEN, **options)
    with pytest.raises(ValueError, match="needs a gaze model"):
        GazedVideoLM(*built(QWEN), gazing_ratio=0.1)
