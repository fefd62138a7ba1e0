"""A prompt with the visual tokens that a gaze kept: ids, positions of the dense prompt, and the tower's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autogaze.mllm.family import Family, Features, Inputs


@dataclass(frozen=True, eq=False)
class Prompt:
    """Inputs of a video LLM, for a batch of prompts padded on the left."""

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64
    position_ids: Tensor  # (B, L), or (4, B, L) for M-RoPE with the text's own count first; int64
    kept: tuple[Tensor, ...]  # (steps, rows, columns) bool of every video, on the CPU
    prompt_of: tuple[int, ...]  # which prompt of the batch each video is in
    features: dict[str, list[Features]]  # visual tokens by modality, in the order of their placeholders
    videos: tuple[Features, ...]  # of them the videos'
    family: Family

    @property
    def visual_tokens(self) -> int:
        """Tokens of all videos."""
        return sum(int(mask.sum()) for mask in self.kept)

    @property
    def dense_tokens(self) -> int:
        """Tokens that the videos would have with every unit."""
        return sum(mask.numel() for mask in self.kept)

    @property
    def ratio(self) -> float:
        """Share of the videos' units that was kept; 1 without a video."""
        return self.visual_tokens / self.dense_tokens if self.kept else 1.0

    def __repr__(self) -> str:
        batch, length = self.input_ids.shape
        return (
            f"Prompt({batch} x {length} tokens, {len(self.kept)} videos with {self.visual_tokens} of "
            f"{self.dense_tokens} visual tokens, {self.input_ids.device})"
        )

    def model_inputs(self, past: int = 0) -> dict[str, Any]:
        """Arguments of the model's `forward` and `generate`, made anew since generation changes some of them.

        Args:
            past: tokens whose keys and values the caller has; what stands in front of them is not given again.
        """
        # Plain positions with gaps are read as several packed sequences where there is neither a cache nor a mask, and
        # `generate` drops a mask of ones. Any number but 0 marks a token that is there; one of twos stays.
        gaps = self.position_ids.ndim == 2 and self.ratio < 1
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask * 2 if gaps else self.attention_mask,
            "position_ids": self.position_ids,
            **self.family.besides(self.input_ids),
        }
        outputs = {}
        for modality, features in self.features.items():
            if left := self._behind(features, modality, past):
                outputs[modality] = self.family.outputs(left, modality)
        return inputs | ({"mm_encoder_outputs": outputs} if outputs else {})

    def _behind(self, features: list[Features], modality: str, past: int) -> list[Features]:
        """The features whose placeholders stand at `past` or later."""
        if past == 0:
            return features
        columns = (self.input_ids == self.family.placeholder(modality)).nonzero()[:, 1].tolist()
        starts, start = [], 0
        for part in features:
            starts.append(columns[start])
            start += len(part.tokens)
        return [part for part, column in zip(features, starts, strict=True) if column >= past]


def videos_of(rows: Sequence[Tensor], steps: Sequence[int]) -> tuple[int, ...]:
    """The prompt that each video is in, by the steps that prompts hold.

    Args:
        rows: (L,) bool of every prompt: tokens that stand for a step.
        steps: of every video.
    """
    owners, row, left = [], 0, int(rows[0].sum()) if rows else 0
    for count in steps:
        while left == 0:
            row += 1
            left = int(rows[row].sum())
        owners.append(row)
        left -= count
    return tuple(owners)


def build(
    family: Family,
    inputs: Inputs,
    rows: Sequence[Tensor],
    marks: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and position ids of prompts with as many placeholders as units were kept.

    Args:
        inputs: what the processor returned.
        rows: (L,) ids of every prompt, one placeholder a step.
        marks: (L,) bool of every prompt: which ids are those placeholders.
        kept: (steps, per_step) bool of every video.
    """
    full = torch.cat([torch.full((len(mask),), mask.shape[1]) for mask in kept]) if kept else torch.zeros(0).long()
    some = torch.cat([mask.sum(-1) for mask in kept]) if kept else full
    units = torch.cat([mask.flatten() for mask in kept]) if kept else torch.zeros(0, dtype=torch.bool)
    types = inputs.get("mm_token_type_ids")
    dense, dense_types, stays, thin, step, unit = [], [], [], [], 0, 0
    for row, (ids, mark) in enumerate(zip(rows, marks, strict=True)):
        steps = slice(step, step + int(mark.sum()))
        step = steps.stop
        ids = ids.masked_fill(mark, family.placeholder())
        each = torch.ones_like(ids).masked_scatter(mark, full[steps])
        dense.append(ids.repeat_interleave(each))
        if types is not None:
            dense_types.append(types[row].repeat_interleave(each))
        thin.append(ids.repeat_interleave(torch.ones_like(ids).masked_scatter(mark, some[steps])))
        stay = torch.ones_like(dense[-1], dtype=torch.bool)
        count = int(full[steps].sum())
        stays.append(stay.masked_scatter(mark.repeat_interleave(each), units[unit : unit + count]))
        unit += count
    given = {**inputs, **_padded(dense, 0)}
    if types is not None:
        given["mm_token_type_ids"] = _padded(dense_types, 0)["input_ids"]
    positions = family.positions(given)  # (axes, B, dense length)
    real = given["attention_mask"].bool()
    places = [positions[:, row, real[row]][:, stay] for row, stay in enumerate(stays)]
    made = _padded(thin, family.pad_token())
    padded = torch.stack(
        [torch.nn.functional.pad(part, (made["input_ids"].shape[1] - part.shape[1], 0)) for part in places]
    )
    padded = padded.transpose(0, 1)  # (axes, B, L)
    if len(padded) > 1:
        text = (made["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        padded = torch.cat([text[None], padded])
    else:
        padded = padded[0]
    return made["input_ids"], made["attention_mask"], padded


def _padded(rows: Sequence[Tensor], fill: int) -> dict[str, Tensor]:
    """Rows padded on the left to one length, with their mask."""
    length = max(len(row) for row in rows)
    pads = [(length - len(row), 0) for row in rows]
    ids = [torch.nn.functional.pad(row, pad, value=fill) for row, pad in zip(rows, pads, strict=True)]
    masks = [torch.nn.functional.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads, strict=True)]
    return {"input_ids": torch.stack(ids), "attention_mask": torch.stack(masks)}
