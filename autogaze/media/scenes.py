"""Scenes that the project renders itself: textured worlds with cameras panning and objects moving.

They replace videos where none may be downloaded or redistributed: the demo, examples, pictures in the documentation,
tests. A seed, a size and a kind give the same pixels on every run.

    python -m autogaze.media.scenes OUT --clips 24    writes OUT/train/*.mp4 and OUT/val/*.mp4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from autogaze.media.video import write_video

Kind = Literal["pan", "object", "handheld", "zoom", "cut", "flicker", "static", "water", "harbour"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MIXED = KINDS[:-1]  # that a seed chooses from
WATER = (40.0, 110.0, 200.0)  # RGB


def render_scene(
    seed: int, frames: int = 16, size: tuple[int, int] = (224, 224), kind: Kind | None = None
) -> np.ndarray:
    """Render one clip.

    Args:
        seed: names the scene.
        frames: how many, at the speed of a 12 frames/s video.
        size: (height, width) in pixels.
        kind: one of `KINDS`; by default the seed chooses. "pan" moves the camera, "object" moves things before a
            still camera, "handheld" does both, "zoom" nears, "cut" changes the scene once, "flicker" changes the
            light, "static" stays as it is, "water" moves things before a still camera that also sees a surface whose
            grain is new in every frame, "harbour" is a grey place by blue water that glitters, where things come to
            stay: a look at them pays for long, one at the water for a moment, and the colour tells which is which.

    Returns:
        (frames, height, width, 3) uint8 RGB.

    Raises:
        ValueError: on an unknown kind, no frames, or an empty size.
    """
    if frames < 1 or min(size) < 1:
        raise ValueError(f"a scene needs at least one frame and one pixel, got {frames} frames of {size}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    rng = np.random.default_rng([seed, 0])
    kind = kind or MIXED[int(rng.integers(len(MIXED)))]
    if kind == "harbour":
        return _harbour(rng, frames, size)
    if kind == "cut":
        first = int(rng.integers(1, frames)) if frames > 1 else 1
        parts = [
            render_scene(seed * 2 + 1_000_003 + k, n, size, ("object", "pan")[k])
            for k, n in enumerate((first, frames - first))
            if n
        ]
        return np.concatenate(parts)
    world, camera, things = _world(rng, size), _camera(rng, kind, frames), _things(rng, kind, size)
    surface = _Surface.draw(rng, size) if kind == "water" else None
    light = 1 + 0.3 * np.sin(np.arange(frames) * rng.uniform(0.5, 1.5)) if kind == "flicker" else np.ones(frames)
    scene = np.stack([_frame(world, camera[t], things, t, size, light[t]) for t in range(frames)])
    return scene if surface is None else np.stack([surface.over(frame, rng) for frame in scene])


def write_scenes(
    folder: str | Path,
    clips: int = 24,
    frames: int = 32,
    size: tuple[int, int] = (224, 224),
    fps: float = 12.0,
    seed: int = 0,
    share_val: float = 0.2,
    kinds: Sequence[Kind] = MIXED,
) -> dict[str, int]:
    """Render clips into `folder`/train and `folder`/val; returns how many went where.

    Kinds take turns, val clips lie evenly among the others, and each clip is of a seed of its own.
    """
    held_out = max(1, round(clips * share_val)) if clips > 1 else 0
    of_val = {k * clips // held_out for k in range(held_out)}
    counts = {"train": 0, "val": 0}
    for k in range(clips):
        split = "val" if k in of_val else "train"
        kind = kinds[k % len(kinds)]
        scene = render_scene(seed + k, frames, size, kind)
        write_video(Path(folder) / split / f"{kind}-{seed + k:04d}.mp4", scene, fps)
        counts[split] += 1
    return counts


def _harbour(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> np.ndarray:
    (height, width), least = size, min(size)
    place = _greyed(_world(rng, size)[:height, :width])
    water = _Surface.draw(rng, size, share=(0.2, 0.2), strength=(20, 30))
    scene = []
    for t in range(frames):
        for _ in range(int(rng.poisson(2.0)) if t else 0):
            cover = _shape(rng, height, width, rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.05, 0.1) * least)
            place = _blend(place, _greyed(_texture(rng, height, width)), cover)
        blue = np.array(WATER, np.float32)
        scene.append(water.over(_blend(place, np.broadcast_to(blue, place.shape), 0.6 * water.cover), rng))
    return np.stack(scene)


def _greyed(picture: np.ndarray) -> np.ndarray:
    """With little of its colours left."""
    return (0.3 * picture + 0.7 * picture.mean(-1, keepdims=True)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _Thing:
    """A textured shape on its way over the frame."""

    picture: np.ndarray  # (h, w, 3) uint8
    cover: np.ndarray  # (h, w, 1) float32 in [0, 1]
    start: tuple[float, float]  # pixels (x, y) of its centre
    speed: tuple[float, float]  # pixels a frame


@dataclass(frozen=True, eq=False)
class _Surface:
    """A part of the frame that glitters: a look at it is out of date one frame later."""

    cover: np.ndarray  # (height, width, 1) float32 in [0, 1]
    grain_px: int
    strength: float  # standard deviation of the light

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        size: tuple[int, int],
        share: tuple[float, float] = (0.25, 0.4),
        strength: tuple[float, float] = (20, 35),
    ) -> _Surface:
        """A surface of such a share of the frame, in one or two pieces."""
        height, width = size
        hills = cv2.resize(
            rng.standard_normal((4, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        cover = (hills > np.quantile(hills, 1 - rng.uniform(*share))).astype(np.float32)
        grain_px = max(1, round(rng.uniform(0.02, 0.04) * min(size)))
        return cls(cv2.GaussianBlur(cover, (0, 0), 1.5)[..., None], grain_px, rng.uniform(*strength))

    def over(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = frame.shape[:2]
        cells = (-(-height // self.grain_px), -(-width // self.grain_px))
        light = cv2.resize(
            rng.standard_normal(cells).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        )
        return (frame + self.cover * light[..., None] * self.strength).clip(0, 255).astype(np.uint8)


def _world(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A textured picture with shapes in it, twice as large as a frame."""
    height, width = size[0] * 2, size[1] * 2
    world = _texture(rng, height, width)
    for _ in range(int(rng.integers(6, 16))):
        centre = rng.uniform(0, 1, 2) * (width, height)
        extent = rng.uniform(0.04, 0.2) * min(height, width)
        cover = _shape(rng, height, width, centre, extent)
        world = _blend(world, _texture(rng, height, width), cover)
    return world


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of several octaves between two colours, with stripes or squares half of the time."""
    noise = np.zeros((height, width), np.float32)
    roughness = rng.uniform(0.35, 0.75)
    for octave in range(6):
        cells = 3 * 2**octave
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        noise += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * roughness**octave
    if rng.random() < 0.4:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.03, 0.15) * min(height, width)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / max(period, 2.0))
        noise += np.sign(wave) * rng.uniform(0.3, 1.0)
    mix = (1 / (1 + np.exp(-noise)))[..., None]
    grey, hue = rng.uniform(30, 225, (2, 1)), rng.uniform(-60, 60, (2, 3))  # muted, as the world mostly is
    low, high = (grey + hue).clip(0, 255).astype(np.float32)
    return (low + (high - low) * mix).astype(np.uint8)


def _shape(rng: np.random.Generator, height: int, width: int, centre: np.ndarray, extent: float) -> np.ndarray:
    """(height, width, 1) cover of a disc or a polygon, with soft edges."""
    cover = np.zeros((height, width), np.uint8)
    if rng.random() < 0.4:
        cv2.circle(cover, (int(centre[0]), int(centre[1])), max(1, int(extent)), 255, -1, cv2.LINE_AA)
    else:
        corners = int(rng.integers(3, 8))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radius = extent * rng.uniform(0.6, 1.3, corners)
        points = centre + np.stack([np.cos(angles), np.sin(angles)], -1) * radius[:, None]
        cv2.fillPoly(cover, [np.round(points).astype(np.int32)], 255, cv2.LINE_AA)
    return cover[..., None].astype(np.float32) / 255


def _blend(below: np.ndarray, above: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return (below + (above.astype(np.float32) - below) * cover).astype(np.uint8)


def _camera(rng: np.random.Generator, kind: str, frames: int) -> np.ndarray:
    """(frames, 3): x and y of the view's centre in frame sizes, and its zoom."""
    t = np.arange(frames)
    path = np.zeros((frames, 3))
    path[:, 2] = 1.0
    if kind in ("pan", "handheld"):
        angle, step = rng.uniform(0, 2 * np.pi), rng.uniform(0.008, 0.03)
        for axis, direction in enumerate((np.cos(angle), np.sin(angle))):
            path[:, axis] = _bounce(t * step * direction, 0.45)
    if kind == "handheld":
        path[:, :2] += np.cumsum(rng.normal(0, 0.004, (frames, 2)), 0).clip(-0.04, 0.04)
    if kind == "zoom":
        path[:, 2] = 1 + _bounce(t * rng.uniform(0.015, 0.04), 0.8)
    return path


def _things(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> list[_Thing]:
    height, width = size
    things = []
    for _ in range(int(rng.integers(1, 4)) if kind in ("object", "handheld", "water") else 0):
        extent = rng.uniform(0.07, 0.18) * min(height, width)
        side = max(3, int(extent * 3))
        cover = _shape(rng, side, side, np.array([side / 2, side / 2]), extent)
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.01, 0.05) * min(height, width)
        start = (float(rng.uniform(0.1, 0.9) * width), float(rng.uniform(0.1, 0.9) * height))
        velocity = (float(np.cos(angle) * speed), float(np.sin(angle) * speed))
        things.append(_Thing(_texture(rng, side, side), cover, start, velocity))
    return things


def _frame(
    world: np.ndarray, view: np.ndarray, things: Sequence[_Thing], t: int, size: tuple[int, int], light: float
) -> np.ndarray:
    height, width = size
    x, y, zoom = view
    centre = (world.shape[1] / 2 + x * width, world.shape[0] / 2 + y * height)
    matrix = np.array([[1 / zoom, 0, centre[0] - width / 2 / zoom], [0, 1 / zoom, centre[1] - height / 2 / zoom]])
    frame = cv2.warpAffine(
        world, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    for thing in things:
        side = thing.cover.shape[0]
        place = [
            side / 2 * -1 + _wrap(start + speed * t, length, side)
            for start, speed, length in zip(thing.start, thing.speed, (width, height), strict=True)
        ]
        move = np.array([[1, 0, place[0]], [0, 1, place[1]]])
        cover = cv2.warpAffine(thing.cover, move, (width, height))[..., None]
        frame = _blend(frame, cv2.warpAffine(thing.picture, move, (width, height)), cover)
    return frame if light == 1 else np.clip(frame * light, 0, 255).astype(np.uint8)


def _bounce(path: np.ndarray, limit: float) -> np.ndarray:
    """Fold a straight path into [-limit, limit]."""
    return np.abs((path + limit) % (4 * limit) - 2 * limit) * -1 + limit


def _wrap(place: float, length: int, margin: int) -> float:
    """Leave on one side, come back on the other."""
    return (place + margin) % (length + 2 * margin) - margin


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m autogaze.media.scenes", description="Render clips to train on.")
    parser.add_argument("out", type=Path, help="folder to make train/ and val/ in")
    parser.add_argument("--clips", type=int, default=24, help="how many (default 24)")
    parser.add_argument("--frames", type=int, default=32, help="frames a clip (default 32)")
    parser.add_argument("--height", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--width", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=MIXED, help="that take turns (default: all mixed)")
    parser.add_argument("--seed", type=int, default=0, help="of the first clip (default 0)")
    args = parser.parse_args(argv)
    counts = write_scenes(
        args.out, args.clips, args.frames, (args.height, args.width), seed=args.seed, kinds=args.kinds
    )
    print(f"{args.out}: {counts['train']} clips to train, {counts['val']} to validate", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
