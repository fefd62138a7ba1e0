"""The gaze: its views agree with each other, padding never shows, and it may be empty."""

from __future__ import annotations

import pytest
import torch

from autogaze import Gaze, PatchGrid

GRID = PatchGrid((16, 32), 16)  # 1 + 4 ids


def make(ids: list, chosen: list, task_loss: list | None = None) -> Gaze:
    return Gaze(
        torch.tensor(ids),
        torch.tensor(chosen, dtype=torch.bool),
        GRID,
        None if task_loss is None else torch.tensor(task_loss),
    )


@pytest.fixture
def gaze() -> Gaze:
    """Two clips of two frames: (4 1) (0) and () (2 3), with padding before, between and behind."""
    return make([[[4, 0, 1], [2, 2, 0]], [[3, 3, 3], [2, 9, 3]]], [[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [1, 0, 1]]])


def test_the_views_agree(gaze: Gaze) -> None:
    assert gaze.counts.tolist() == [[2, 1], [0, 2]]
    assert gaze.ratio.tolist() == pytest.approx([0.3, 0.2])
    assert gaze.packed().ids.tolist() == [4, 1, 0, 2, 3]
    assert gaze.packed().clip.tolist() == [0, 0, 0, 1, 1] and gaze.packed().frame.tolist() == [0, 0, 1, 1, 1]
    assert gaze.packed().frame_offsets.tolist() == [0, 2, 3, 3, 5]
    assert gaze.patch_mask().int().tolist() == [[[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]], [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0]]]
    assert torch.equal(gaze.mask(32), gaze.patch_mask()[..., 1:]) and torch.equal(gaze.mask(0), gaze.masks()[0])


def test_what_padding_holds_cannot_show(gaze: Gaze) -> None:
    other = Gaze(gaze.ids.where(gaze.chosen, 4), gaze.chosen, GRID)
    assert torch.equal(other.patch_mask(), gaze.patch_mask()) and torch.equal(other.boxes(), gaze.boxes())
    assert torch.equal(other.packed().ids, gaze.packed().ids)


def test_trimmed_moves_choices_first_and_keeps_their_order_and_loss() -> None:
    gaze = make([[[4, 0, 1, 0], [2, 2, 0, 0]]], [[[1, 0, 1, 0], [0, 0, 1, 0]]], [[[0.4, 0, 0.1, 0], [0, 0, 0.7, 0]]])
    trimmed = gaze.trimmed()
    assert trimmed.ids.tolist() == [[[4, 1], [0, 2]]] and trimmed.chosen.tolist() == [[[True, True], [True, False]]]
    assert trimmed.task_loss is not None
    torch.testing.assert_close(trimmed.task_loss[trimmed.chosen], torch.tensor([0.4, 0.1, 0.7]))


def test_a_mask_becomes_a_gaze_and_a_mask_again(gaze: Gaze) -> None:
    again = Gaze.from_patch_mask(gaze.patch_mask(), GRID)
    assert torch.equal(again.patch_mask(), gaze.patch_mask())
    assert again.ids[0, 0].tolist() == [1, 4]


def test_the_published_dict_and_back(gaze: Gaze) -> None:
    info = gaze.to_gazing_info()
    assert info["num_gazing_each_frame"].tolist() == [2, 2] and info["gazing_pos"].shape == (2, 4)
    assert info["gazing_pos"][0].tolist() == [4, 1, 7, 5] and info["if_padded_gazing"][0].tolist() == [0, 0, 1, 0]
    assert [mask.shape for mask in info["gazing_mask"]] == [(2, 2, 1), (2, 2, 4)] and info["scales"] == [16, 32]
    again = Gaze.from_gazing_info(info)
    assert again.grid == GRID and torch.equal(again.patch_mask(), gaze.patch_mask())
    assert torch.equal(again.packed().ids, gaze.packed().ids)


def test_the_published_dict_keeps_slots_that_were_decoded_and_not_kept() -> None:
    nan = float("nan")
    gaze = make([[[1, 2, 3]]], [[[1, 0, 0]]], [[[0.5, 0.1, nan]]])
    assert gaze.to_gazing_info()["num_gazing_each_frame"].tolist() == [2]


@pytest.mark.parametrize("slots", [0, 3])
def test_an_empty_gaze_is_legal(slots: int) -> None:
    gaze = Gaze(torch.zeros(2, 3, slots, dtype=torch.int64), torch.zeros(2, 3, slots, dtype=torch.bool), GRID)
    assert gaze.counts.sum() == 0 and gaze.ratio.tolist() == [0, 0] and not gaze.patch_mask().any()
    assert gaze.packed().ids.shape == (0,) and gaze.boxes().shape == (2, 3, slots, 4)
    assert gaze.trimmed().ids.shape == (2, 3, 0)
    info = gaze.to_gazing_info()
    assert info["gazing_pos"].shape == (2, 0) and info["num_gazing_each_frame"].tolist() == [0, 0, 0]
    assert torch.equal(Gaze.from_gazing_info(info).patch_mask(), gaze.patch_mask())


def test_join_follows_time_and_pads(gaze: Gaze) -> None:
    short = make([[[2]], [[0]]], [[[1]], [[1]]])
    joined = Gaze.join([gaze, short])
    assert joined.ids.shape == (2, 3, 3) and joined.counts.tolist() == [[2, 1, 1], [0, 2, 1]]
    assert torch.equal(joined.patch_mask()[:, :2], gaze.patch_mask())
    with pytest.raises(ValueError, match="no gaze to join"):
        Gaze.join([])
    with pytest.raises(ValueError, match="must be on one grid"):
        Gaze.join([gaze, Gaze(gaze.ids, gaze.chosen, PatchGrid())])


def test_join_fills_losses_with_nan_and_drops_them_if_one_has_none() -> None:
    one, two = make([[[1]]], [[[1]]], [[[0.5]]]), make([[[1, 2]]], [[[1, 1]]], [[[0.4, 0.3]]])
    loss = Gaze.join([one, two]).task_loss
    assert loss is not None and loss[0, 0, 1].isnan() and loss[0, 1].tolist() == pytest.approx([0.4, 0.3])
    assert Gaze.join([one, make([[[1, 2]]], [[[1, 1]]])]).task_loss is None


def test_clips_are_taken_by_slice_or_index(gaze: Gaze) -> None:
    assert torch.equal(gaze[1:].ids, gaze.ids[1:])
    assert torch.equal(gaze[torch.tensor([1, 0])].patch_mask(), gaze.patch_mask().flip(0))


def test_boxes_are_zero_where_nothing_was_chosen(gaze: Gaze) -> None:
    boxes = gaze.boxes()
    assert boxes[0, 0].tolist() == [[16, 16, 32, 32], [0, 0, 0, 0], [0, 0, 16, 16]]


def test_moving_takes_everything_along() -> None:
    moved = make([[[1]]], [[[1]]], [[[0.5]]]).to("meta")
    assert moved.ids.is_meta and moved.chosen.is_meta and moved.task_loss is not None and moved.task_loss.is_meta


@pytest.mark.parametrize(
    ("ids", "chosen", "message"),
    [
        (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.bool), "batch, frames, slots"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.bool), "batch, frames, slots"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bool), "int64"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2, 3), "bool"),
    ],
)
def test_a_gaze_refuses_the_wrong_shape_or_type(ids: torch.Tensor, chosen: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gaze(ids, chosen, GRID)


def test_a_gaze_refuses_losses_of_another_shape() -> None:
    with pytest.raises(ValueError, match="task_loss must have the shape"):
        make([[[1, 2]]], [[[1, 1]]], [[[0.5]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gazing_pos": None}, "lacks"),
        ({"num_gazing_each_frame": [2, 1]}, "must be \\(B, 3\\)"),
        ({"gazing_pos": torch.full((2, 4), 99)}, "outside their frame"),
        ({"num_vision_tokens_each_frame": 21}, "of frames with 21 patches, .* pass the grid"),
    ],
)
def test_a_contradictory_dict_is_refused(gaze: Gaze, change: dict, message: str) -> None:
    info = gaze.to_gazing_info() | change
    with pytest.raises(ValueError, match=message):
        Gaze.from_gazing_info({key: value for key, value in info.items() if value is not None})


def test_a_mask_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must be \(B, T, 5\)"):
        Gaze.from_patch_mask(torch.zeros(1, 1, 6, dtype=torch.bool), GRID)
