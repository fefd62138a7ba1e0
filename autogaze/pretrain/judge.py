"""Judges: what each frame of a clip lost by not being looked at in full.

A judge is named by a sum of terms with weights:

- `reconstructor`: the loss of a trained, frozen reconstructor;
- `l1`: mean absolute difference of the pasted picture (`pretrain.reconstructor.paste`) and the frame, no network;
- `features:MODEL` or `features:MODEL@8,12`: 1 - cosine of the patch tokens that a pretrained ViT sees in both, of its
  last layer or the mean over the layers named. MODEL is a folder, a hub id or a timm name (`autogaze.vit.load`).

`features:facebook/dinov2-small+0.1*l1` needs no reconstructor: a small ViT sees some 15,000 frames a second on an H200.
The paper trains with 1 l1 + 0.3 DINOv2 + 0.3 SigLIP2 of its reconstruction (arXiv:2603.12254).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.media.preprocess import Preprocessor
from autogaze.pretrain.distance import Distance, FeatureDistance, PixelDistance, WeightedDistance
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.vit.load import load_vit

RECONSTRUCTOR, L1, FEATURES = "reconstructor", "l1", "features"


class AnyJudge(Protocol):
    """Stands beside a LightningModule without being one of its parts: no gradients, no place in its checkpoints."""

    def to(self, device: torch.device) -> AnyJudge:
        """Move what it needs; returns itself."""
        ...

    def losses(self, video: Tensor, gaze: Gaze, truth: Tensor | None = None) -> Tensor:
        """Loss (B, T) float32 of every frame.

        Args:
            video: (B, T, 3, H, W) float, what the model was shown.
            gaze: of the same clips.
            truth: (b, T, 3, H, W), the same without its noise; where B is a multiple of b, in turns: rollouts of a
                group share it. None: the video itself.
        """
        ...


class Judge:
    """A frozen reconstructor as judge.

    Args:
        reconstructor: a trained one; it is frozen here.
        clips: how many clips it judges in one pass, which bounds its memory.
    """

    def __init__(self, reconstructor: Reconstructor, clips: int = 96) -> None:
        self.reconstructor, self.clips = reconstructor.eval().requires_grad_(False), clips

    def to(self, device: torch.device) -> Judge:
        self.reconstructor.to(device)
        return self

    @torch.no_grad()
    def losses(self, video: Tensor, gaze: Gaze, truth: Tensor | None = None) -> Tensor:
        """See `AnyJudge.losses`; the gaze may have fewer scales than the judge. `truth` is not used: what was shown is
        what is to be reconstructed."""
        gaze = gaze.on_grid(self.reconstructor.grid)
        parts = [
            self.reconstructor(video[i : i + self.clips], gaze[i : i + self.clips]).loss
            for i in range(0, len(video), self.clips)
        ]
        return torch.cat(parts).float()


class PasteJudge:
    """The pasted picture, compared with the frame; no reconstructor.

    Args:
        distance: made on first use, on the device of the clips.
        clips: how many clips are judged in one pass.
    """

    def __init__(self, distance: Callable[[torch.device], Distance], clips: int = 24) -> None:
        self.make, self.clips = distance, clips
        self.distances: dict[torch.device, Distance] = {}

    def to(self, device: torch.device) -> PasteJudge:
        if device not in self.distances:
            self.distances = {device: self.make(device)}
        return self

    @torch.no_grad()
    def losses(self, video: Tensor, gaze: Gaze, truth: Tensor | None = None) -> Tensor:
        """See `AnyJudge.losses`."""
        distance = self.to(video.device).distances[video.device]
        shown = video if truth is None else truth
        losses = torch.empty(video.shape[:2], device=video.device)
        for i in range(0, len(shown), self.clips):
            part = shown[i : i + self.clips]
            target = distance.target(part.flatten(0, 1))
            for turn in range(i, len(video), len(shown)):  # group after group of the same clips
                rows = slice(turn, turn + len(part))
                pictures = paste(video[rows], gaze[rows]).flatten(0, 1)
                losses[rows] = distance(pictures, target).unflatten(0, part.shape[:2])
        return losses


class SummedJudge:
    """A weighted sum of judges."""

    def __init__(self, terms: list[tuple[float, AnyJudge]]) -> None:
        self.terms = terms

    def to(self, device: torch.device) -> SummedJudge:
        for _, judge in self.terms:
            judge.to(device)
        return self

    def losses(self, video: Tensor, gaze: Gaze, truth: Tensor | None = None) -> Tensor:
        """See `AnyJudge.losses`."""
        return torch.stack([weight * judge.losses(video, gaze, truth) for weight, judge in self.terms]).sum(0)


def parse_judge(spec: str) -> list[tuple[float, str, str]]:
    """Read "0.1*l1+features:facebook/dinov2-small" as (weight, term, argument).

    Raises:
        ValueError: if a term is unknown, a weight is no number, or the spec is empty.
    """
    terms = []
    for part in (part.strip() for part in spec.split("+")):
        weight, _, rest = part.rpartition("*")
        name, _, argument = rest.partition(":")
        if name not in (RECONSTRUCTOR, L1, FEATURES) or (name == FEATURES) != bool(argument):
            raise ValueError(
                f"unknown term {part!r} of judge {spec!r}; terms are reconstructor, l1 and features:MODEL, joined by + "
                "and weighted by NUMBER*"
            )
        try:
            terms.append((float(weight) if weight else 1.0, name, argument))
        except ValueError:
            raise ValueError(f"the weight of term {part!r} of a judge must be a number, got {weight!r}") from None
    return terms


def make_judge(
    spec: str, reconstructor: Callable[[], Reconstructor], preprocessor: Preprocessor | None = None
) -> AnyJudge:
    """The judge that a spec names.

    Args:
        spec: see the module's docstring.
        reconstructor: called if the spec asks for one.
        preprocessor: how the clips' pixels were made; by default to [-1, 1].
    """
    terms, pixels = parse_judge(spec), preprocessor or Preprocessor()
    pasted = [(weight, name, argument) for weight, name, argument in terms if name != RECONSTRUCTOR]
    judges: list[tuple[float, AnyJudge]] = [
        (weight, Judge(reconstructor())) for weight, name, _ in terms if name == RECONSTRUCTOR
    ]

    if pasted:
        judges.append((1.0, PasteJudge(lambda device: _distance(pasted, pixels, device))))
    return judges[0][1] if len(judges) == 1 and judges[0][0] == 1.0 else SummedJudge(judges)


def pasted_distance(spec: str, device: torch.device, preprocessor: Preprocessor | None = None) -> Distance:
    """The distance of pasted pictures that a spec without a reconstructor names.

    Raises:
        ValueError: if it names one.
    """
    terms = parse_judge(spec)
    if any(name == RECONSTRUCTOR for _, name, _ in terms):
        raise ValueError(
            f"judge {spec!r} mixes a reconstructor with pasted pictures, which labels cannot be searched with"
        )
    return _distance(terms, preprocessor or Preprocessor(), device)


def _distance(terms: list[tuple[float, str, str]], pixels: Preprocessor, device: torch.device) -> Distance:
    """The weighted sum of terms without a reconstructor."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return WeightedDistance(
        [
            (weight, _feature_distance(argument, pixels, device, dtype) if argument else PixelDistance())
            for weight, _, argument in terms
        ]
    )


def _feature_distance(argument: str, pixels: Preprocessor, device: torch.device, dtype: torch.dtype) -> FeatureDistance:
    """Of "MODEL" or "MODEL@8,12"; a name may hold an @ of its own."""
    name, numbers = re.fullmatch(r"(.+?)(?:@(\d+(?:,\d+)*))?", argument, re.S).groups()  # type: ignore[union-attr]
    layers = tuple(int(layer) for layer in numbers.split(",")) if numbers else ()
    return FeatureDistance(load_vit(name, device, dtype), pixels, layers=layers)
