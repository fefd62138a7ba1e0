"""Moving digits: does a ViT that sees 15 % of the tokens learn as well as one that sees them all?

    python examples/moving_digits.py [--steps 500] [--seed 0] [--json]

A hand-written digit (scikit-learn's, 8 x 8 pixels) moves over a textured 32 x 32 background for 3 frames, by whole
patches of 4 pixels (a ViT this small needs thousands of steps to learn digits cut at every offset). The same ViT is
trained from scratch three times, on two thirds of the digits, and tested on the rest:

- dense: every patch of the finest scale, 64 a frame;
- gazed: 12 a frame (ratio 0.15 of 84 over three scales), chosen by the `difference` selector, which needs no training:
  it takes what reduces the error of what is known most. This is not AutoGaze's network: the point here is the ViT;
- random: 12 a frame at random.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from autogaze import Gaze, GazedViT, PatchGrid
from autogaze.selectors import make_selector

DIGIT_PX, FIELD_PX, PATCH_PX = 8, 32, 4
GRID = PatchGrid((8, 16, 32), PATCH_PX)
RATIO, FRAMES, BATCH = 0.15, 3, 64


@dataclass(frozen=True)
class Outcome:
    """Results of one way of choosing tokens."""

    way: str
    tokens_a_frame: int
    accuracy: float  # share of test clips, in [0, 1]
    seconds: float  # of training


@dataclass(frozen=True)
class Digits:
    """Images and what they show."""

    images: Tensor  # (n, 8, 8) float in [0, 1]
    labels: Tensor  # (n,) int64

    @classmethod
    def load(cls, test: bool) -> Digits:
        """Every third digit is for testing."""
        data = load_digits()
        mine = (torch.arange(len(data.target)) % 3 == 0) == test
        return cls(torch.tensor(data.images, dtype=torch.float32)[mine] / 16, torch.tensor(data.target)[mine])

    def clips(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips (B, T, 3, 32, 32) in [-1, 1] of digits that move, and their labels (B,)."""
        count, room = len(index), FIELD_PX - DIGIT_PX
        start = torch.rand(count, 1, 2, generator=generator) * room
        speed = (torch.rand(count, 1, 2, generator=generator) - 0.5) * 10  # pixels a frame
        path = start + speed * torch.arange(FRAMES)[:, None]
        place = room - (path % (2 * room) - room).abs()  # bounces off the border; (B, T, 2)
        place = (place / PATCH_PX).round().long() * PATCH_PX
        coarse = torch.rand(count, 1, 6, 6, generator=generator)
        field = F.interpolate(coarse, (FIELD_PX, FIELD_PX), mode="bicubic") * 0.5 - 0.25
        field = field + torch.randn(count, 1, FIELD_PX, FIELD_PX, generator=generator) * 0.05
        video = field.repeat(1, FRAMES, 1, 1)
        steps = torch.arange(DIGIT_PX)
        rows, columns = (place[..., axis, None] + steps for axis in (0, 1))  # (B, T, 8)
        clip, frame = torch.meshgrid(torch.arange(count), torch.arange(FRAMES), indexing="ij")
        where = (clip[..., None, None], frame[..., None, None], rows[..., :, None], columns[..., None, :])
        ink = self.images[index][:, None].expand(-1, FRAMES, -1, -1)
        video[where] = video[where] * (1 - ink) + ink
        return video.clamp(-1, 1)[:, :, None].expand(-1, -1, 3, -1, -1), self.labels[index]


def whole_frames(video: Tensor, ratio: float, generator: torch.Generator | None = None) -> Gaze:
    """Every patch of the finest scale."""
    mask = torch.zeros(*video.shape[:2], GRID.patches_per_frame, dtype=torch.bool)
    mask[..., GRID.offsets[-1] :] = True
    return Gaze.from_patch_mask(mask, GRID)


WAYS: dict[str, Callable[..., Gaze]] = {
    "dense": whole_frames,
    "gazed": make_selector("difference", GRID),
    "random": make_selector("random", GRID),
}
SIZE = {"embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "class_token": False, "global_pool": "avg"}


def train_and_test(way: str, steps: int, seed: int) -> Outcome:
    """Train the ViT on clips whose tokens are chosen in one way, and test it on other digits chosen the same way."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    choose, train, test = WAYS[way], Digits.load(test=False), Digits.load(test=True)
    vit = VisionTransformer(FIELD_PX, PATCH_PX, num_classes=10, **SIZE)
    gazed = GazedViT(vit, attention="joint").train()
    optimiser = torch.optim.AdamW(vit.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    start = time.perf_counter()
    for step in range(steps):
        video, labels = train.clips(torch.randint(len(train.labels), (BATCH,), generator=generator), generator)
        loss = F.cross_entropy(vit.head(gazed(video, choose(video, RATIO, generator=generator)).pool()), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{way} step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    right, tokens, clips = 0, 0, 0
    gazed.eval()
    with torch.inference_mode():
        for part in torch.arange(len(test.labels)).repeat(3).split(256):  # three journeys of every digit
            video, labels = test.clips(part, generator)
            gaze = choose(video, RATIO, generator=generator)
            right += int((vit.head(gazed(video, gaze).pool()).argmax(-1) == labels).sum())
            tokens, clips = tokens + int(gaze.counts.sum()), clips + len(part)
    return Outcome(way, round(tokens / clips / FRAMES), right / clips, round(seconds, 1))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500, help="of 64 clips (500)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--json", action="store_true", help="outcomes as JSON on the last line")
    args = parser.parse_args(argv)
    outcomes = [train_and_test(way, args.steps, args.seed) for way in WAYS]
    for outcome in outcomes:
        says = f"{outcome.accuracy:.1%} right, trained in {outcome.seconds} s"
        print(f"{outcome.way:7} {outcome.tokens_a_frame:3} tokens a frame: {says}", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
