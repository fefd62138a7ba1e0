"""Messages to the inputs of a model: the processor's own reading, sampling and sizes, with pixels left as they are.

Videos come out resized but neither rescaled nor normalised, on the model's device, and each step is written as one
placeholder: what a step will hold is known only after gazing, and thousands of placeholders take longer to write,
tokenise and count than all else that a processor does.
"""

from __future__ import annotations

import os
from copy import copy
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_torchcodec_usable
from transformers.video_utils import load_video

from autogaze.mllm.family import Family, Inputs

Messages = list[dict[str, Any]] | list[list[dict[str, Any]]]


def _brief(family: Family, steps: list[int]) -> Any:
    """A copy of the processor that writes one placeholder a step, and notes how many steps each video has."""
    kind = type(family.processor)
    token = family.processor.tokenizer.convert_ids_to_tokens(family.step_token())

    def replace_video_token(_: Any, video_inputs: Inputs, video_idx: int, **__: Any) -> str:
        text = family.step_text(video_inputs, video_idx)
        steps.append(text.count(token))
        return text

    brief = copy(family.processor)
    brief.__class__ = type(kind.__name__, (kind,), {"replace_video_token": replace_video_token})
    return brief


def _unpadded(inputs: Inputs) -> Inputs:
    """Token ids and their types as a list of one tensor a prompt, without padding."""
    real = [row.bool() for row in inputs["attention_mask"]]
    names = [name for name in ("input_ids", "mm_token_type_ids") if name in inputs]
    return {**inputs, **{name: [row[own] for row, own in zip(inputs[name], real, strict=True)] for name in names}}


class Reader:
    """Reads prompts with a family's processor."""

    def __init__(self, family: Family) -> None:
        self.family = family

    def __call__(self, messages: Messages, add_generation_prompt: bool = True, **settings: Any) -> Inputs:
        """Read prompts.

        Args:
            messages: a conversation or a list of them, as `processor.apply_chat_template` takes them.
            add_generation_prompt: begin the assistant's turn.
            settings: of the processor's call: `fps`, `num_frames`, `do_sample_frames`, `video_metadata`, `size`,
                `videos_kwargs`, `images_kwargs`, ...

        Returns:
            what the processor returns, with `input_ids` and `mm_token_type_ids` as lists of one tensor a prompt,
            without padding; `videos_kwargs`, the settings asked for; and `steps`, of every video.
        """
        batch = [messages] if isinstance(messages[0], dict) else list(messages)
        nested = {**self.family.reads, **settings.pop("videos_kwargs", {})}
        nested = self._sampling(settings, nested)
        batch, settings = self._decode(batch, settings, nested)
        device = self.family.model.device
        untouched = {"do_rescale": False, "do_normalize": False, "device": str(device)}
        steps: list[int] = []
        inputs = _brief(self.family, steps).apply_chat_template(
            batch,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=add_generation_prompt,
            return_tensors="pt",
            processor_kwargs={
                **{name: value for name, value in settings.items() if name not in untouched},
                "padding": len(batch) > 1,
                "videos_kwargs": {**nested, **untouched},
            },
        )
        inputs = _unpadded(inputs)
        placed = {
            name: value.to(device) if name.startswith("pixel") and isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        return {**placed, "videos_kwargs": {**settings, **nested}, "steps": steps}

    def _sampling(self, settings: Inputs, nested: Inputs) -> Inputs:
        """Settings of videos where the given one of `fps` and `num_frames` replaces the processor's default."""
        names = {"fps", "num_frames"} & set(self.family.processor.video_processor.valid_kwargs.__annotations__)
        given = {name for name in names if {**settings, **nested}.get(name) is not None}
        return {**nested, **{name: None for name in names - given}} if given else nested

    def _decode(self, batch: Any, settings: Inputs, nested: Inputs) -> tuple[Any, Inputs]:
        """Read video files with OpenCV where torchcodec, the processor's reader, is missing: the same frames."""
        if is_torchcodec_usable(decode="video"):
            return batch, settings
        video_processor, metadata = self.family.processor.video_processor, []
        known = {name: getattr(video_processor, name, None) for name in video_processor.valid_kwargs.__annotations__}
        chosen = known | {name: value for name, value in {**settings, **nested}.items() if name in known}
        given = any({**settings, **nested}.get(name) is not None for name in ("fps", "num_frames"))
        sampled = {"do_sample_frames": given or chosen["do_sample_frames"], **settings, **nested}["do_sample_frames"]
        del chosen["do_sample_frames"]

        def indices(metadata: Any, **_: Any) -> Any:
            if sampled:
                return video_processor.sample_frames(metadata=metadata, **chosen)
            return range(metadata.total_num_frames)

        def decode(part: dict[str, Any]) -> dict[str, Any]:
            path: Any = next(
                (part[key] for key in ("video", "path", "url") if isinstance(part.get(key), str | Path)), None
            )
            if part.get("type") != "video" or path is None:
                return part
            frames, found = load_video(os.fspath(path), backend="opencv", sample_indices_fn=indices)
            metadata.append(found)
            return {"type": "video", "video": frames}

        def read(message: dict[str, Any]) -> dict[str, Any]:
            content = message["content"]
            return message if isinstance(content, str) else {**message, "content": [decode(part) for part in content]}

        batch = [[read(message) for message in messages] for messages in batch]
        if metadata:
            settings = {name: value for name, value in settings.items() if name not in ("fps", "num_frames")}
            settings |= {"do_sample_frames": False, "video_metadata": metadata}
        return batch, settings
