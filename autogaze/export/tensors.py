"""Names of what goes into an exported file and comes out of it; `docs/formats.md` says what each is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autogaze.export.metadata import FormatError, Metadata

CALL = ("frame", "frames", "budget", "requirement")  # of one call
# Files of formats 1 and 2 have one more: false decodes a sample as if it were alone, which format 3 always does.
FORMER = ("in_step",)
MOST_NUMBERS = 1 << 38  # of a sample's tensor
GAZE = ("ids", "chosen", "task_loss", "count")


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output; the batch comes first."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # without the batch


def state_of(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """A stream's memory among the inputs of a file: all that are not of the call. Zeros at the stream's start; `next_X`
    among the outputs follows X."""
    return tuple(spec for spec in inputs if spec.name not in CALL + FORMER)


def check_specs(metadata: Metadata, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], file: str) -> None:
    """Refuse a file whose tensors are not those that its metadata speaks of: its numbers are used as their sizes.

    Raises:
        FormatError: naming the tensor.
    """
    for spec in (*inputs, *outputs):
        numbers = 1
        for side in spec.shape:
            numbers *= side if isinstance(side, int) and side > 0 else MOST_NUMBERS + 1
        if numbers > MOST_NUMBERS:
            raise FormatError(f"{file}: {spec.name} has the shape {spec.shape}, which is in no export; export it again")
    frames = () if metadata.kind == "frame" else (metadata.frames,)
    uint8, size = metadata.pixels == "uint8", metadata.input_size
    pixels = TensorSpec(
        "frames" if frames else "frame",
        torch.uint8 if uint8 else torch.float32,
        (*frames, *size, 3) if uint8 else (*frames, 3, *size),
    )
    slots = (*frames, metadata.budget)
    types = {"budget": torch.int32, "requirement": torch.float32}
    if metadata.format < 3:
        types |= dict.fromkeys(FORMER, torch.bool)
    state = state_of(inputs)
    wanted = {spec.name: spec for spec in (pixels, *(TensorSpec(name, types[name], frames) for name in types))}
    given = {"ids": (torch.int64, slots), "chosen": (torch.bool, slots), "task_loss": (torch.float32, slots)}
    after = {f"next_{spec.name}": (spec.dtype, spec.shape) for spec in state}
    promised = {
        name: TensorSpec(name, *facts) for name, facts in (given | {"count": (torch.int32, frames)} | after).items()
    }
    found = {spec.name: spec for spec in inputs if spec not in state}
    if inputs[:1] != (pixels,) or found != wanted:
        raise FormatError(f"{file}: the inputs {_names(found, wanted)} are not what its metadata says; export it again")
    found = {spec.name: spec for spec in outputs}
    if found != promised or (frames and state):
        raise FormatError(
            f"{file}: the outputs {_names(found, promised)} are not what its inputs and metadata say; export it again"
        )


def _names(found: dict[str, TensorSpec], wanted: dict[str, TensorSpec]) -> str:
    """Of the tensors that differ."""
    return ", ".join(sorted(name for name in found | wanted if found.get(name) != wanted.get(name)))
