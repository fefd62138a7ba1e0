"""A Python client for a frame file served by Triton Inference Server: `stream` and `step` as in `AutoGaze`.

The server keeps each stream's memory (implicit state); the client sends frames and gets gazes. One client process a
stream, or several streams side by side with their own sequence ids. Needs `pip install 'tritonclient[grpc]'`.
"""

from __future__ import annotations

import threading
import uuid
import warnings
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch

from autogaze.core.gaze import Gaze
from autogaze.decoding.limits import DEFAULT, Default, given_limits
from autogaze.export.metadata import PREFIX, Metadata
from autogaze.export.triton import IDLE_MICROSECONDS, NAME

_TRITON = {
    np.dtype(np.float32): "FP32",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int32): "INT32",
}


FORGOTTEN = "must specify the START flag"  # of Triton, for a sequence that it does not know


def _new_sequence() -> int:
    return uuid.uuid4().int & ((1 << 63) - 1) or 1


class TritonGaze:
    """A served model. May be shared by threads; a stream takes one frame at a time."""

    def __init__(self, url: str = "localhost:8001", model: str = NAME, client: Any = None) -> None:
        """Connect and read what the model says about itself.

        Args:
            url: host:port of Triton's gRPC service.
            model: its name in the repository.
            client: an open `tritonclient.grpc.InferenceServerClient`, instead of a URL.

        Raises:
            ImportError: if tritonclient is not installed.
            FormatError: if the model is not an autogaze export.
        """
        try:
            import tritonclient.grpc as grpc
        except ImportError as error:
            raise ImportError("talking to Triton needs: pip install 'tritonclient[grpc]'") from error
        from tritonclient.utils import InferenceServerException

        self._grpc, self.model, self.error = grpc, model, InferenceServerException
        self.client = client or grpc.InferenceServerClient(url)
        config = self.client.get_model_config(model).config
        properties = {key: value.string_value for key, value in config.parameters.items() if key.startswith(PREFIX)}
        self.metadata = Metadata.from_properties(properties, f"Triton model {model}")

    def stream(
        self, gazing_ratio: float | None | Default = DEFAULT, task_loss_requirement: float | None | Default = DEFAULT
    ) -> TritonStream:
        """Gaze frame by frame; limits as in `Engine.generate`, a number each."""
        grid, limit = self.metadata.grid, self.metadata.budget
        ratio, asked = given_limits(gazing_ratio, task_loss_requirement, (None, self.metadata.task_loss_requirement))
        budget = limit if ratio is None else grid.budget(float(cast(float, ratio)))
        if budget > limit:
            raise ValueError(f"the served file spends at most {limit} ids a frame, asked for {budget}")
        requirement = float("-inf") if asked is None else float(cast(float, asked))
        return TritonStream(self, budget, requirement)

    def infer(self, inputs: dict[str, np.ndarray], **sequence: Any) -> dict[str, np.ndarray]:
        """One call: arrays by name in, arrays by name out."""
        requests = []
        for name, value in inputs.items():
            tensor = self._grpc.InferInput(name, list(value.shape), _TRITON[value.dtype])
            tensor.set_data_from_numpy(value)
            requests.append(tensor)
        outputs = [self._grpc.InferRequestedOutput(name) for name in ("ids", "chosen", "task_loss")]
        result = self.client.infer(self.model, requests, outputs=outputs, **sequence)
        return {name: result.as_numpy(name) for name in ("ids", "chosen", "task_loss")}


class TritonStream:
    """One stream of frames; use it in a `with` block, so that the server forgets it."""

    def __init__(self, served: TritonGaze, budget: int, requirement: float) -> None:
        self.served, self.sequence, self.frame = served, _new_sequence(), 0
        self._one_at_a_time = threading.Lock()
        self._asked = {
            "budget": np.full((1, 1), budget, np.int32),
            "requirement": np.full((1, 1), requirement, np.float32),
        }
        self._last: np.ndarray | None = None

    def step(self, frame: np.ndarray, end: bool = False) -> Gaze:
        """Choose patches of the next frame.

        A stream that paused for longer than the server remembers it begins anew with this frame, with one warning.

        Args:
            frame: (3, H, W) float32, preprocessed, or (H, W, 3) uint8 RGB, as the file takes it.
            end: whether it is the stream's last; then the server forgets the stream.

        Returns:
            Gaze of (1, 1, budget).
        """
        metadata = self.served.metadata
        uint8, (height, width) = metadata.pixels == "uint8", metadata.input_size
        shape, dtype = ((height, width, 3), np.uint8) if uint8 else ((3, height, width), np.float32)
        if frame.shape != shape or frame.dtype != dtype:
            raise ValueError(f"expected {np.dtype(dtype)} {shape}, got {frame.dtype} {frame.shape}")
        inputs = {"frame": np.ascontiguousarray(frame[None]), **self._asked}
        with self._one_at_a_time:
            self._last = None if end else frame
            try:
                result = self._send(inputs, end)
            except self.served.error as error:
                if self.frame == 0 or FORGOTTEN not in str(error):
                    raise
                warnings.warn(
                    f"the server has forgotten this stream after frame {self.frame} (it keeps a silent one for "
                    f"{IDLE_MICROSECONDS // 1_000_000} s): it begins anew with this frame",
                    stacklevel=2,
                )
                self.sequence, self.frame = _new_sequence(), 0
                result = self._send(inputs, end)
            self.frame += 1
        ids, chosen, loss = (torch.from_numpy(result[name].copy())[:, None] for name in ("ids", "chosen", "task_loss"))
        return Gaze(ids, chosen, metadata.grid, loss)

    def _send(self, inputs: dict[str, np.ndarray], end: bool) -> dict[str, np.ndarray]:
        start = self.frame == 0
        return self.served.infer(inputs, sequence_id=self.sequence, sequence_start=start, sequence_end=end)

    def close(self) -> None:
        """Tell the server that the stream is over; Triton takes that only with a frame."""
        with self._one_at_a_time:
            last, self._last = self._last, None
            if last is None:
                return
            try:
                self._send({"frame": np.ascontiguousarray(last[None]), **self._asked}, end=True)
            except self.served.error as error:
                if FORGOTTEN not in str(error):
                    raise

    def __enter__(self) -> TritonStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
