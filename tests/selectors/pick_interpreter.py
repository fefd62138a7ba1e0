"""Run by test_picks.py in a process of its own: the kernel of picks under Triton's interpreter, on the CPU.

Prints one JSON object: share of equal ids and of equal levels, beside the loop in PyTorch.
"""

import json

import torch

import tests.decoding.cuda.interpreter  # noqa: F401, I001 - before Triton and what imports it
from autogaze.core.grid import PatchGrid
from autogaze.selectors.lattice import Lattice
from autogaze.selectors.picks import Picks

for grid in (PatchGrid(), PatchGrid((16, 48)), PatchGrid((32, 64), 16, (64, 100))):
    torch.manual_seed(0)
    lattice = Lattice(grid)
    picks = Picks(lattice, torch.device("cpu"))
    known = torch.rand(3, *lattice.size)
    seen = torch.rand(3, len(grid.scales), *lattice.size) * torch.linspace(0.9, 0.1, len(grid.scales))[:, None, None]
    known[1, :2], seen[1, :, :2] = 0.5, 0.25  # ties
    budget = torch.tensor([7, 12, 0])
    loop = picks.choose(known, seen, budget, 12)
    picks.kernel = True
    kernel = picks.choose(known, seen, budget, 12)
    chosen = torch.arange(12) < budget[:, None]
    ids = (loop[0] == kernel[0])[chosen].float().mean()
    print(json.dumps({"ids": float(ids), "levels": float((loop[1] == kernel[1]).float().mean())}))
