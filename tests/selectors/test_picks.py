"""Greedy picks: equal to trying every patch, the same in the kernel, and denoising does what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from autogaze.core.grid import PatchGrid
from autogaze.evaluate.disturbances import noise
from autogaze.selectors import make_selector
from autogaze.selectors.difference import DifferenceSelector
from autogaze.selectors.lattice import Lattice
from autogaze.selectors.picks import Picks


@pytest.mark.parametrize("grid", [PatchGrid((16, 32, 64)), PatchGrid((32, 64), 16, (64, 100))])
def test_picks_are_those_of_trying_every_patch(grid: PatchGrid) -> None:
    torch.manual_seed(1)
    lattice = Lattice(grid)
    known = (torch.rand(2, *lattice.size) * 64).round() / 64
    seen = (torch.rand(2, len(grid.scales), *lattice.size) * 64).round() / 64
    budget = torch.tensor([6, 3])
    ids, levels = Picks(lattice, torch.device("cpu")).choose(known, seen, budget, 6)
    cover = lattice.inside(lattice.rectangles())
    scale = grid.locate(torch.arange(grid.patches_per_frame))[0]
    for row in range(2):
        level = torch.full(lattice.size, -1)
        shown = known[row].clone()
        taken: list[int] = []
        for pick in range(int(budget[row])):
            gains = torch.full((grid.patches_per_frame,), -torch.inf)
            for patch in set(range(grid.patches_per_frame)) - set(taken):
                where = cover[patch] & (level < scale[patch])
                gains[patch] = (shown - seen[row, scale[patch]])[where].sum()
            best = int(gains.argmax())
            where = cover[best] & (level < scale[best])
            shown, level = torch.where(where, seen[row, scale[best]], shown), level.masked_fill(where, int(scale[best]))
            taken.append(best)
            assert int(ids[row, pick]) == best
        assert torch.equal(levels[row], level)


def test_the_kernel_chooses_the_same_patches() -> None:
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "tests.selectors.pick_interpreter"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert lines == [{"ids": 1.0, "levels": 1.0}] * 3


@pytest.mark.gpu
def test_a_gpu_chooses_what_the_cpu_chooses_in_a_few_milliseconds() -> None:
    select, video = DifferenceSelector(PatchGrid()), torch.rand(2, 6, 3, 224, 224)
    video[:, 1:, :, 64:] = video[:, :1, :, 64:]
    here, there = select(video, 0.1), select(video.cuda(), 0.1)
    assert (here.ids == there.ids.cpu()).float().mean() > 0.99  # pixel means differ in the last bit


def test_denoising_leaves_a_still_noisy_background_alone() -> None:
    torch.manual_seed(0)
    frames = torch.full((1, 6, 64, 64, 3), 120, dtype=torch.uint8)
    frames[:, :, 8:24, 8:24] = 40
    frames[:, :, 40:56, 40:56] = 220
    noisy = noise(frames, 12, torch.Generator().manual_seed(0))
    for t in range(6):  # a square that moves over the noise
        noisy[:, t, 40:50, 8 * t : 8 * t + 10] = torch.randint(0, 255, (10, 10, 3), dtype=torch.uint8)
    video, grid = noisy.permute(0, 1, 4, 2, 3) / 127.5 - 1, PatchGrid((16, 32, 64))
    share = {}
    for name in ("difference", "difference-denoised"):
        boxes = make_selector(name, grid)(video, 3.5 / 21).boxes()[:, 2:]
        share[name] = float(((boxes[..., 3] > 36) & (boxes[..., 1] < 54)).float().mean())
    assert share["difference-denoised"] >= share["difference"]
    assert share["difference-denoised"] > 0.6
