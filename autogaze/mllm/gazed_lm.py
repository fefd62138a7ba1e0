"""GazedVideoLM: a gaze in front of the vision tower of a video LLM that people already use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autogaze.mllm.families import family_of
from autogaze.mllm.family import Features, Inputs
from autogaze.mllm.gazing import UnitGazer
from autogaze.mllm.prompt import Prompt, build, videos_of
from autogaze.mllm.reading import Messages, Reader
from autogaze.mllm.units import UnitGrid, keep_units
from autogaze.model import AutoGaze

Kept = list[Tensor]  # (steps, per_step) bool on the CPU, of every video


class GazedVideoLM:
    """A video LLM whose vision tower runs on what a gaze chose, and whose language model reads just that.

    Model and processor are used as they are, with their own weights; nothing of them is replaced. With every unit kept
    the logits are the dense model's. Kept tokens have the positions that they have in the dense prompt.

    Args:
        model: transformers' `...ForConditionalGeneration` of a family in docs/mllm.md.
        processor: the model's.
        gaze: the gaze model; None keeps every unit.
        gazing_ratio: largest share of the units of a step (a frame, or a pair where the tower takes two at once).
        task_loss_requirement: reconstruction loss at which a step may stop.
        max_visual_tokens: most visual tokens of all videos of one prompt: the units without which the most would be
            lost stay, wherever they are. If none of these three is given, ratio and requirement are the gaze model's.
        first_step: keep the first step of every video in full, besides the ratio.

    Raises:
        ValueError: if the model's family is not known or cannot be gazed (says why), or a number is out of range.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        gaze: AutoGaze | None = None,
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        max_visual_tokens: int | None = None,
        first_step: bool = True,
    ) -> None:
        if max_visual_tokens is not None and max_visual_tokens < 1:
            raise ValueError(f"max_visual_tokens must be positive, got {max_visual_tokens}")
        asked = (gazing_ratio, task_loss_requirement, max_visual_tokens)
        if gaze is None and any(number is not None for number in asked):
            raise ValueError("leaving out units needs a gaze model: give `gaze`, or no ratio, requirement or budget")
        self.model, self.processor, self.gaze = model, processor, gaze
        self.family = family_of(model, processor)
        self._read = Reader(self.family)
        if gaze is not None and gazing_ratio is None and task_loss_requirement is None and max_visual_tokens is None:
            gazing_ratio, task_loss_requirement = gaze.config.gazing_ratio, gaze.config.task_loss_requirement
        self.gazing_ratio, self.max_visual_tokens, self.first_step = gazing_ratio, max_visual_tokens, first_step
        self._look = None if gaze is None else UnitGazer(gaze, gazing_ratio, task_loss_requirement, first_step)

    @torch.no_grad()
    def prepare(
        self,
        messages: Messages,
        previous: Prompt | None = None,
        add_generation_prompt: bool = True,
        **settings: Any,
    ) -> Prompt:
        """Read messages, gaze at their videos, run the tower on what is kept, and build the prompt.

        Args:
            messages: a conversation, or a list of them, as the processor's `apply_chat_template` takes them: videos as
                files, links, uint8 frames (arrays or tensors, on any device) or lists of pictures; images are left as
                they are.
            previous: a prompt of the same conversations with fewer turns: its videos, in order, are not gazed at or
                encoded again.
            add_generation_prompt: begin the assistant's turn.
            settings: of the processor's call, such as `fps`, `num_frames`, `do_sample_frames`, `video_metadata`,
                `size`, `videos_kwargs`.

        Raises:
            ValueError: if the processor refuses the messages, `max_visual_tokens` is less than a token a step, or a
                video of `previous` had another size.
        """
        inputs = self._read(messages, add_generation_prompt, **settings)
        rows = inputs["input_ids"]
        marks = [ids == self.family.step_token() for ids in rows]
        grids = self.family.grids(inputs)
        owners = videos_of(marks, [grid.steps for grid in grids])
        known = _known(previous, owners, grids)
        kept = self._choose(inputs, owners, known, previous)
        features = self._encode(inputs, kept, known, previous)
        ids, mask, positions = build(self.family, inputs, rows, marks, kept)
        device = self.model.device
        return Prompt(
            ids.to(device),
            mask.to(device),
            positions.to(device),
            tuple(part.view(grid.steps, grid.rows, grid.columns) for part, grid in zip(kept, grids, strict=True)),
            owners,
            self.family.arrange(inputs, self.family.images(inputs), features),
            tuple(features),
            self.family,
        )

    @torch.no_grad()
    def generate(self, prompt: Prompt | Messages, **options: Any) -> Tensor:
        """The model's own `generate` on a prompt.

        Args:
            prompt: of `prepare`, or messages to prepare.
            options: of the model's `generate`: `max_new_tokens`, `num_beams`, `streamer`, `past_key_values`, ...

        Returns:
            what the model's `generate` returns; ids begin with the prompt's.

        Raises:
            ValueError: if `past_key_values` holds all of the prompt, or more.
        """
        prompt = prompt if isinstance(prompt, Prompt) else self.prepare(prompt)
        cache = options.get("past_key_values")
        past, length = 0 if cache is None else cache.get_seq_length(), prompt.input_ids.shape[1]
        if past >= length:
            raise ValueError(
                f"past_key_values holds {past} tokens and the prompt has {length}: give the cache of an earlier turn, "
                "without what this prompt does not begin with (cache.crop)"
            )
        return self.model.generate(**prompt.model_inputs(past), **options)

    def decode(self, prompt: Prompt, generated: Tensor) -> list[str]:
        """The text that `generate` added to a prompt."""
        added = generated[:, prompt.input_ids.shape[1] :]
        return self.processor.batch_decode(added, skip_special_tokens=True)

    def _encode(self, inputs: Inputs, kept: Kept, known: Sequence[int | None], old: Prompt | None) -> list[Features]:
        """The tower's output of every video; of videos in an old prompt, what it was."""
        new = [mask if place is None else torch.zeros_like(mask) for mask, place in zip(kept, known, strict=True)]
        if old is None:
            return self.family.encode(inputs, new) if new else []
        if None not in known:
            return [old.videos[place] for place in known if place is not None]
        features = self.family.encode(inputs, new)
        return [part if place is None else old.videos[place] for part, place in zip(features, known, strict=True)]

    def _choose(self, inputs: Inputs, owners: Sequence[int], known: Sequence[int | None], old: Prompt | None) -> Kept:
        """Masks of the units of every video that are kept; of videos in an old prompt, those that were."""
        grids = self.family.grids(inputs)
        kept = [torch.ones(grid.steps, grid.per_step, dtype=torch.bool) for grid in grids]
        new = [index for index, place in enumerate(known) if place is None]
        for index, place in enumerate(known):
            if place is not None and old is not None:
                kept[index] = old.kept[place].flatten(1)
        if self._look is None or not new:
            return kept
        videos = self.family.videos(inputs)
        choices = dict(zip(new, self._look([videos[index] for index in new]), strict=True))
        for prompt in sorted({owners[index] for index in new}):
            own = [index for index in new if owners[index] == prompt]
            room = self.max_visual_tokens
            if room is not None:
                room -= sum(int(mask.sum()) for i, mask in enumerate(kept) if owners[i] == prompt and i not in own)
            parts = keep_units([choices[index] for index in own], self.gazing_ratio, room, self.first_step)
            kept = [parts[own.index(i)].cpu() if i in own else mask for i, mask in enumerate(kept)]
        return kept


def _known(old: Prompt | None, owners: Sequence[int], grids: Sequence[UnitGrid]) -> list[int | None]:
    """For every video, which one of an old prompt it is: the first ones of each conversation, in order."""
    left: dict[int, list[int]] = {}
    for place, owner in enumerate(old.prompt_of if old else ()):
        left.setdefault(owner, []).append(place)
    known = [left[owner].pop(0) if left.get(owner) else None for owner in owners]
    for index, (at, grid) in enumerate(zip(known, grids, strict=True)):
        if old is None or at is None:
            continue
        was, now = tuple(old.kept[at].shape), (grid.steps, grid.rows, grid.columns)
        if was != now:
            raise ValueError(
                f"video {index} of the messages had {' x '.join(map(str, was))} units in the previous prompt, now "
                f"{' x '.join(map(str, now))}: `previous` must be of the same conversations"
            )
    return known
