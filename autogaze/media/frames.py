"""Frames as people hold them: arrays, tensors and PIL images, one or many, made into one uint8 RGB tensor.

Taken: uint8 (H, W), (H, W, 1), (H, W, 3) and (H, W, 4), the same with (T, ...) before it, PIL images of every 8-bit and
16-bit mode, and lists or tuples of any of these that have one size. Grey is repeated, transparency is dropped, and a
camera's EXIF orientation is applied. Channels come last: frames with channels first are refused, since three rows of
pixels cannot be told from three colours. Floats are refused too, since their range cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency


def as_frames(frames: Any, first: int = 0) -> Tensor:
    """Frames as a uint8 tensor (T, H, W, 3), or (B, T, H, W, 3) of clips; memory is shared where it can be.

    Args:
        frames: see above.
        first: number of the first frame, for messages about a list.

    Raises:
        ValueError: if it is nothing that holds pixels, or the shape, the type of the numbers or the sizes do not fit.
    """
    if isinstance(frames, Image.Image):
        return _from_image(frames)[None]
    if isinstance(frames, np.ndarray | Tensor):
        return _rgb(_tensor(frames))
    if isinstance(frames, str | bytes | dict) or not isinstance(frames, Iterable):
        if hasattr(frames, "__array__"):
            return _rgb(_tensor(np.asarray(frames)))
        raise ValueError(
            f"frames must be uint8 RGB (T, H, W, 3), PIL images or a list of them, got {type(frames).__name__}"
        )
    return _stack([as_frames(frame) for frame in frames], first)


def as_clip(frames: Any, first: int = 0) -> Tensor:
    """`as_frames` of one clip, (T, H, W, 3)."""
    found = as_frames(frames, first)
    if found.ndim == 5 and len(found) == 1:
        return found[0]
    if found.ndim == 5:
        raise ValueError(f"frames must be of one clip (T, H, W, 3), got {len(found)} clips {tuple(found.shape)}")
    return found


def _stack(parts: Sequence[Tensor], first: int) -> Tensor:
    if not parts:
        raise ValueError("frames must not be empty, got an empty list")
    for number, part in enumerate(parts):
        if part.shape[-3:] != parts[0].shape[-3:]:
            raise ValueError(
                f"frames must be of one size: frame {first} has {tuple(parts[0].shape[-3:-1])} pixels, frame "
                f"{first + number} {tuple(part.shape[-3:-1])}; resize them"
            )
    if all(part.ndim == 4 and len(part) == 1 for part in parts):
        return torch.cat(list(parts))
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"clips must be of one length, got {', '.join(str(len(part)) for part in parts)} frames")
    return torch.stack(list(parts)) if parts[0].ndim == 4 else torch.cat(list(parts))


def _from_image(image: Image.Image) -> Tensor:
    """(H, W, 3) of a PIL image, upright."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        upright = Image.fromarray((np.asarray(upright.convert("I")) >> 8).astype(np.uint8))
    elif upright.mode in ("I", "F"):
        raise ValueError(f"a PIL image of mode {upright.mode} has no known range: convert it to 8 bits first")
    return torch.from_numpy(np.array(upright.convert("RGB")))


def _tensor(frames: np.ndarray | Tensor) -> Tensor:
    """Pixels as a uint8 tensor."""
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    if dtype != "uint8":
        advice = ""
        if dtype.startswith(("float", "bfloat")):
            advice = (
                "; of floats in 0..1 make (frames * 255).round() as uint8; preprocessed video goes to model.generate"
            )
        elif dtype == "uint16":
            advice = "; of 16 bits make (frames >> 8) as uint8"
        raise ValueError(f"frames must be uint8 RGB (T, H, W, 3), got {dtype} {shape}{advice}")
    if 0 in shape:
        raise ValueError(f"frames must not be empty, got {shape}")
    if isinstance(frames, Tensor):
        return frames
    frames = np.ascontiguousarray(frames)
    return torch.from_numpy(frames if frames.flags.writeable else frames.copy())


def _rgb(frames: Tensor) -> Tensor:
    """(T, H, W, 3) or (B, T, H, W, 3) of one image, frames or clips with grey, RGB or RGBA last."""
    shape = tuple(frames.shape)
    if len(shape) == 2:
        frames = frames[None, :, :, None]
    elif len(shape) == 3 and shape[-1] in CHANNELS:
        frames = frames[None]
    elif len(shape) == 3 and shape[0] not in CHANNELS:
        frames = frames[..., None]  # grey frames (T, H, W)
    elif len(shape) not in (4, 5) or shape[-1] not in CHANNELS or (shape[-1] != 3 and shape[-3] == 3):
        axis = len(shape) - 3
        if 3 <= len(shape) <= 5 and shape[axis] in CHANNELS:
            order = [*range(axis), axis + 1, axis + 2, axis]
            raise ValueError(
                f"frames must have their channels last, uint8 RGB (T, H, W, 3), got {shape}, {shape[axis]} channels "
                f"on axis {axis}: frames.permute{tuple(order)} of a tensor, frames.transpose{tuple(order)} of an array"
            )
        raise ValueError(f"frames must be uint8 RGB (T, H, W, 3), got uint8 {shape}")
    channels = frames.shape[-1]
    return frames.expand(*frames.shape[:-1], 3) if channels == 1 else frames[..., :3]
