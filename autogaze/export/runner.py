"""Runs exported files with the interface of `AutoGaze`: `generate` for clips, `stream` for cameras and long files.

Files are run by a `Session`: ONNX Runtime for `.onnx`, TensorRT for `.engine`. Inputs may be numpy arrays, torch
tensors or anything that speaks DLPack; results are torch tensors (which speak it too) on the session's device. A
stream's memory never leaves that device.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autogaze.core.checks import check_values
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.limits import DEFAULT, Limit, given_limits
from autogaze.decoding.request import Request, make_request
from autogaze.export.metadata import Metadata
from autogaze.export.targets import RunOptions, Runtime, target_of
from autogaze.export.tensors import CALL, FORMER, GAZE, TensorSpec, check_specs, state_of


class Session(Protocol):
    """An opened file on its device."""

    metadata: Metadata
    device: torch.device
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def bind(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], repeated: bool = False) -> Callable[[], None]:
        """A call that fills `outputs` from `inputs`, all contiguous on `device`; make it within `scope`.

        Calls of one session may be made from several threads at once, each with tensors of its own.

        Args:
            repeated: the call is worth a CUDA graph.
        """
        ...

    def scope(self) -> Any:
        """A context in which torch works in the session's CUDA stream."""
        ...

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """Say, outside `scope`, that the caller gets these tensors, which were made within."""
        ...


class Engine:
    """An exported file, ready to run. Made by `Engine.load`.

    May be shared by threads: every call of `generate` works in a memory of its own. A stream takes one frame at a time;
    frames from several threads are worked through one after another.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.metadata, self.device = session, session.metadata, session.device
        self.grid: PatchGrid = session.metadata.grid
        # of `generate`, as many as calls ran at once; kept so that a CUDA graph is captured once
        self._idle: deque[EngineStream] = deque()

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str | None = None,
        stream: Any = None,
        cuda_graph: bool = False,
        threads: int | None = None,
        runtime: Runtime | None = None,
    ) -> Engine:
        """Open an exported file.

        Args:
            path: what `autogaze export` wrote: .onnx, or .engine (.plan, .trt).
            device: "cpu", "cuda" or "cuda:1"; by default the GPU if the file can be run there, else the CPU.
            stream: CUDA stream to work in: a `torch.cuda.Stream` or its handle. What the results are used for must
                come after it. By default a stream of its own, which torch's current stream waits for. ONNX Runtime's
                calls return when their work is done, except those that a CUDA graph replays in a named stream.
            cuda_graph: capture each stream's call once and replay it (ONNX Runtime on CUDA).
            threads: CPU threads; the runtime's own choice by default.
            runtime: one that runs such files; None: the first in `autogaze.export.targets`.

        Raises:
            FileNotFoundError: if there is no such file.
            FormatError: if it is not an autogaze export, cut short, or of a newer format.
            ValueError: if it cannot run on the device, such as an engine built for another GPU.
            ImportError: if the runtime is not installed, naming what to install.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no such exported file: {path}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        try:
            device = None if device is None else torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device must be like cpu, cuda or cuda:1, got {device!r}") from error
        session = target_of(path, runtime).open(path, RunOptions(device, stream, cuda_graph, threads))
        check_specs(session.metadata, session.inputs, session.outputs, str(path))
        return cls(session)

    def generate(self, video: Any, gazing_ratio: Limit = DEFAULT, task_loss_requirement: Limit = DEFAULT) -> Gaze:
        """Choose patches in every frame of a batch of clips; see `AutoGaze.generate`.

        Args:
            video: (B, T, 3, H, W) float32, preprocessed, or (B, T, H, W, 3) uint8 RGB.
            gazing_ratio: at most the file's; None: all that the file has.
            task_loss_requirement: None never stops early. If only one of the two is given, the other sets no limit; if
                none is, both are the file's, as it was exported.

        Returns:
            Gaze of (B, T, budget).
        """
        video = _pixels(self.metadata, video, 5)
        finish = _check(self.metadata, video)
        request = self._request(video.shape[0], video.shape[1], gazing_ratio, task_loss_requirement)
        largest, parts = self.metadata.batch[1], []
        for start in range(0, len(video), largest):
            part = slice(start, min(start + largest, len(video)))
            decode = self._clip if self.metadata.kind == "clip" else self._frames
            parts.append(decode(video[part], _asked(request, part)))
        with self.session.scope():
            joined = {name: torch.cat([part[name] for part in parts]) for name in GAZE}
        finish()
        self.session.hand_over(joined.values())
        return Gaze(joined["ids"], joined["chosen"], self.grid, joined["task_loss"])

    def stream(
        self,
        gazing_ratio: Limit = DEFAULT,
        task_loss_requirement: Limit = DEFAULT,
        batch: int = 1,
    ) -> EngineStream:
        """Gaze frame by frame; see `AutoGaze.stream`."""
        if self.metadata.kind != "frame":
            raise ValueError("a clip file takes whole clips; export without --clip to stream")
        low, high = self.metadata.batch
        if not low <= batch <= high:
            raise ValueError(f"this file takes {low} to {high} streams side by side, got {batch}")
        request = self._request(batch, 1, gazing_ratio, task_loss_requirement)
        asked = {name: value[:, 0] for name, value in _asked(request, slice(None)).items()}
        return EngineStream(self.session, asked, batch)

    def _frames(self, video: Tensor, asked: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = len(video)
        padded = max(batch, self.metadata.batch[0])
        video, asked = _grow(video, padded), {name: _grow(value, padded) for name, value in asked.items()}
        stream = self._take_stream(padded, {name: value[:, 0] for name, value in asked.items()})
        with self.session.scope():
            asked = {name: value.to(self.device) for name, value in asked.items()}
            steps = [
                stream.run(video[:, t], {name: value[:, t] for name, value in asked.items()})
                for t in range(video.shape[1])
            ]
            result = {name: torch.stack([step[name] for step in steps], 1)[:batch] for name in GAZE}
        self._idle.append(stream)
        return result

    def _take_stream(self, batch: int, asked: dict[str, Tensor]) -> EngineStream:
        """A stream that no other call uses, at its start. One of another batch size is given up for it."""
        try:
            stream = self._idle.pop()  # a deque's are atomic
        except IndexError:
            return EngineStream(self.session, asked, batch)
        if stream.batch != batch:
            return EngineStream(self.session, asked, batch)
        stream.reset()
        return stream

    def _clip(self, video: Tensor, asked: dict[str, Tensor]) -> dict[str, Tensor]:
        (batch, count), frames = video.shape[:2], self.metadata.frames
        if count > frames:
            raise ValueError(
                f"this file takes clips of up to {frames} frames, got {count}; a frame file takes any length"
            )
        padded = max(batch, self.metadata.batch[0])
        with self.session.scope():
            values = {self.session.inputs[0].name: video, **asked}
            if video.is_cuda:
                video.record_stream(torch.cuda.current_stream(video.device))
            tensors = {
                spec.name: _grow(
                    _grow(values[spec.name].to(self.device, spec.dtype), padded), frames, dim=1
                ).contiguous()
                for spec in self.session.inputs
                if spec.name in values
            }
            rest = tuple(spec for spec in self.session.inputs if spec.name in FORMER)
            tensors |= allocate(self.session, rest, padded)
            outputs = allocate(self.session, self.session.outputs, padded)
            self.session.bind(tensors, outputs)()
            return {name: outputs[name][:batch, :count] for name in GAZE}

    def _request(self, batch: int, frames: int, gazing_ratio: Limit, task_loss_requirement: Limit) -> Request:
        limit, own = self.metadata.budget, (None, self.metadata.task_loss_requirement)
        ratio, requirement = given_limits(gazing_ratio, task_loss_requirement, own)
        never = float("-inf")
        request = make_request(
            self.grid,
            batch,
            frames,
            self._own_ratio() if ratio is None else ratio,
            never if requirement is None else requirement,
            scales=self.metadata.allowed_scales or None,
        )
        if int(request.budget.max()) > limit:
            raise ValueError(
                f"this file spends at most {limit} of {self.grid.patches_per_frame} ids a frame "
                f"(gazing ratio {self.metadata.gazing_ratio:g}), asked for {int(request.budget.max())}"
            )
        return request

    def _own_ratio(self) -> float:
        """A ratio that spends exactly the file's budget."""
        return min(1.0, (self.metadata.budget + 0.5) / self.grid.patches_per_frame)


class EngineStream:
    """Streams side by side, one frame of each at a time, with their memory on the device.

    Knows the session, not the engine, which may hold a stream: the last of them to go takes the session along at once.
    """

    def __init__(self, session: Session, asked: dict[str, Tensor], batch: int) -> None:
        self.session, self.metadata, self.batch = session, session.metadata, batch
        self._pixels_name = session.inputs[0].name
        self._inputs = allocate(session, tuple(spec for spec in session.inputs if spec.name in CALL + FORMER), batch)
        state = state_of(session.inputs)
        self._memory = [allocate(session, state, batch), allocate(session, state, batch)]  # read one, write the other
        gaze = tuple(spec for spec in session.outputs if spec.name in GAZE)
        self._results = [allocate(session, gaze, batch), allocate(session, gaze, batch)]
        self._calls = [self._bind(turn) for turn in range(2)]
        self.frame = 0  # frames seen
        self._one_at_a_time = threading.Lock()
        with session.scope():
            self._fill(asked)

    def _bind(self, turn: int) -> Callable[[], None]:
        """The call of every second frame."""
        after = {f"next_{name}": tensor for name, tensor in self._memory[1 - turn].items()}
        return self.session.bind(self._inputs | self._memory[turn], self._results[turn] | after, repeated=True)

    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._inputs[name].copy_(value, non_blocking=True)
            if value.is_cuda:
                value.record_stream(torch.cuda.current_stream(value.device))

    def reset(self) -> None:
        """Forget everything: the next frame opens a new clip."""
        with self._one_at_a_time, self.session.scope():
            self.frame = 0
            for memory in self._memory:
                for tensor in memory.values():
                    tensor.zero_()

    def step(self, frame: Any) -> Gaze:
        """Choose patches of the next frame.

        Args:
            frame: (B, 3, H, W) float32, preprocessed, or (B, H, W, 3) uint8 RGB. On a GPU, a frame in pinned memory
                must stay as it is until the gaze was read.

        Returns:
            Gaze of (B, 1, budget).
        """
        pixels = _pixels(self.metadata, frame, 4)
        if len(pixels) != self.batch:
            raise ValueError(f"this stream takes {self.batch} frames side by side, got {len(pixels)}")
        with self._one_at_a_time, self.session.scope():
            # on a GPU once a stream: whoever looks has to wait
            finish = _check(self.metadata, pixels) if self.frame == 0 or not pixels.is_cuda else None
            values = self.run(pixels)
            if finish is not None:
                finish()
        self.session.hand_over(values.values())
        return Gaze(values["ids"][:, None], values["chosen"][:, None], self.metadata.grid, values["task_loss"][:, None])

    def run(self, pixels: Tensor, asked: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One call of the file, within the session's scope: `GAZE` by name, each (B, ...), new tensors.

        Args:
            asked: of this frame and those after it; None: as before.
        """
        turn = self.frame % 2
        self._fill({self._pixels_name: pixels, **(asked or {})})
        self._calls[turn]()
        self.frame += 1
        return {name: tensor.clone() for name, tensor in self._results[turn].items()}


def allocate(session: Session, specs: tuple[TensorSpec, ...], batch: int) -> dict[str, Tensor]:
    """Zeroed tensors for inputs or outputs."""
    with session.scope():
        return {s.name: torch.zeros(batch, *s.shape, dtype=s.dtype, device=session.device) for s in specs}


def _pixels(metadata: Metadata, pixels: Any, ndim: int) -> Tensor:
    """Pixels as the file takes them; uint8 frames are preprocessed outside if the file does not do it."""
    tensor = as_tensor(pixels)
    uint8, side = metadata.pixels == "uint8", metadata.input_size
    if tensor.ndim == ndim and tensor.dtype == torch.uint8 and tensor.shape[-1] == 3 and not uint8:
        frames = tensor[:, None] if ndim == 4 else tensor
        video = metadata.preprocessor(frames)
        return video[:, 0] if ndim == 4 else video
    shape = (*side, 3) if uint8 else (3, *side)
    dtype_fits = tensor.dtype == torch.uint8 if uint8 else tensor.is_floating_point()
    if tensor.ndim != ndim or tuple(tensor.shape[-3:]) != shape or not dtype_fits or 0 in tensor.shape:
        lead = "B, T, " if ndim == 5 else "B, "
        wanted = "uint8" if uint8 else "float"
        other_size = tensor.ndim == ndim and dtype_fits and tensor.shape[-1 if uint8 else -3] == 3
        advice = "; for frames of another size export with --uint8 HxW" if other_size else ""
        raise ValueError(
            f"expected {wanted} ({lead}{', '.join(map(str, shape))}), got {tensor.dtype} {tuple(tensor.shape)}{advice}"
        )
    return tensor if uint8 else tensor.float()


def _check(metadata: Metadata, pixels: Tensor) -> Callable[[], None]:
    """Refuse preprocessed pixels that cannot be right, as `AutoGaze` does; see `check_values`."""
    if metadata.pixels == "uint8":
        return lambda: None
    return check_values(pixels, *metadata.preprocessor.value_range)


def _asked(request: Request, part: slice) -> dict[str, Tensor]:
    """A request of some clips as the inputs of a file, each (B, T)."""
    assert request.requirement is not None
    return {"budget": request.budget[part].int(), "requirement": request.requirement[part]}


def as_tensor(value: Any) -> Tensor:
    """A torch tensor of a numpy array, a torch tensor, or anything that speaks DLPack; shares memory where it can."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if hasattr(value, "__dlpack__"):
        return torch.from_dlpack(value)
    raise ValueError(f"expected a numpy array, a torch tensor or a DLPack tensor, got {type(value).__name__}")


def _grow(value: Tensor, length: int, dim: int = 0) -> Tensor:
    """Repeat the last entry of a dimension up to a length."""
    missing = length - value.shape[dim]
    if missing <= 0:
        return value
    last = value.narrow(dim, value.shape[dim] - 1, 1)
    return torch.cat([value, last.repeat_interleave(missing, dim)], dim)
