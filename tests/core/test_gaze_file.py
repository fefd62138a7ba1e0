"""gaze.npz gives back the gaze that went in, chunk by chunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.core.gaze_file import GazeFileWriter, load_gaze
from autogaze.core.grid import PatchGrid


def random_gaze(grid: PatchGrid, frames: int, slots: int) -> Gaze:
    ids = torch.stack([torch.randperm(grid.patches_per_frame)[:slots] for _ in range(frames)])[None]
    return Gaze(ids, torch.rand(ids.shape) < 0.6, grid, torch.rand(ids.shape))


@pytest.mark.parametrize("grid", [PatchGrid((32, 64), 16), PatchGrid((32, 64), 16, (50, 90))])
def test_chunks_come_back_as_one_gaze(grid: PatchGrid, tmp_path: Path) -> None:
    gazes = [random_gaze(grid, frames, slots) for frames, slots in ((3, 7), (2, 4), (1, 0))]
    writer = GazeFileWriter(grid)
    for k, gaze in enumerate(gazes):
        writer.add(gaze, np.arange(gaze.ids.shape[1]) + 10.0 * k)
    view = writer.view()
    assert view.counts.tolist() == [n for gaze in gazes for n in gaze.counts[0].tolist()]
    assert np.array_equal(view.visits(), torch.cat([gaze.patch_mask() for gaze in gazes], 1).sum((0, 1)).numpy())
    per_scale, frames = writer.per_scale.tolist(), writer.frames
    writer.finish(tmp_path / "gaze.npz")

    loaded = load_gaze(tmp_path / "gaze.npz")
    masks = torch.cat([gaze.patch_mask() for gaze in gazes], 1)
    back = loaded.gaze()
    assert loaded.grid == grid and frames == 6
    assert torch.equal(back.patch_mask(), masks)
    assert np.array_equal(np.stack([loaded.mask(t) for t in range(6)]), masks[0].numpy())
    assert per_scale == [int(mask.sum()) for mask in back.masks()]
    assert loaded.times_s.tolist() == [0, 1, 2, 10, 11, 20]
    first = gazes[0]
    assert torch.equal(back.task_loss[0, 0][back.chosen[0, 0]], first.task_loss[0, 0][first.chosen[0, 0]])
    assert np.isnan(loaded.last_loss()[5])
    if first.counts[0, 0]:
        assert loaded.last_loss()[0] == first.task_loss[0, 0][first.chosen[0, 0]][-1]


def test_another_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a gaze.npz"):
            load_gaze(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_gaze(tmp_path / "nowhere.npz")
