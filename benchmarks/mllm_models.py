"""Video LLMs of real sizes with random weights, and processors made here: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
WORDS = [
    "<unk>",
    "<pad>",
    "<end>",
    *["user", "assistant", "what", "happens", "in", "this", "video", "seconds"],
    *".<>:0123456789",
]
TEMPLATE = (
    "{%% for message in messages %%}{{ message['role'] }}: {%% for part in message['content'] %%}"
    "{%% if part['type'] == 'text' %%} {{ part['text'] }} {%% else %%}%s{%% endif %%}{%% endfor %%}<end>{%% endfor %%}"
    "{%% if add_generation_prompt %%}assistant: {%% endif %%}"
)


@dataclass(frozen=True)
class Size:
    """A published model's configuration, as far as it costs time."""

    prefix: str  # of transformers' classes
    patch: int  # pixels
    text: dict[str, Any]
    vision: dict[str, Any]


MODELS = {
    "Qwen2.5-VL-7B": Size(
        "Qwen2_5_VL",
        14,
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "patch_size": 14,
            "tokens_per_second": 2,
        },
    ),
    "Qwen3-VL-8B": Size(
        "Qwen3VL",
        16,
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
            "deepstack_visual_indexes": [8, 16, 24],
            "num_position_embeddings": 2304,
            "patch_size": 16,
        },
    ),
}
TINY_TEXT = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
TINY_VISION = {"depth": 3, "hidden_size": 64, "intermediate_size": 64, "num_heads": 1, "out_hidden_size": 128}


def build_model(name: str, device: torch.device, tiny: bool = False) -> tuple[nn.Module, Any]:
    """A model in bfloat16 (float32 off the GPU) with normal weights, made on the device, and its processor."""
    size = MODELS[name]
    tokens = build_tokenizer()
    image, video, start, end = (tokens.convert_tokens_to_ids(token) for token in TOKENS)
    vision = {**size.vision, **(TINY_VISION if tiny else {})}
    if tiny and "deepstack_visual_indexes" in vision:
        vision["deepstack_visual_indexes"] = [0, 1, 2]
    config = getattr(transformers, f"{size.prefix}Config")(
        text_config={**size.text, **(TINY_TEXT if tiny else {})},
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    kind = getattr(transformers, f"{size.prefix}ForConditionalGeneration")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = kind._from_config(config, dtype=dtype).eval()
    model.generation_config.pad_token_id = tokens.pad_token_id
    old = size.patch == 14
    limits = {"shortest_edge": 32 * 32, "longest_edge": 10**9}  # frames are taken as they are
    images = transformers.Qwen2VLImageProcessor(patch_size=size.patch, size=limits)
    videos = (transformers.Qwen2VLVideoProcessor if old else transformers.Qwen3VLVideoProcessor)(
        size=limits, cap_pixels_per_frame=False
    )
    template = TEMPLATE % ("<|vision_start|><|video_pad|><|vision_end|>" if old else "<|video_pad|>")
    processor = getattr(transformers, f"{size.prefix}Processor")(images, tokens, videos, chat_template=template)
    return model, processor


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A few words, and the placeholders as tokens that are never split."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokens = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    tokens.add_tokens(list(TOKENS), special_tokens=True)
    return tokens
