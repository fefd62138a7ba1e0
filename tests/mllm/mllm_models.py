"""Tiny video LLMs with random weights and processors made here: every family, no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from autogaze import AutoGaze
from autogaze.mllm import GazedVideoLM
from autogaze.model import AutoGazeConfig

WORDS = """user assistant what happens in this video and then seconds Frame from a b c d e
0 1 2 3 4 5 6 7 8 9 < > . : ,"""
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {**ROPE, "mrope_section": [2, 3, 3]}


@dataclass(frozen=True)
class Case:
    """A model with its processor, and a size of frames that its processor leaves as they are."""

    name: str
    build: Callable[[], tuple[nn.Module, Any]]
    frame_size: tuple[int, int]  # pixels: height, width
    frames: int = 6
    exact: bool = True  # with every unit kept the logits are the dense model's to the bit; else to 1e-5


def clip(case: Case, seed: int = 0, frames: int | None = None) -> torch.Tensor:
    """(T, 3, H, W) uint8: a picture that stays, with a square that moves over it."""
    generator = torch.Generator().manual_seed(seed)
    height, width = case.frame_size
    still = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    shots = still.repeat(frames or case.frames, 1, 1, 1)
    for t, shot in enumerate(shots):
        shot[:, 5 : 5 + height // 4, 7 * t : 7 * t + width // 4] = (40 * t + 20) % 256
    return shots


def talk(video: Any, words: str = "what happens", **more: Any) -> list[dict[str, Any]]:
    """A conversation about one video."""
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": words}], **more}]


def settings(case: Case, videos: int = 1, frames: int | None = None) -> dict[str, Any]:
    """Of the processor's call: all frames, at two a second."""
    count = frames or case.frames
    one = {"total_num_frames": count, "fps": 2.0, "duration": count / 2, "frames_indices": list(range(count))}
    return {"do_sample_frames": False, "video_metadata": [dict(one) for _ in range(videos)]}


def tokenizer(special: tuple[str, ...], **named: str) -> PreTrainedTokenizerFast:
    """Words of a small vocabulary, and special tokens that are never split."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", "<end>", *WORDS.split()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", padding_side="left", **named
    )
    made.add_tokens([*special, *named.values()], special_tokens=True)
    return made


def template(image: str, video: str) -> str:
    """A chat template that writes one token for every image and every video."""
    return (
        "{% for message in messages %}{{ message['role'] }}: "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %} {{ part['text'] }} "
        "{% elif part['type'] == 'image' %}" + image + "{% elif part['type'] == 'video' %}" + video + "{% endif %}"
        "{% endfor %}{% endif %}<end>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )


QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
QWEN_SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
QWEN_VISION = {"depth": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64}
ANY_SIZE = {"shortest_edge": 32 * 32, "longest_edge": 10**8}


def _qwen(prefix: str, old: bool, text: dict[str, Any], vision: dict[str, Any]) -> tuple[nn.Module, Any]:
    """A Qwen of either generation; the newer one writes time stamps between frames."""
    tokens = tokenizer(QWEN_TOKENS)
    image, video, start, end = (tokens.convert_tokens_to_ids(token) for token in QWEN_TOKENS)
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**QWEN_SIZE, "vocab_size": len(tokens), "head_dim": 16, **text},
        vision_config={**QWEN_VISION, **vision},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    patch = 14 if old else 16
    images = transformers.Qwen2VLImageProcessor(patch_size=patch, size=ANY_SIZE)
    kinds = ("Qwen2VLVideoProcessor" if old else "Qwen3VLVideoProcessor", f"{prefix if old else 'Qwen3VL'}Processor")
    videos = getattr(transformers, kinds[0])(size=ANY_SIZE, do_sample_frames=False, cap_pixels_per_frame=False)
    around = "<|vision_start|>{}<|vision_end|>"
    shape = template(around.format("<|image_pad|>"), around.format("<|video_pad|>") if old else "<|video_pad|>")
    return model, getattr(transformers, kinds[1])(images, tokens, videos, chat_template=shape)


POSITIONS = {"num_position_embeddings": 2304}
DENSE = {"num_hidden_layers": 4, "rope_parameters": MROPE}
INTERLEAVED = {**DENSE, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
HYBRID = {
    **INTERLEAVED,
    "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
}
WINDOWS = {"fullatt_block_indexes": [1, 3], "window_size": 112}
STACKED = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 2304}

CASES = [
    Case("Qwen2-VL", lambda: _qwen("Qwen2VL", True, DENSE, {"embed_dim": 64, "mlp_ratio": 2}), (112, 168)),
    Case("Qwen2.5-VL", lambda: _qwen("Qwen2_5_VL", True, DENSE, WINDOWS), (140, 168)),
    Case("Qwen3-VL", lambda: _qwen("Qwen3VL", False, INTERLEAVED, STACKED), (128, 192)),
    Case("Qwen3-VL, experts", lambda: _qwen("Qwen3VLMoe", False, {**INTERLEAVED, **EXPERTS}, STACKED), (128, 192)),
    Case("Qwen3.5", lambda: _qwen("Qwen3_5", False, HYBRID, POSITIONS), (128, 192)),
    Case("Qwen3.5, experts", lambda: _qwen("Qwen3_5Moe", False, {**HYBRID, **EXPERTS}, POSITIONS), (128, 192)),
]  # fmt: skip


TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _internvl() -> tuple[nn.Module, Any]:
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokens = tokenizer((), **named, video_token="<video>")
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.InternVLConfig(
        vision_config={
            **vision,
            "image_size": [112, 112],
            "patch_size": [14, 14],
            "use_absolute_position_embeddings": True,
        },
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tokens)},
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    model = transformers.InternVLForConditionalGeneration(config).eval()
    nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings)
    nn.init.normal_(model.model.vision_tower.embeddings.cls_token)
    size = {"height": 112, "width": 112}
    images = transformers.GotOcr2ImageProcessor(size=size)
    videos = transformers.InternVLVideoProcessor(size=size)
    shape = template("<IMG_CONTEXT>", "<video>")
    processor = transformers.InternVLProcessor(images, tokens, videos, image_seq_length=16, chat_template=shape)
    return model, processor


def _smolvlm() -> tuple[nn.Module, Any]:
    tokens = tokenizer(("<image>", "<fake_token_around_image>", "<global-img>", "<video>"))
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    image = tokens.convert_tokens_to_ids("<image>")
    config = transformers.SmolVLMConfig(
        vision_config={**vision, "image_size": 256, "patch_size": 16},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokens), "pad_token_id": 1},
        image_token_id=image,
        scale_factor=4,
        pad_token_id=1,
    )
    model = transformers.SmolVLMForConditionalGeneration(config).eval()
    sizes = {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 256}}
    images = transformers.SmolVLMImageProcessor(**sizes)
    videos = transformers.SmolVLMVideoProcessor(**sizes, fps=1, num_frames=8)
    return model, transformers.SmolVLMProcessor(
        images, tokens, videos, image_seq_len=16, chat_template=template("<image>", "<video>")
    )


def _llava() -> tuple[nn.Module, Any]:
    tokens = tokenizer(("<image>", "<video>"))
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlavaNextVideoConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **vision,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
        },
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokens)},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[56, 112], [112, 56]],
    )
    model = transformers.LlavaNextVideoForConditionalGeneration(config).eval()
    sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    images = transformers.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=[[56, 112], [112, 56]])
    videos = transformers.LlavaNextVideoVideoProcessor(**sizes)
    return model, transformers.LlavaNextVideoProcessor(
        videos, images, tokens, template("<image>", "<video>"), 14, "default", num_additional_image_tokens=1
    )


def _video_llama() -> tuple[nn.Module, Any]:
    tokens = tokenizer(("<|image_pad|>", "<|video_pad|>"))
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.VideoLlama3Config(
        vision_config={**vision, "patch_size": 14},
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tokens)},
        image_token_id=tokens.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokens.convert_tokens_to_ids("<|video_pad|>"),
    )
    model = transformers.VideoLlama3ForConditionalGeneration(config).eval()
    size = {"shortest_edge": 28 * 28, "longest_edge": 10**8}
    images = transformers.VideoLlama3ImageProcessor(min_pixels=28 * 28, max_pixels=10**8)
    videos = transformers.VideoLlama3VideoProcessor(size=size, use_token_compression=False)
    return model, transformers.VideoLlama3Processor(
        images, tokens, videos, chat_template=template("<|image_pad|>", "<|video_pad|>")
    )


def _gemma() -> tuple[nn.Module, Any]:
    """Frames of 5 x 13 units, which the processor fills up to 70; tokens of a frame see one another."""
    names = ("image", "boi", "eoi", "audio", "boa", "eoa")
    tokens = tokenizer(("<|video|>",), **{f"{name}_token": f"<|{name}|>" for name in names})
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16}
    config = transformers.Gemma4Config(
        vision_config={**vision, "num_attention_heads": 4, "num_key_value_heads": 4, "standardize": True},
        text_config={
            **TEXT,
            "head_dim": 16,
            "global_head_dim": 16,
            "vocab_size": len(tokens),
            "vocab_size_per_layer_input": len(tokens),
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "use_bidirectional_attention": "vision",
        },
        image_token_id=tokens.convert_tokens_to_ids("<|image|>"),
        video_token_id=tokens.convert_tokens_to_ids("<|video|>"),
        audio_token_id=tokens.convert_tokens_to_ids("<|audio|>"),
    )
    model = transformers.Gemma4ForConditionalGeneration(config).eval()
    tower = model.model.vision_tower
    nn.init.normal_(tower.patch_embedder.position_embedding_table)
    nn.init.normal_(tower.std_bias)
    nn.init.constant_(tower.std_scale, 0.5)
    images = transformers.Gemma4ImageProcessor(max_soft_tokens=70)
    videos = transformers.Gemma4VideoProcessor()
    processor = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(), images, tokens, videos, template("<|image|>", "<|video|>")
    )
    return model, processor


CASES += [
    Case("InternVL3", _internvl, (112, 112)),
    Case("SmolVLM2", _smolvlm, (256, 256)),
    Case("LLaVA-NeXT-Video", _llava, (56, 56)),
    Case("Gemma 4", _gemma, (240, 624), exact=False),
    Case("VideoLLaMA3", _video_llama, (112, 168)),
]
BY_NAME = {case.name: case for case in CASES}


@lru_cache
def built(case: Case) -> tuple[nn.Module, Any]:
    """Model and processor of a case, made once."""
    torch.manual_seed(0)
    return case.build()


@lru_cache
def gaze() -> AutoGaze:
    torch.manual_seed(0)
    return AutoGaze(AutoGazeConfig.tiny()).eval()


def gazed(case: Case, **options: Any) -> GazedVideoLM:
    """A case with a tiny gaze model in front."""
    return GazedVideoLM(*built(case), gaze(), **{"gazing_ratio": 0.2, **options})
