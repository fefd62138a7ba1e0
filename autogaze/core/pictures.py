"""Pictures of one clip's gaze, for notebooks: a sheet of its frames, and how much was looked at over time."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autogaze.core.overlay import Overlay, scale_colour
from autogaze.media.frames import as_clip

if TYPE_CHECKING:
    from autogaze.core.gaze import Gaze

SHEET_PX = 1200  # width that the columns of a sheet share
PANEL_PX = (160, 448)  # least and largest longer side of a panel
PLOT_PX = (640, 220)  # width, height
_TEXT_PX, _GAP_PX, _LINE_PX = 13, 4, 20
_INK, _PALE, _PAPER = (30, 30, 30), (205, 205, 205), (255, 255, 255)


def draw(gaze: Gaze, frames: Any, clip: int = 0, stills: int = 6) -> Image.Image:
    """`Gaze.draw`."""
    if stills < 1:
        raise ValueError(f"stills must be positive, got {stills}")
    one, frames = gaze[clip], _frames_of(gaze, frames, clip)
    masks = one.patch_mask()[0].cpu().numpy()
    shown = np.linspace(0, len(frames) - 1, min(stills, len(frames))).round().astype(int)
    longer = (SHEET_PX // len(shown)) * max(frames.shape[1:3]) // frames.shape[2]
    overlay = Overlay(gaze.grid, frames.shape[1:3], int(np.clip(longer, *PANEL_PX)))
    columns = [_column(overlay, frames[t], masks[t], f"frame {t}: {masks[t].sum()}") for t in shown]
    width = sum(column.width + _GAP_PX for column in columns) - _GAP_PX
    sheet = Image.new("RGB", (max(width, 320), columns[0].height + _LINE_PX), _PAPER)
    for k, column in enumerate(columns):
        sheet.paste(column, (k * (column.width + _GAP_PX), _LINE_PX))
    _legend(ImageDraw.Draw(sheet), gaze, 2)
    return sheet


def plot(gaze: Gaze, clip: int = 0) -> Image.Image:
    """`Gaze.plot`."""
    if not gaze.ids.shape[1]:
        raise ValueError("a gaze of no frames cannot be plotted")
    counts = np.stack([mask[0].sum(-1).cpu().numpy() for mask in gaze[clip].masks()])  # (scales, T)
    frames, top = counts.shape[1], max(1, int(counts.sum(0).max()))
    picture = Image.new("RGB", PLOT_PX, _PAPER)
    pen = ImageDraw.Draw(picture)
    left, right, upper, lower = 44, PLOT_PX[0] - 8, _LINE_PX + 8, PLOT_PX[1] - 36
    for share in (0.5, 1.0):
        y = lower - (lower - upper) * share
        pen.line((left, y, right, y), _PALE)
        pen.text((left - 6, y), f"{top * share:g}", _INK, _font(), anchor="rm")
    edges = np.linspace(left, right, frames + 1)
    heights = np.concatenate([np.zeros((1, frames)), counts.cumsum(0)]) * (lower - upper) / top
    for k in range(len(counts)):
        for t in np.flatnonzero(counts[k]):
            x = int(edges[t]), max(int(edges[t]), int(edges[t + 1]) - (2 if edges[1] - edges[0] > 4 else 1))
            pen.rectangle(
                (x[0], round(lower - heights[k + 1, t]), x[1], round(lower - heights[k, t]) - 1), scale_colour(k)
            )
    pen.line((left, lower, right, lower), _INK)
    pen.text((left, lower + 4), "0", _INK, _font())
    pen.text((right, lower + 4), str(frames - 1), _INK, _font(), anchor="ra")
    pen.text(((left + right) / 2, lower + 4), "frame", _INK, _font(), anchor="ma")
    _legend(pen, gaze, left)
    return picture


def card(gaze: Gaze) -> str:
    """`Gaze._repr_html_`: what `repr` says, and the plot of the first clip."""
    words = f"<code>{html.escape(repr(gaze))}</code>"
    if gaze.ids.is_meta or not len(gaze) or not gaze.ids.shape[1]:
        return words
    file = io.BytesIO()
    plot(gaze).save(file, "PNG", optimize=True)
    picture = base64.b64encode(file.getvalue()).decode()
    note = "" if len(gaze) == 1 else f"<br>Clip 0 of {len(gaze)}:"
    return f'{words}{note}<br><img alt="patches chosen in every frame, by scale" src="data:image/png;base64,{picture}">'


def _frames_of(gaze: Gaze, frames: Any, clip: int) -> np.ndarray:
    """(T, H, W, 3) uint8 of the clip that is drawn."""
    if getattr(frames, "ndim", 4) == 5 and len(frames) == len(gaze):
        frames = frames[clip]
    found = as_clip(frames).cpu().numpy()
    if len(found) != gaze.ids.shape[1]:
        raise ValueError(
            f"frames must be those that were gazed at: {gaze.ids.shape[1]}, got {len(found)}; "
            "gaze[:, 4:8].draw(frames[4:8]) draws some of them"
        )
    return found


def _column(overlay: Overlay, frame: np.ndarray, mask: np.ndarray, caption: str) -> Image.Image:
    """One frame's panels below one another, and its caption."""
    panel = overlay.panel(frame)
    panels = [panel, overlay.chosen(panel, mask), overlay.looked_at(panel, mask)]
    column = Image.new("RGB", (overlay.width, 3 * (overlay.height + _GAP_PX) + _LINE_PX), _PAPER)
    for k, picture in enumerate(panels):
        column.paste(Image.fromarray(picture), (0, k * (overlay.height + _GAP_PX)))
    ImageDraw.Draw(column).text((2, column.height - _LINE_PX), caption, _INK, _font())
    return column


def _legend(pen: ImageDraw.ImageDraw, gaze: Gaze, left: float) -> None:
    """The scales, each in its colour."""
    for k, scale in enumerate(gaze.grid.scales):
        pen.rectangle((left, 5, left + 9, 14), scale_colour(k))
        pen.text((left + 13, 10), str(scale), _INK, _font(), anchor="lm")
        left += 21 + pen.textlength(str(scale), _font())
    pen.text((left, 10), "patches of these scales (px)", _INK, _font(), anchor="lm")


def _font() -> Any:
    return ImageFont.load_default(_TEXT_PX)
