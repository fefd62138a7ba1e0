"""Make the pictures of README and documentation: `python docs/make_images.py [CHECKPOINT]`.

`overlay.webp` and `scales.webp` show a rendered scene; `hens.webp`, which moves, and `residual.webp` the sample clip of
`docs/images/SOURCES.txt`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from autogaze.checkpoint import DEFAULT_CHECKPOINT
from autogaze.core.grid import PatchGrid
from autogaze.core.overlay import Overlay, scale_colour
from autogaze.media.scenes import render_scene
from autogaze.media.video import read_video
from autogaze.model import AutoGaze

IMAGES = Path(__file__).parent / "images"
RATIO = 0.1
QUALITY = 82  # WebP
SEED, KIND, FRAMES, SIZE = 29, "object", 12, (270, 480)
SHOWN = (0, 4, 9)
SAMPLE = IMAGES / "hens.mp4"
EXPLAINED = 12  # of the frames taken of the sample
EVERY, FRAME_MS, PANEL_PX, MOVING_QUALITY = 2, 120, 272, 60


def overlay_picture(model: AutoGaze) -> np.ndarray:
    """The first frame, where everything is new, and later ones, where little is."""
    scene = render_scene(SEED, FRAMES, SIZE, KIND)
    gaze = model.gaze(scene, gazing_ratio=RATIO)
    overlay = Overlay(gaze.grid, SIZE, panel_px=400)
    masks = gaze.patch_mask()[0].cpu().numpy()
    return np.concatenate(
        [overlay.draw(scene[t], masks[t], f"frame {t}: {masks[t].sum()} of {masks.shape[1]} patches") for t in SHOWN]
    )


def moving_picture(model: AutoGaze, video: Path) -> list[Image.Image]:
    """Every second frame of a video: itself, the chosen patches, what they show."""
    frames = read_video(video).frames[::EVERY]
    gaze = model.gaze(frames, gazing_ratio=RATIO)
    overlay = Overlay(gaze.grid, frames.shape[1:3], panel_px=PANEL_PX)
    masks = gaze.patch_mask()[0].cpu().numpy()
    return [
        Image.fromarray(overlay.draw(frame, mask, f"{mask.sum()} of {len(mask)} patches"))
        for frame, mask in zip(frames, masks, strict=True)
    ]


def residual_picture(model: AutoGaze) -> np.ndarray:
    """How a patch is chosen: what has been seen so far, the frame, the difference between them, what is chosen."""
    residual, frames = model.residual_map, read_video(SAMPLE).frames[::EVERY]
    assert residual is not None
    gaze = model.gaze(frames, gazing_ratio=RATIO)
    video = model.preprocessor(frames).mean(2, keepdim=True)  # grey, as the map sees it
    canvas = residual.open(video[:, 0])
    for t in range(EXPLAINED):
        canvas = residual.look(canvas, video[:, t], gaze.ids[:, t], gaze.chosen[:, t])
    frame = video[:, EXPLAINED]
    wrong = residual.errors(frame, canvas)[0, :, 0].unflatten(0, (residual.side, residual.side)).sqrt()
    size = (PANEL_PX, PANEL_PX * frames.shape[1] // frames.shape[2])
    panels = [
        *(((grey[0, 0] + 1) * 127.5).round().clamp(0, 255).byte().numpy() for grey in (canvas, frame)),
        cv2.cvtColor(
            cv2.applyColorMap((wrong / wrong.max() * 255).byte().numpy(), cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB
        ),
    ]
    panels = [cv2.resize(panel, size, interpolation=cv2.INTER_NEAREST) for panel in panels]
    overlay = Overlay(gaze.grid, frames.shape[1:3], panel_px=PANEL_PX)
    panels.append(overlay.chosen(frames[EXPLAINED], gaze.patch_mask()[0, EXPLAINED].numpy()))
    white = np.full((26, PANEL_PX, 3), 255, np.uint8)
    titles = [
        cv2.putText(white.copy(), title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
        for title in ("canvas: seen so far", "frame", "residual map: the difference", "chosen")
    ]
    columns = []
    for title, panel in zip(titles, panels, strict=True):
        panel = panel if panel.ndim == 3 else cv2.cvtColor(panel, cv2.COLOR_GRAY2RGB)
        columns += [np.concatenate([title, cv2.resize(panel, size)]), np.full((26 + size[1], 4, 3), 255, np.uint8)]
    return np.concatenate(columns[:-1], 1)


def scales_picture(grid: PatchGrid) -> np.ndarray:
    """One frame cut into the patches of every scale."""
    frame = render_scene(SEED, 1, (224, 224), KIND)[0]
    cells = []
    for k, scale in enumerate(grid.scales):
        small = cv2.resize(frame, (scale, scale), interpolation=cv2.INTER_AREA)
        large = cv2.resize(small, (224, 224), interpolation=cv2.INTER_LINEAR)
        step = 224 // (scale // grid.patch_size)
        for at in range(0, 225, step):
            cv2.line(large, (at, 0), (at, 224), scale_colour(k), 1)
            cv2.line(large, (0, at), (224, at), scale_colour(k), 1)
        cells += [large, np.full((224, 12, 3), 255, np.uint8)]
    return np.concatenate(cells[:-1], 1)


def main(argv: Sequence[str]) -> int:
    model = AutoGaze.from_pretrained(argv[0] if argv else DEFAULT_CHECKPOINT)
    IMAGES.mkdir(exist_ok=True)
    pictures = {
        "overlay": overlay_picture(model),
        "residual": residual_picture(model),
        "scales": scales_picture(model.grid),
    }
    for name, picture in pictures.items():
        path = IMAGES / f"{name}.webp"
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
        print(f"{path}: {picture.shape[1]} x {picture.shape[0]}, {path.stat().st_size} bytes", file=sys.stderr)
    first, *others = moving_picture(model, SAMPLE)
    moving = SAMPLE.with_suffix(".webp")
    first.save(moving, save_all=True, append_images=others, duration=FRAME_MS, loop=0, quality=MOVING_QUALITY)
    print(f"{moving}: {len(others) + 1} frames, {moving.stat().st_size} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
