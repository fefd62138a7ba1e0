"""The patch grid: ids, places and boxes agree, on square frames and on any other."""

from __future__ import annotations

import pytest
import torch

from autogaze import PatchGrid


def test_the_published_grid_has_265_ids() -> None:
    grid = PatchGrid()
    assert grid.patches_per_scale == (4, 16, 49, 196) and grid.patches_per_frame == 265
    assert grid.offsets == (0, 4, 20, 69) and grid.sides == ((2, 2), (4, 4), (7, 7), (14, 14))


def test_parse_reads_the_published_spelling_in_any_order() -> None:
    assert PatchGrid.parse("224+32+112+64") == PatchGrid()
    assert PatchGrid.parse("64", 8) == PatchGrid((64,), 8)


@pytest.mark.parametrize("grid", [PatchGrid(), PatchGrid((16, 64)), PatchGrid(frame_size=(270, 480))])
def test_locate_and_id_at_are_inverse(grid: PatchGrid) -> None:
    ids = torch.arange(grid.patches_per_frame)
    scale, row, column = grid.locate(ids)
    again = [grid.id_at(*place) for place in zip(scale.tolist(), row.tolist(), column.tolist(), strict=True)]
    assert again == ids.tolist()


@pytest.mark.parametrize("size", [None, (270, 480), (100, 100), (1080, 1920), (1, 1), (224, 448)])
def test_the_boxes_of_a_scale_tile_the_frame(size: tuple[int, int] | None) -> None:
    grid = PatchGrid(frame_size=size)
    boxes = grid.boxes(torch.arange(grid.patches_per_frame))
    for start, count in zip(grid.offsets, grid.patches_per_scale, strict=True):
        left, top, right, bottom = boxes[start : start + count].unbind(-1)
        assert (right > left).all() and (bottom > top).all()
        assert ((right - left) * (bottom - top)).sum() == pytest.approx(grid.height_px * grid.width_px)
        assert right.max() == grid.width_px and bottom.max() == grid.height_px and left.min() == top.min() == 0


def test_boxes_are_in_pixels_of_the_frame() -> None:
    grid = PatchGrid()
    boxes = grid.boxes(torch.tensor([0, 3, 264]))
    assert boxes.tolist() == [[0, 0, 112, 112], [112, 112, 224, 224], [208, 208, 224, 224]]


def test_a_wide_frame_has_the_cells_of_its_tiles() -> None:
    grid = PatchGrid(frame_size=(270, 480))  # 2 x 3 tiles, cut
    assert grid.sides == ((3, 5), (5, 9), (9, 15), (17, 30))


def test_cover_agrees_with_the_boxes() -> None:
    grid = PatchGrid((16, 48), 16)  # a 3 x 3 finest grid below one patch
    cover = grid.cover()
    assert cover.shape == (10, 3, 3) and cover[0].all()
    assert torch.equal(cover[1:].flatten(1), torch.eye(9, dtype=torch.bool))


@pytest.mark.parametrize("size", [None, (100, 250)])
def test_every_scale_covers_every_finest_cell_once(size: tuple[int, int] | None) -> None:
    grid = PatchGrid(frame_size=size)
    for scale in grid.cover().split(list(grid.patches_per_scale)):
        assert (scale.sum(0) == 1).all()


@pytest.mark.parametrize(("ratio", "budget"), [(0.1, 26), (0.75, 198), (1.0, 265), (0.001, 1), (0.2, 53), (0.6, 159)])
def test_the_budget_is_the_published_rule(ratio: float, budget: int) -> None:
    assert PatchGrid().budget(ratio) == budget


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan")])
def test_a_budget_needs_a_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="gazing_ratio must be in"):
        PatchGrid().budget(ratio)


def test_scales_are_named_by_index_or_pixels() -> None:
    grid = PatchGrid()
    assert [grid.scale_index(name) for name in (0, 3, -1, 32, 224)] == [0, 3, 3, 0, 3]
    with pytest.raises(ValueError, match="no scale 99"):
        grid.scale_index(99)


def test_to_dict_and_back() -> None:
    for grid in (PatchGrid(), PatchGrid((24, 48), 12), PatchGrid(frame_size=(270, 480))):
        assert PatchGrid.from_dict(grid.to_dict()) == grid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "needs scales"),
        ({"patch_size": 0}, "positive patch_size"),
        ({"scales": (64, 32)}, "ascend"),
        ({"scales": (8, 32)}, "hold a patch"),
        ({"frame_size": (0, 5)}, "frame_size"),
    ],
)
def test_a_grid_refuses_nonsense(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchGrid(**arguments)  # type: ignore[arg-type]


def test_id_at_refuses_a_place_outside() -> None:
    with pytest.raises(ValueError, match="2 x 2 patches, no row 2"):
        PatchGrid().id_at(32, 2, 0)
