"""Will gazing pay here? An answer from measured parts, before anybody changes a pipeline.

Time of the dense ViT, of encoding a number of packed patches, and of choosing them were measured apart
(`python -m benchmarks.vit --parts --ship`) and are put together here: gazing pays if gaze + encode < dense. Between
measured points time is interpolated on logarithmic axes; beyond them it grows in proportion. Frame sizes that were not
measured are reckoned by operations from the nearest size that was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from autogaze.core.tiling import tiles_along

PARTS_FILE = Path(__file__).with_name("break_even.json")
GAZE_FRAMES = 16  # frames of the clips that the gaze was measured on
GAZE_SIDE = 14  # patches along a square that the gaze model looks at
PROPORTIONS = (1 / 7, 2 / 7, 1 / 2, 1)  # of the published scales
ALIASES = {
    "vit-s/16": "vit_small_patch16_224",
    "vit-b/16": "vit_base_patch16_siglip_224",
    "vit-l/16": "vit_large_patch16_siglip_256",
    "so400m/14": "vit_so400m_patch14_siglip_378",
}

Curve = tuple[tuple[float, float], ...]  # (amount, ms), ascending


@dataclass(frozen=True)
class VitParts:
    """Measurements of one ViT."""

    patch_size: int  # pixels
    width: int
    depth: int
    mlp_width: int
    dense: dict[int, Curve]  # frame size in pixels -> (frames at once, ms)
    encode: Curve  # (packed patches, ms)


@dataclass(frozen=True)
class Parts:
    """Measurements of one machine."""

    device: str
    date: str
    vits: dict[str, VitParts]
    gaze: dict[float, Curve]  # ratio -> (16-frame clips of one square, ms)


@dataclass(frozen=True)
class Verdict:
    """Cost and savings of gazing; times in milliseconds for the whole batch."""

    vit: str
    size: int  # pixels
    frames: int
    batch: int
    ratio: float
    dense_ms: float
    gaze_ms: float
    encode_ms: float
    break_even_ratio: float | None  # gazing pays below this ratio; None: at no ratio that was measured
    device: str
    gaze_stride: int = 1  # pixels of the frame along one that is looked at

    @property
    def times_faster(self) -> float:
        return self.dense_ms / (self.gaze_ms + self.encode_ms)

    @property
    def pays(self) -> bool:
        return self.times_faster > 1


def will_it_pay(
    vit: str, size: int, frames: int, batch: int, ratio: float, parts: Parts | None = None, gaze_stride: int = 1
) -> Verdict:
    """Whether gazing is faster than the dense ViT.

    Args:
        vit: timm name of a measured ViT, or an alias such as "ViT-B/16".
        size: pixels of the square frames.
        frames: of a clip.
        batch: clips at once.
        ratio: gazing ratio, share of a frame's patches.
        parts: measurements; those shipped with the package by default.
        gaze_stride: as in `AutoGaze.generate`, where the frame is looked at in several tiles.

    Raises:
        ValueError: if the ViT was not measured, a number is out of range, or the stride saves no tiles.
        FileNotFoundError: if the package ships no measurements.
    """
    parts = parts or load_parts()
    name = ALIASES.get(vit.lower(), vit)
    if name not in parts.vits:
        known = ", ".join(sorted({*parts.vits, *(alias for alias, full in ALIASES.items() if full in parts.vits)}))
        raise ValueError(f"no measurements of {vit!r}; measured: {known}")
    if min(size, frames, batch) < 1 or not 0 < ratio <= 1:
        raise ValueError(
            f"size, frames and batch must be positive and ratio in (0, 1], got {size}, {frames}, {batch}, {ratio}"
        )
    part = parts.vits[name]
    along = tiles_along((size,), GAZE_SIDE * part.patch_size, gaze_stride)[0]
    dense = _dense_ms(part, size, frames * batch)
    gaze = _gaze_ms(parts, along**2, frames, batch, ratio)
    encode = _encode_ms(part, size, frames * batch, ratio)
    edge = _break_even(parts, part, size, along**2, frames, batch, dense)
    times = (round(dense, 3), round(gaze, 3), round(encode, 3))
    return Verdict(name, size, frames, batch, ratio, *times, edge, parts.device, gaze_stride)


def answer(vit: str, size: int, frames: int, batch: int, ratio: float, gaze_stride: int = 1) -> str:
    """The verdict in words."""
    return in_words(will_it_pay(vit, size, frames, batch, ratio, gaze_stride=gaze_stride))


def in_words(verdict: Verdict) -> str:
    total = verdict.gaze_ms + verdict.encode_ms
    times = (
        f"dense {verdict.dense_ms:.2f} ms, gaze {verdict.gaze_ms:.2f} + encode {verdict.encode_ms:.2f} = {total:.2f} ms"
    )
    if verdict.pays:
        says = f"Yes: {verdict.times_faster:.1f} x faster ({times})."
    else:
        says = f"No: {1 / verdict.times_faster:.1f} x slower ({times})."
    edge = verdict.break_even_ratio
    rule = "It pays at no ratio that was measured." if edge is None else f"It pays below ratio {edge:.2f}."
    stride = "" if verdict.gaze_stride == 1 else f", gaze stride {verdict.gaze_stride}"
    return (
        f"{says} {rule} {verdict.vit} at {verdict.size} px, {verdict.frames} frames, batch {verdict.batch}, "
        f"ratio {verdict.ratio:g}{stride}; parts measured on {verdict.device}."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `autogaze info --vit`."""
    parser.add_argument("--vit", help="will gazing pay in front of this ViT? a timm name or an alias such as ViT-B/16")
    parser.add_argument("--size", type=int, default=224, help="side of the frames in pixels (224)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip (16)")
    parser.add_argument("--batch", type=int, default=1, help="clips at once (1)")
    parser.add_argument("--ratio", type=float, default=0.1, help="gazing ratio (0.1)")
    parser.add_argument(
        "--gaze-stride", type=int, default=1, metavar="N", help="look with N times fewer pixels each way in tiles (1)"
    )


def run(args: argparse.Namespace) -> int:
    """Answer in words, or in numbers with `--json`."""
    verdict = will_it_pay(args.vit, args.size, args.frames, args.batch, args.ratio, gaze_stride=args.gaze_stride)
    numbers = {**asdict(verdict), "pays": verdict.pays, "times_faster": round(verdict.times_faster, 3)}
    print(json.dumps(numbers) if args.json else in_words(verdict))
    return 0


@lru_cache(maxsize=4)
def load_parts(path: Path = PARTS_FILE) -> Parts:
    """Read the measurements that `benchmarks.vit --parts --ship` wrote."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no measurements at {path.name}; make them with `python -m benchmarks.vit --parts --ship`"
        )
    data = json.loads(path.read_text())
    vits = {
        name: VitParts(
            vit["patch_size"],
            vit["width"],
            vit["depth"],
            vit["mlp_width"],
            {int(size): _curve(points) for size, points in vit["dense"].items()},
            _curve(vit["encode"]),
        )
        for name, vit in data["vits"].items()
    }
    return Parts(
        data["device"], data["date"], vits, {float(ratio): _curve(points) for ratio, points in data["gaze"].items()}
    )


def patches_per_frame(size: int, patch_size: int) -> int:
    """Ids of a frame over the published proportions of scales, at any size."""
    side = size // patch_size
    return sum(count * count for count in sorted({max(1, round(side * share)) for share in PROPORTIONS}))


def _dense_ms(part: VitParts, size: int, frames: int) -> float:
    nearest = min(part.dense, key=lambda measured: abs(math.log(measured / size)))
    return _read(part.dense[nearest], frames) * _operations(part, size) / _operations(part, nearest)


def _operations(part: VitParts, size: int) -> float:
    """Multiply-adds of the dense ViT for a frame, in units that cancel."""
    tokens = (size // part.patch_size) ** 2
    return part.depth * (tokens * (4 * part.width**2 + 2 * part.width * part.mlp_width) + 2 * tokens**2 * part.width)


def _encode_ms(part: VitParts, size: int, frames: int, ratio: float) -> float:
    return _read(part.encode, frames * max(1, int(ratio * patches_per_frame(size, part.patch_size))))


def _gaze_ms(parts: Parts, squares: int, frames: int, batch: int, ratio: float) -> float:
    clips = batch * squares * -(-frames // GAZE_FRAMES)
    share = min(frames, GAZE_FRAMES) / GAZE_FRAMES
    return share * _read(tuple(sorted((r, _read(curve, clips)) for r, curve in parts.gaze.items())), ratio)


def _break_even(
    parts: Parts, part: VitParts, size: int, squares: int, frames: int, batch: int, dense_ms: float
) -> float | None:
    """The largest ratio at which gazing is not slower, to two digits."""
    for percent in range(100, 0, -1):
        ratio = percent / 100
        if _gaze_ms(parts, squares, frames, batch, ratio) + _encode_ms(part, size, frames * batch, ratio) <= dense_ms:
            return ratio
    return None


def _read(curve: Curve, amount: float) -> float:
    """Milliseconds for an amount: log-log between points, the first point below, in proportion above."""
    if amount <= curve[0][0]:
        return curve[0][1]
    for (left, low), (right, high) in zip(curve, curve[1:], strict=False):
        if amount <= right:
            share = math.log(amount / left) / math.log(right / left)
            return low ** (1 - share) * high**share
    return curve[-1][1] * amount / curve[-1][0]


def _curve(points: Sequence[Sequence[float]]) -> Curve:
    return tuple(sorted((float(amount), float(ms)) for amount, ms in points))
