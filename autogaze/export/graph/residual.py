"""The residual map in an exported graph (`autogaze.network.residual`).

Once a frame: the errors of its cells, and from them a table of what a look at scale k takes away of a cell that was
looked at at level l, and of what it adds to the predicted loss. Errors are divided by the number of cells, so that the
mean of a frame is a sum. What the finest look takes away is all that is left, because nothing is wrong after it: that
part of a row of the table is the gains of the finest patches, which are single cells.

Before every id of the unrolled budget: a row of the table by the levels so far, one product for the patches of all
coarser scales, a logarithm. With scales 32, 64, 112 and 224 and 16-pixel patches a row has 5 * 196 numbers, of which
588 go through a product with 69 columns.

All of it is float32 in every precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.export.graph.nodes import Nodes, Value
from autogaze.export.graph.weights import ResidualWeights
from autogaze.network.residual import LEAST_ERROR, LEAST_GAIN, MEANS_PX, STALE_CAP, STALE_FLOOR


class ResidualState:
    """Writes what is wrong with a frame, and the canvas (B, 1, S, S) float32 that is handed on from frame to frame."""

    def __init__(self, nodes: Nodes, weights: ResidualWeights) -> None:
        self.nodes, self.weights = nodes, weights
        self.blurs = sorted(set(weights.blocks) - {1}, reverse=True)  # the others leave the frame as it is
        # (P, (scales + 1) * N): a copy for every part of a row. Made in the graph, which runtimes do when they open it.
        self._cover = nodes.op("Tile", nodes.constant(weights.cover), torch.tensor([1, len(weights.blocks) + 1]))

    def begin(self, frame: Value, canvas: Value | None, visual: Value) -> FrameResiduals:
        """A frame (B, 3, S, S) float32 with visual tokens (B, N, width), before anything is chosen in it; canvas: None
        at a clip's first frame."""
        frame = self.nodes.op("ReduceMean", frame, torch.tensor([1]), keepdims=1)  # grey
        if self.weights.smoothing is not None:
            frame = self.nodes.constant(self.weights.smoothing) @ frame @ self.weights.smoothing.t().contiguous()
        pictures = [self._blurred(frame, block) for block in self.blurs]
        differences = [frame if canvas is None else frame - canvas, *(frame - picture for picture in pictures)]
        errors = self._errors(self.nodes.concat(differences, axis=1), frame)
        return FrameResiduals(self.nodes, self.weights, self._cover, self._table(errors, visual), [*pictures, frame])

    def look(self, canvas: Value | None, errors: FrameResiduals, level: Value) -> Value:
        """The canvas after a look at a frame.

        Args:
            canvas: before it; None at a clip's first frame.
            level: (B, N) float32, the finest level at which each cell was looked at, 0 where none was.
        """
        weights, size = self.weights, self.weights.side * self.weights.cell_px
        wide = level.reshape(0, 1, weights.side, 1, weights.side, 1)
        level = self._repeated(wide, weights.cell_px).reshape(0, 1, size, size)
        for k, block in enumerate(weights.blocks):
            picture = errors.pictures[self._row(block) - 1]
            canvas = self.nodes.where(level.equals(float(k + 1)), picture, 0.0 if canvas is None else canvas)
        assert canvas is not None
        return canvas

    def _blurred(self, frame: Value, block: int) -> Value:
        """Frames as means of blocks of so many pixels."""
        size = self.weights.side * self.weights.cell_px
        means = self._means(frame, block, block, block).reshape(0, 1, size // block, 1, size // block, 1)
        return self._repeated(means, block).reshape(0, 1, size, size)

    def _repeated(self, value: Value, times: int) -> Value:
        """(B, C, h, 1, w, 1) to (B, C, h, times, w, times)."""
        return self.nodes.op("Expand", value, torch.tensor([1, 1, 1, times, 1, times]))

    def _means(self, x: Value, height: int, width: int, stride: int) -> Value:
        return self.nodes.op("AveragePool", x, kernel_shape=[height, width], strides=[stride, stride])

    def _errors(self, differences: Value, frame: Value) -> Value:
        """(B, R, N) of the differences (B, R, S, S) of a frame (B, 1, S, S) from R pictures; over the number of cells.

        A window of steps is one short of a cell, so that none between two cells is in it.
        """
        px, cells = self.weights.cell_px, self.weights.side**2
        steps_down = (differences.cut(2, 1) - differences.cut(2, 0, -1)).abs()
        steps_right = (differences.cut(3, 1) - differences.cut(3, 0, -1)).abs()
        steps = self._means(steps_down, px - 1, px, px) + self._means(steps_right, px, px - 1, px)
        absolute, of_steps, *of_means = self.weights.weight
        errors = self._means(differences.abs(), px, px, px) * absolute + steps * of_steps
        if self.weights.response:
            blocks = self._means(differences, MEANS_PX, MEANS_PX, MEANS_PX).abs()
            side = px // MEANS_PX
            errors = self._perceived(errors + self._means(blocks, side, side, side) * of_means[0], frame)
        return (errors * (1 / cells)).reshape(0, -1, cells)

    def _perceived(self, differences: Value, frame: Value) -> Value:
        """Differences (B, R, side, side) as a perceptual map counts them in a frame (B, 1, S, S), but for the factors
        of levels."""
        nodes, px, (floor, contrast, power) = self.nodes, self.weights.cell_px, self.weights.response[:3]
        mean = self._means(frame, px, px, px)
        variance = self._means(frame * frame, px, px, px) - mean * mean
        share = nodes.op("Pow", nodes.op("Sqrt", nodes.op("Max", variance, 0.0)) + floor, contrast)
        return nodes.op("Pow", differences / share + LEAST_ERROR, power)

    def _table(self, errors: Value, visual: Value) -> Value:
        """(B, scales + 1, (scales + 1) * N): what a look at scale k takes away of a cell at level l, nothing if k < l;
        and last what a cell at level l adds to the predicted loss."""
        scales = len(self.weights.blocks)
        errors = self.nodes.op("Pad", errors, torch.tensor([0, 0, 0, 0, 1, 0]))  # and zero after the finest look
        at = torch.tensor([0, *(self._row(block) for block in self.weights.blocks)])
        if self.weights.response:
            factors = torch.tensor([*self.weights.response[3:], 0.0])
            errors, at = errors.gather(at, axis=1) * factors[:, None], torch.arange(scales + 1)
        if self.weights.gate is not None:
            matrix, bias = self.weights.gate
            opened = self.nodes.op("Exp", visual @ matrix + bias).transpose(0, 2, 1)  # (B, scales, N)
            errors = self.nodes.concat([errors.cut(1, 0, scales) * opened, errors.cut(1, scales)], axis=1)
        now, after = at[:, None].expand(-1, scales), at[1:].expand(scales + 1, -1)
        finer = torch.ones(scales + 1, scales).triu()[..., None]
        taken = (errors.gather(now, axis=1) - errors.gather(after, axis=1)) * finer
        first, *others = errors.gather(at, axis=1).split([1, scales], axis=1)
        held = self.nodes.op(
            "Max", first, self.nodes.op("Min", errors.gather(at[-2:-1], axis=1) * STALE_FLOOR, first * STALE_CAP)
        )
        told = self.nodes.concat([held, *others], axis=1)
        return self.nodes.concat([taken.reshape(0, scales + 1, -1), told], axis=2)

    def _row(self, block: int) -> int:
        """The row of the errors after a look at a scale: after the canvas come the blurred pictures."""
        return 1 + (len(self.blurs) if block == 1 else self.blurs.index(block))


class FrameResiduals:
    """The residual map of a frame while its ids are chosen, one after the other."""

    def __init__(
        self, nodes: Nodes, weights: ResidualWeights, cover: Value, table: Value, pictures: list[Value]
    ) -> None:
        self.nodes, self.weights, self.cover, self.table = nodes, weights, cover, table
        self.pictures = pictures  # (B, 1, S, S) each: what looks leave, coarse to fine
        self._level: Value | None = None  # (B, 1, (scales + 1) * N) int32
        self._taken: Value | None = None  # (B, 1) int64, not yet part of the level
        self._left: list[Value] = []  # (B, N), before each id since the last call of `losses`

    def scores(self) -> Value:
        """(B, P), added to the logits of the next id."""
        nodes, pool, cells = self.nodes, self.weights.pool, self.weights.side**2
        sizes = [size for size in (len(pool), cells, cells) if size]
        *coarser, finest, told = self._row().reshape(0, -1).split(sizes, axis=1)
        self._left.append(told)
        gains = nodes.concat([*(part @ pool for part in coarser), finest], axis=1)
        return nodes.op("Log", nodes.op("Max", gains, 0.0) + LEAST_GAIN) * self.weights.strength

    def take(self, choice: Value) -> None:
        """Choose one more id (B, 1)."""
        self._taken = choice

    def losses(self) -> Value:
        """The losses (B, n) predicted before each of the ids since the last call."""
        left, self._left = self._left, []
        return self.nodes.concat(left, axis=1).reshape(0, len(left), -1).sum(2)

    def _row(self) -> Value:
        """(B, 1, (scales + 1) * N): of the table, by the levels so far."""
        if self._taken is not None:
            looked = self.cover.gather(self._taken, axis=0)
            self._level = looked if self._level is None else self.nodes.op("Max", self._level, looked)
        if self._level is None:
            return self.table.cut(1, 0, 1)
        return self.nodes.op("GatherElements", self.table, self._level, axis=1)


def looked(nodes: Nodes, patch_at: Tensor, patches: int, ids: Value, chosen: Value) -> Value:
    """(B, N) float32: the finest level at which a gaze covers each cell, 0 where it does not.

    Args:
        patch_at: (scales, N) int64, the patch of each scale at each cell.
        patches: ids a frame.
        ids, chosen: (B, budget), the gaze.
    """
    ids = nodes.where(chosen, ids, -1).unsqueeze(2)
    mask = ids.equals(torch.arange(patches)).to(torch.float32).max(1)  # (B, patches)
    level = torch.arange(1.0, len(patch_at) + 1)[:, None]
    return (mask.gather(patch_at, axis=1) * level).max(1)
