"""Checks at the door: what a caller hands in is refused with a reason, or taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

FAR_OUT = 8  # half ranges from the middle: noise stays within 6, frames in 0..255 do not
DARK = 0.1  # floats in 0..1 come down to this; pixels in -1..1 seldom end just there


def check_video(video: Tensor) -> None:
    """Refuse what is not a preprocessed clip."""
    if not isinstance(video, Tensor) or video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
        got = f"{video.dtype} {tuple(video.shape)}" if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(
            f"video must be (B, T, 3, H, W) float, got {got}; model.preprocessor(frames) makes it of uint8 RGB frames "
            "(T, H, W, 3), see autogaze.media.preprocess"
        )
    if 0 in video.shape:
        raise ValueError(f"video must not be empty, got {tuple(video.shape)}")
    if video.is_meta or video.layout != torch.strided:
        kind = "on the meta device: it has a shape, but no pixels" if video.is_meta else f"a {video.layout} tensor"
        raise ValueError(f"video must hold its pixels densely, got one that is {kind}")


def check_finite(video: Tensor) -> None:
    """Refuse NaN and infinite pixels on a CPU, whatever their range is."""
    if video.device.type == "cpu" and not torch.compiler.is_compiling():
        _judge(torch.stack(torch.aminmax(video.detach())).float(), -torch.inf, torch.inf, 3)


def check_values(video: Tensor, low: float, high: float, stacklevel: int = 3) -> Callable[[], None]:
    """Look for pixels that cannot be right: NaN, infinite, or far outside of the range that preprocessing gives.

    On a CPU at once. On a GPU the numbers are asked for, and the returned function waits for them: called after the
    real work is queued it costs next to nothing.

    Args:
        video: preprocessed frames of any shape.
        low, high: what 0 and 255 become.
        stacklevel: whose line a warning names.

    Raises:
        ValueError: (here or by the returned function) if pixels are NaN, infinite or far out of range.
    """
    if video.is_meta or torch.compiler.is_compiling() or (video.is_cuda and torch.cuda.is_current_stream_capturing()):
        return _nothing
    extremes = torch.stack(torch.aminmax(video.detach())).float()
    if not video.is_cuda:
        _judge(extremes, low, high, stacklevel + 1)
        return _nothing
    found = torch.empty(2, dtype=torch.float32, device="cpu", pin_memory=True)
    found.copy_(extremes, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(video.device))

    def finish() -> None:
        done.synchronize()
        _judge(found, low, high, stacklevel + 1)

    return finish


def _nothing() -> None:
    pass


def _judge(extremes: Tensor, low: float, high: float, stacklevel: int) -> None:
    least, most = extremes.tolist()
    if not -float("inf") < least <= most < float("inf"):
        raise ValueError(f"video holds NaN or infinite values (minimum {least}, maximum {most})")
    if high == float("inf"):
        return
    middle, half = (low + high) / 2, (high - low) / 2
    advice = (
        f"preprocessed pixels lie in {low:.3g} to {high:.3g}: model.preprocessor(frames) makes them of uint8 frames "
        "(T, H, W, 3), or model.gaze takes the frames themselves"
    )
    if max(most - middle, middle - least) > FAR_OUT * half:
        raise ValueError(f"video has values from {least:.4g} to {most:.4g}, but {advice}")
    if low <= -0.5 and 0 <= least < DARK and 0.5 < most <= 1:
        warnings.warn(
            f"video has values from {least:.4g} to {most:.4g}, as if in 0..1, but {advice}", stacklevel=stacklevel
        )


def check_options(record: Any) -> None:
    """Refuse a dataclass whose fields of a `Literal` type hold anything else.

    Raises:
        ValueError: naming the field and what it may be.
    """
    for name, hint in get_type_hints(type(record)).items():
        if get_origin(hint) is Literal:
            check_option(name, getattr(record, name), get_args(hint))


def check_option(name: str, value: object, options: Sequence[object]) -> None:
    """Refuse what is none of the options.

    Raises:
        ValueError: naming them.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, got {value!r}")
