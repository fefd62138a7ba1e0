"""The difference selector's arithmetic: lattice, canvas and greedy choice against plain loops over pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autogaze import Gaze, PatchGrid
from autogaze.selectors import make_selector
from autogaze.selectors.canvas import renditions
from autogaze.selectors.difference import DifferenceSelector
from autogaze.selectors.lattice import Lattice

GRID = PatchGrid((16, 32, 64), 16)  # 1 + 4 + 16 = 21 patches


def clip(frames: int = 3, grid: PatchGrid = GRID) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    blobs = torch.rand(1, 3, frames, 8, 8, generator=generator) * 2 - 1
    size = (frames, grid.height_px, grid.width_px)
    return torch.nn.functional.interpolate(blobs, size=size, mode="trilinear").transpose(1, 2).contiguous()


def pasted(canvas: Tensor, frame: Tensor, ids: list[int], grid: PatchGrid) -> Tensor:
    """Reference: paste patches coarse to fine, one box at a time."""
    canvas, seen = canvas.clone(), renditions(frame, grid)
    for patch in sorted(ids):
        left, top, right, bottom = (int(edge) for edge in grid.boxes(torch.tensor(patch)))
        scale = int(grid.locate(torch.tensor(patch))[0])
        canvas[:, top:bottom, left:right] = seen[scale, :, top:bottom, left:right]
    return canvas


def greedy(video: Tensor, budget: int, grid: PatchGrid) -> list[list[int]]:
    """Reference: try every patch, keep the one after which the pasted picture is closest."""
    canvas, chosen = torch.zeros_like(video[0]), []
    for frame in video:
        ids: list[int] = []
        for _ in range(budget):
            errors = {
                patch: float((pasted(canvas, frame, [*ids, patch], grid) - frame).abs().double().sum())
                for patch in range(grid.patches_per_frame)
                if patch not in ids
            }
            ids.append(min(errors, key=lambda patch: errors[patch]))
        canvas = pasted(canvas, frame, ids, grid)
        chosen.append(ids)
    return chosen


def test_the_choice_is_the_greedy_one_of_a_plain_loop() -> None:
    video = clip()
    gaze = make_selector("difference", GRID)(video, 5 / 21)
    assert gaze.ids[0].tolist() == greedy(video[0], 5, GRID)


def test_it_leaves_less_residual_map_than_random() -> None:
    grid, video = PatchGrid(), clip(4, PatchGrid())
    errors = {}
    for name in ("difference", "random", "coarse"):
        gaze: Gaze = make_selector(name, grid)(video, 0.05, torch.Generator().manual_seed(0))
        canvas, errors[name] = torch.zeros_like(video[0, 0]), 0.0
        for t in range(4):
            canvas = pasted(canvas, video[0, t], gaze.ids[0, t][gaze.chosen[0, t]].tolist(), grid)
            errors[name] += float((canvas - video[0, t]).abs().mean())
    assert errors["difference"] < min(errors["random"], errors["coarse"])


def test_a_still_scene_is_refined_instead_of_repeated() -> None:
    still = clip(1).repeat(1, 4, 1, 1, 1)
    gaze = make_selector("difference", GRID)(still, 4 / 21)
    fine = gaze.mask(-1)[0]
    assert (fine.sum(0) <= 1).all(), "no place of the finest scale is looked at twice"


@pytest.mark.parametrize("grid", [GRID, PatchGrid(), PatchGrid((48, 112), 16), PatchGrid((32, 64), 16, (64, 100))])
def test_lattice_cells_agree_with_pixel_boxes(grid: PatchGrid) -> None:
    lattice = Lattice(grid)
    ids = torch.arange(grid.patches_per_frame)
    pixels = lattice.spread(lattice.inside(lattice.rectangles()))
    for patch, (left, top, right, bottom) in enumerate(grid.boxes(ids).tolist()):
        box = torch.zeros(grid.height_px, grid.width_px, dtype=torch.bool)
        box[round(top) : round(bottom), round(left) : round(right)] = True
        differ = int((box != pixels[patch]).sum())
        assert differ <= (0 if grid.tile_px % lattice.tile == 0 else grid.height_px + grid.width_px)


def test_sums_and_means_over_patches() -> None:
    lattice = Lattice(PatchGrid())
    cells = torch.rand(2, *lattice.size, generator=torch.Generator().manual_seed(0))
    covered = lattice.inside(lattice.rectangles()).float()
    sums = torch.einsum("brc,prc->bp", cells, covered)
    got = torch.cat([lattice.sums(cells, k) for k in range(4)], dim=-1)
    torch.testing.assert_close(got, sums)
    torch.testing.assert_close(lattice.means(cells), sums / covered.sum((1, 2)))


def test_the_finest_rendition_is_the_frame_and_coarser_ones_are_smoother() -> None:
    frame = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = renditions(frame, GRID)
    assert seen.shape == (3, 3, 64, 64) and seen[-1].equal(frame)
    assert seen[0].var() < seen[1].var() < seen[2].var()


def test_pasting_agrees_with_the_one_that_training_uses() -> None:
    paste = pytest.importorskip("autogaze.pretrain.reconstructor.paste").paste
    grid, video = PatchGrid(), clip(3, PatchGrid())
    gaze = make_selector("difference", grid)(video, 0.05)
    canvas = torch.zeros_like(video[0, 0])
    for t in range(3):
        canvas = pasted(canvas, video[0, t], gaze.ids[0, t][gaze.chosen[0, t]].tolist(), grid)
        torch.testing.assert_close(canvas, paste(video, gaze)[0, t], atol=2e-3, rtol=0)


def test_with_foresight_a_patch_is_worth_more_where_the_frame_stays_as_it_is() -> None:
    grid, video = PatchGrid((32, 64)), torch.zeros(1, 3, 3, 64, 64)
    still, restless = torch.rand(3, 16, 16), torch.rand(3, 3, 16, 16)
    video[0, :, :, :16, :16] = still
    video[0, :, :, 48:, 48:] = restless * 2 - 1  # differs more, but is another picture in every frame
    gaze = Gaze(torch.zeros(1, 3, 1, dtype=torch.int64), torch.ones(1, 3, 1, dtype=torch.bool), grid)
    teacher = DifferenceSelector(grid)
    now, ahead = (teacher.gains(video, gaze, 1, foresight)[0, 0, 0] for foresight in (0.0, 0.9))
    first, last = 4, 19  # finest patches of the two corners
    still_gain, restless_gain = (float(ahead[patch] / now[patch]) for patch in (first, last))
    assert still_gain == pytest.approx(1.0) and restless_gain < 0.6
    assert torch.equal(now, teacher.gains(video, gaze, 1)[0, 0, 0])
