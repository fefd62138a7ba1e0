"""A gazed video LLM as a model of lmms-eval (0.7.3), which finds it by an entry point of this package.

lmms_eval --model autogaze_video_lm --model_args pretrained=Qwen/Qwen3-VL-2B-Instruct,gazing_ratio=0.1 --tasks videomme
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import PartialState
from lmms_eval.api.model import lmms
from transformers import AutoModelForImageTextToText, AutoProcessor

from autogaze.mllm.gazed_lm import GazedVideoLM
from autogaze.model import AutoGaze

NAME = "autogaze_video_lm"


def manifest() -> Any:
    """The entry that lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(NAME, chat_class_path=f"{__name__}.GazedForLmmsEval")


class GazedForLmmsEval(lmms):
    """Answers of a video LLM to lmms-eval's chat tasks, gazed or, with `gaze=None`, dense.

    Args:
        pretrained: the video LLM: hub id or folder.
        gaze: gaze model: shipped name, hub id or folder; None keeps every unit, for the dense model's figures.
        gazing_ratio, task_loss_requirement, max_visual_tokens: of `GazedVideoLM`.
        num_frames, fps: frames to sample; the processor's own rule by default. One of the two.
        dtype: of both models: "auto", "bfloat16", ...
        batch_size: prompts answered together.
        device: where the models are; with several processes each takes its own GPU.
    """

    is_simple = False  # asks for messages, not for a text and pictures

    def __init__(
        self,
        pretrained: str,
        gaze: str | None = "autogaze-base",
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        max_visual_tokens: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,  # lmms-eval gives it to every model
    ) -> None:
        super().__init__()
        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        self.device = torch.device(state.device if device is None or state.num_processes > 1 else device)
        self.batch_size = int(batch_size)
        model: Any = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype)
        model = model.to(self.device).eval()
        gaze_model = None if gaze in (None, "None") else AutoGaze.from_pretrained(gaze, self.device).to(model.dtype)
        processor = AutoProcessor.from_pretrained(pretrained)
        self.lm = GazedVideoLM(model, processor, gaze_model, gazing_ratio, task_loss_requirement, max_visual_tokens)
        asked = {name: value for name, value in (("num_frames", num_frames), ("fps", fps)) if value is not None}
        self.settings: dict[str, Any] = asked | {"do_sample_frames": True} if asked else {}

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests."""
        answers: list[str] = []
        for _, group in groupby(requests, key=lambda request: json.dumps(request.args[2], sort_keys=True)):
            same = list(group)
            for start in range(0, len(same), self.batch_size):
                answers += self._answer(same[start : start + self.batch_size])
        return answers

    def _answer(self, requests: Sequence[Any]) -> list[str]:
        """Answers to requests with one set of options."""
        talks = []
        for request in requests:
            _, to_messages, _, number, task, split = request.args
            talks.append(to_chat(to_messages(self.task_dict[task][split][number])))
        asked = requests[0].args[2]
        settings = self.settings if any(has_video(talk) for talk in talks) else {}
        prompt = self.lm.prepare(talks, **settings)
        texts = self.lm.decode(prompt, self.lm.generate(prompt, **decoding(asked)))
        answers = [until(text, asked.get("until", ())) for text in texts]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], asked), answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: chat tasks do not ask for it."""
        raise NotImplementedError(f"{NAME} answers tasks of output_type generate_until, not loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: the task's next question depends on an answer."""
        raise NotImplementedError(f"{NAME} answers tasks of one round, not of several")


def to_chat(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's messages in the form of a processor's chat template.

    Raises:
        ValueError: if a part of a video is asked for, which the processors of transformers cannot read, or sound.
    """
    chat = []
    for message in messages:
        parts = []
        for part in message["content"]:
            kind = part["type"]
            if part.get("start_time") is not None or part.get("end_time") is not None:
                raise ValueError(f"{NAME} reads whole videos, not from start_time to end_time: cut them beforehand")
            if kind not in ("text", "image", "video"):
                raise ValueError(f"{NAME} takes text, images and videos, got {kind!r}")
            parts.append({"type": kind, kind: part["text" if kind == "text" else "url"]})
        chat.append({"role": message["role"], "content": parts})
    return chat


def has_video(chat: Sequence[dict[str, Any]]) -> bool:
    return any(part["type"] == "video" for message in chat for part in message["content"])


def decoding(asked: dict[str, Any]) -> dict[str, Any]:
    """A task's options as those of `generate`; greedy unless it asks for a temperature."""
    options = {"max_new_tokens": asked.get("max_new_tokens", 1024), "num_beams": asked.get("num_beams", 1)}
    temperature = asked.get("temperature") or 0
    if temperature > 0:
        return options | {"do_sample": True, "temperature": temperature, "top_p": asked.get("top_p") or 1.0}
    return options | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def until(text: str, stops: str | Sequence[str]) -> str:
    """Text up to the first of some strings."""
    for stop in (stops,) if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()
