"""`GazeFiles`: videos in, rows out, for engines that spread work over many machines.

A callable class, made once in each worker and called with batches: what `map_batches` of Ray Data takes, and actors
of Daft or NeMo Curator as well. Needs pyarrow; Ray itself is the extra `ray`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autogaze.archive import rows
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.frames import FrameGazer
from autogaze.decoding.limits import DEFAULT, Default
from autogaze.device import pick_device
from autogaze.media.video import read_chunks
from autogaze.model import AutoGaze

if TYPE_CHECKING:
    import pyarrow as pa


class GazeFiles:
    """Gazes at the videos of a batch.

    Args:
        checkpoint: shipped name, folder, run or hub id.
        gazing_ratio, task_loss_requirement: if only one is given the other sets no limit; if none is, the
            checkpoint's own.
        tiles, gaze_stride: as in `AutoGaze.gaze`.
        device: "auto" is the GPU that the engine gave this worker, if it gave one.
        column: of the batch, with the paths.
        threads: of a worker on a CPU; None leaves torch's own choice.
    """

    def __init__(
        self,
        checkpoint: str = "autogaze-base",
        gazing_ratio: float | None | Default = DEFAULT,
        task_loss_requirement: float | None | Default = DEFAULT,
        tiles: bool = False,
        gaze_stride: int = 1,
        device: str = "auto",
        column: str = "path",
        threads: int | None = 1,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model, self.column = AutoGaze.from_pretrained(checkpoint, pick_device(device)), column
        self.options = (gazing_ratio, task_loss_requirement, tiles, gaze_stride)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> pa.Table:
        """One row a frame: file, frame, time_s, ids, scales, predicted_loss, error.

        A file that cannot be read is one row with its error and nothing else; nothing of a damaged one is kept.

        Args:
            batch: columns by name; `column` holds paths.
        """
        import pyarrow as pa

        return pa.concat_tables([self._file(str(path)) for path in batch[self.column]] or [_nothing()])

    def _file(self, path: str) -> pa.Table:
        import pyarrow as pa

        gazer, parts, first = FrameGazer(self.model, *self.options), [], 0
        try:
            for chunk in read_chunks(Path(path)):
                parts.append(rows(path, gazer(chunk.frames).to("cpu"), chunk.times_s, first))
                first += len(chunk)
        except (ValueError, OSError) as error:
            empty = _nothing()
            values = {"file": [path], "error": [" ".join(str(error).split())]}
            columns = {field.name: pa.array(values.get(field.name, [None]), field.type) for field in empty.schema}
            return pa.table(columns, empty.schema)
        table = pa.concat_tables(parts)
        return table.append_column("error", pa.nulls(len(table), pa.string()))


def _nothing() -> pa.Table:
    """The table without rows."""
    import numpy as np
    import pyarrow as pa

    none = torch.zeros(1, 0, 0, dtype=torch.int64)
    table = rows("", Gaze(none, none.bool(), PatchGrid()), np.zeros(0))
    return table.append_column("error", pa.array([], pa.string()))
