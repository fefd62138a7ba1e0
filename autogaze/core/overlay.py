"""Pictures of a gaze: the frame, the patches that were chosen, and what is left when only those are looked at.

Every scale has one colour, in overlays, plots, the HTML report and the documentation alike. The colours are Okabe and
Ito's, which colour-blind people can tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from autogaze.core.grid import PatchGrid

SCALE_COLOURS: tuple[tuple[int, int, int], ...] = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))
NOT_LOOKED_AT = (38, 38, 38)  # RGB
PANEL_PX = 512  # longer side of a panel
_STRIP_PX = 26  # of text above and below the panels
_GAP_PX = 4
_EDGE_FROM_PX = 5  # cells smaller than this are filled, not outlined


def scale_colour(index: int) -> tuple[int, int, int]:
    """RGB of a scale, 0 = coarsest."""
    return SCALE_COLOURS[index % len(SCALE_COLOURS)]


@dataclass(frozen=True, eq=False)
class _ScalePixels:
    """The cell of one scale that each pixel of a panel lies in."""

    row: np.ndarray  # (h,) int64, of cells
    column: np.ndarray  # (w,) int64
    sides: tuple[int, int]  # rows and columns of cells
    edge: np.ndarray  # (h, w) uint8, 255 on the border of a cell
    colour: np.ndarray  # (h, w, 3) uint8, the scale's everywhere
    size: tuple[int, int]  # (width, height) in pixels of the frame at this scale

    def spread(self, chosen: np.ndarray) -> np.ndarray:
        """(h, w) uint8: 255 in the chosen cells (cells,)."""
        cells = chosen.reshape(self.sides).astype(np.uint8) * 255
        return cells.take(self.row, 0).take(self.column, 1)


class Overlay:
    """Draws gazes of one grid over frames of any size, as three panels side by side.

    Args:
        grid: of the gaze; it is stretched over the whole frame.
        frame_size: (height, width) of the frames in pixels.
        panel_px: longer side of one panel in pixels.
    """

    def __init__(self, grid: PatchGrid, frame_size: tuple[int, int], panel_px: int = PANEL_PX) -> None:
        self.grid = grid
        factor = panel_px / max(frame_size)
        self.height, self.width = (max(2, round(side * factor / 2) * 2) for side in frame_size)
        self._scales = [self._pixels(k) for k in range(len(grid.scales))]
        self._title = self._titles()

    def draw(self, frame: np.ndarray, mask: np.ndarray, caption: str = "") -> np.ndarray:
        """The frame, its chosen patches and what was looked at, with a legend.

        Args:
            frame: (H, W, 3) uint8 RGB.
            mask: (patches_per_frame,) bool, True where chosen (`Gaze.patch_mask()[b, t]`).
            caption: a line below.

        Returns:
            (height, width, 3) uint8, the same size for every frame.
        """
        panel = self.panel(frame)  # once: resizing a large frame is most of the work
        panels = [panel, self.chosen(panel, mask), self.looked_at(panel, mask)]
        gap = np.full((self.height, _GAP_PX, 3), 255, np.uint8)
        row = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], 1)
        below = np.full_like(self._title, 255)
        _write(below, caption, 6)
        return np.concatenate([self._title, row, below])

    def panel(self, frame: np.ndarray) -> np.ndarray:
        """The frame at the size of a panel; itself if it has that size."""
        if frame.shape[:2] == (self.height, self.width):
            return frame
        filter_ = cv2.INTER_AREA if frame.shape[0] > self.height else cv2.INTER_LINEAR
        return cv2.resize(frame, (self.width, self.height), interpolation=filter_)

    def chosen(self, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The chosen patches over the dimmed frame, coarse to fine in the colours of their scales."""
        panel = self.panel(frame)
        grey = cv2.cvtColor(cv2.cvtColor(panel, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        picture = cv2.addWeighted(panel, 0.45, grey, 0.2, 0)
        for pixels, chosen in zip(self._scales, self._split(mask), strict=True):
            if chosen.any():
                inside = pixels.spread(chosen)
                cv2.copyTo(cv2.addWeighted(picture, 0.78, pixels.colour, 0.22, 0), inside, picture)
                edge = cv2.bitwise_and(inside, pixels.edge)
                cv2.copyTo(cv2.addWeighted(picture, 0.1, pixels.colour, 0.9, 0), edge, picture)
        return picture

    def looked_at(self, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The chosen patches as a picture: each at the sharpness of its scale, finer ones on top, the rest dark."""
        panel = self.panel(frame)
        picture = np.empty((self.height, self.width, 3), np.uint8)
        picture[:] = NOT_LOOKED_AT
        for pixels, chosen in zip(self._scales, self._split(mask), strict=True):
            if not chosen.any():
                continue
            seen = panel
            if pixels.size[0] < self.width:  # else sharper than the panel
                coarse = cv2.resize(panel, pixels.size, interpolation=cv2.INTER_AREA)
                seen = cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
            cv2.copyTo(seen, pixels.spread(chosen), picture)
        return picture

    def _split(self, mask: np.ndarray) -> list[np.ndarray]:
        if mask.shape != (self.grid.patches_per_frame,):
            raise ValueError(f"mask must be ({self.grid.patches_per_frame},) like the grid, got {mask.shape}")
        return np.split(mask.astype(bool), self.grid.offsets[1:])

    def _pixels(self, k: int) -> _ScalePixels:
        grid, (rows, columns) = self.grid, self.grid.sides[k]
        cell_px = grid.tile_px / (grid.scales[k] // grid.patch_size)
        row = ((np.arange(self.height) + 0.5) * grid.height_px / self.height / cell_px).astype(int).clip(0, rows - 1)
        column = ((np.arange(self.width) + 0.5) * grid.width_px / self.width / cell_px).astype(int).clip(0, columns - 1)
        share = grid.scales[k] / grid.tile_px
        size = (max(1, round(grid.width_px * share)), max(1, round(grid.height_px * share)))
        drawn_px = min(cell_px * self.width / grid.width_px, cell_px * self.height / grid.height_px)
        edge = np.full((self.height, self.width), 255, np.uint8)
        if drawn_px >= _EDGE_FROM_PX:
            edge *= _borders(row)[:, None] | _borders(column)[None]
        colour = np.broadcast_to(np.array(scale_colour(k), np.uint8), (self.height, self.width, 3))
        return _ScalePixels(row, column, (rows, columns), edge, np.ascontiguousarray(colour), size)

    def _titles(self) -> np.ndarray:
        """Titles above the panels of every frame."""
        strip = np.full((_STRIP_PX, 3 * self.width + 2 * _GAP_PX, 3), 255, np.uint8)
        for k, title in enumerate(("video", "chosen", "looked at")):
            _write(strip, title, 6 + k * (self.width + _GAP_PX))
        self._legend(strip, 6 + self.width + _GAP_PX + 70)
        return strip

    def _legend(self, strip: np.ndarray, left: int) -> None:
        for k, scale in enumerate(self.grid.scales):
            if left + 50 > strip.shape[1] * 2 // 3:
                return
            strip[8:18, left : left + 10] = scale_colour(k)
            left = _write(strip, str(scale), left + 14) + 10


def _borders(cell: np.ndarray) -> np.ndarray:
    """True for the first and the last pixel of every cell along one axis."""
    change = np.flatnonzero(np.diff(cell))
    border = np.zeros(len(cell), bool)
    border[[0, -1]] = border[change] = border[change + 1] = True
    return border


def _write(strip: np.ndarray, text: str, left: int) -> int:
    """Write a line of dark text and return where it ends."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    cv2.putText(strip, text, (left, 17), font, size, (30, 30, 30), 1, cv2.LINE_AA)
    return left + int(cv2.getTextSize(text, font, size, 1)[0][0])
