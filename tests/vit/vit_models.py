"""Tiny, randomly initialised ViTs of every family that GazedViT knows, and how their dense form is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@dataclass(frozen=True)
class Dense:
    """The model's output for whole frames."""

    prefix: Tensor  # (frames, R, D)
    patches: Tensor  # (frames, P, D)
    pooled: Tensor | None  # (frames, D)


@dataclass(frozen=True)
class Case:
    """One row of the support table, and a model of it."""

    name: str
    family: str
    build: Callable[[], nn.Module]
    dense: Callable[[nn.Module, Tensor], Dense]


def _timm(model: nn.Module, frames: Tensor) -> Dense:
    tokens = model.forward_features(frames)
    count = model.num_prefix_tokens
    return Dense(tokens[:, :count], tokens[:, count:], model.forward_head(tokens, pre_logits=True))


def _vit(**options: object) -> Callable[[], nn.Module]:
    return lambda: VisionTransformer(**{**SIZE, **options})


def _eva(**options: object) -> Callable[[], nn.Module]:
    return lambda: Eva(**{**SIZE, **options})


def _naflex(**options: object) -> Callable[[], nn.Module]:
    size = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "pos_embed_grid_size": (5, 5)}
    return lambda: NaFlexVit(NaFlexVitCfg(**{**size, **options}), num_classes=5, img_size=32)


def _hf(model: nn.Module, frames: Tensor, prefix: int = 0) -> Dense:
    out = model(frames)
    pooled = getattr(out, "pooler_output", None)
    return Dense(out.last_hidden_state[:, :prefix], out.last_hidden_state[:, prefix:], pooled)


def _clip_projected(model: nn.Module, frames: Tensor) -> Dense:
    out = model(frames)
    return Dense(out.last_hidden_state[:, :1], out.last_hidden_state[:, 1:], out.image_embeds)


def _clip_model(model: nn.Module, frames: Tensor) -> Dense:
    out = model.vision_model(frames)
    pooled = model.visual_projection(out.pooler_output)
    return Dense(out.last_hidden_state[:, :1], out.last_hidden_state[:, 1:], pooled)


def _classifier(tower: str, prefix: int) -> Callable[[nn.Module, Tensor], Dense]:
    """A model with a classifier on top: what goes into the classifier is what it pools."""

    def dense(model: nn.Module, frames: Tensor) -> Dense:
        heard = []
        handle = model.classifier.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
        tokens = getattr(model, tower)(frames).last_hidden_state
        model(frames)
        handle.remove()
        return Dense(tokens[:, :prefix], tokens[:, prefix:], heard[0])

    return dense


def _two_towers(family: str) -> object:
    """Configuration of a tiny model of pictures and words."""
    vision = {**_HF, "intermediate_size": 64}
    words = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    more = {"projection_dim": 8} if family == "CLIP" else {}
    return getattr(transformers, f"{family}Config")(text_config=words, vision_config=vision, **more)


def _mae(model: nn.Module, frames: Tensor) -> Dense:
    out = model(frames)
    order = out.ids_restore[..., None].expand(-1, -1, out.last_hidden_state.shape[-1])
    tokens = out.last_hidden_state
    return Dense(tokens[:, :1], tokens[:, 1:].gather(1, order), tokens[:, 0])


def _siglip2(model: nn.Module, frames: Tensor) -> Dense:
    count = frames.shape[-1] // 8
    pixels = frames.unflatten(3, (count, 8)).unflatten(2, (count, 8)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([[count, count]] * len(frames))
    out = model(
        pixel_values=pixels, pixel_attention_mask=torch.ones(pixels.shape[:2], dtype=torch.long), spatial_shapes=shapes
    )
    return Dense(out.last_hidden_state[:, :0], out.last_hidden_state, out.pooler_output)


_HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def _hf_model(model: str, config: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**{**_HF, **options}))


CASES = (
    Case("VisionTransformer, class token", "timm VisionTransformer", _vit(), _timm),
    Case("average pooling, layer scale", "timm VisionTransformer", _vit(global_pool="avg", init_values=0.5), _timm),
    Case("maximum and average pooling", "timm VisionTransformer", _vit(global_pool="avgmax"), _timm),
    Case(
        "SigLIP: attention pooling, no class token",
        "timm VisionTransformer",
        _vit(class_token=False, global_pool="map"),
        _timm,
    ),
    Case(
        "DINOv2 with registers",
        "timm VisionTransformer",
        _vit(reg_tokens=4, no_embed_class=True, init_values=1e-1),
        _timm,
    ),
    Case(
        "CLIP: norm before the blocks, patch 14",
        "timm VisionTransformer",
        _vit(pre_norm=True, patch_size=14, img_size=56),
        _timm,
    ),
    Case(
        "MAE, patch 16",
        "timm VisionTransformer",
        _vit(patch_size=16, img_size=64, global_pool="avg", fc_norm=True),
        _timm,
    ),
    Case(
        "q-k norm, attention norms",
        "timm VisionTransformer",
        _vit(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True),
        _timm,
    ),
    Case(
        "post-norm blocks, patch 32",
        "timm VisionTransformer",
        _vit(block_fn=ResPostBlock, init_values=0.5, patch_size=32, img_size=128),
        _timm,
    ),
    Case(
        "parallel scaling blocks", "timm VisionTransformer", _vit(block_fn=ParallelScalingBlock, qkv_bias=False), _timm
    ),
    Case("parallel things blocks", "timm VisionTransformer", _vit(block_fn=ParallelThingsBlock), _timm),
    Case("EVA-01: absolute positions", "timm Eva", _eva(), _timm),
    Case(
        "EVA-02: axial rotary, SwiGLU",
        "timm Eva",
        _eva(use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, qkv_fused=False, ref_feat_shape=(3, 3)),
        _timm,
    ),
    Case("post-norm EVA", "timm Eva", _eva(use_post_norm=True, use_rot_pos_emb=True), _timm),
    Case(
        "DINOv3: rotary only, registers",
        "timm Eva",
        _eva(
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_rotate_half=True,
            num_reg_tokens=4,
            no_embed_class=True,
            attn_type="rope",
            init_values=0.1,
        ),
        _timm,
    ),
    Case(
        "RoPE-ViT: mixed rotary",
        "timm Eva",
        _eva(use_rot_pos_emb=True, rope_type="mixed", rope_grid_indexing="xy", attn_type="rope", no_embed_class=True),
        _timm,
    ),
    Case(
        "Perception Encoder: attention pooling, xy rotary",
        "timm Eva",
        _eva(
            use_rot_pos_emb=True,
            global_pool="map",
            rope_grid_indexing="xy",
            rope_grid_offset=1.0,
            attn_type="rope",
            use_pre_transformer_norm=True,
        ),
        _timm,
    ),
    Case("learned positions, linear embedding", "timm NaFlexVit", _naflex(global_pool="map"), _timm),
    Case(
        "factorised positions, registers",
        "timm NaFlexVit",
        _naflex(pos_embed="factorized", global_pool="avg", fc_norm=True, reg_tokens=2),
        _timm,
    ),
    Case(
        "class token, convolutional embedding",
        "timm NaFlexVit",
        _naflex(embed_proj_type="conv", class_token=True, global_pool="token", pos_embed_ar_preserving=True),
        _timm,
    ),
    Case("axial rotary", "timm NaFlexVit", _naflex(rope_type="axial", pos_embed="none", global_pool="avg"), _timm),
    Case(
        "M-RoPE, grouped queries",
        "timm NaFlexVit",
        _naflex(
            rope_type="mrope",
            rope_mrope_section=(2, 3, 3),
            pos_embed="none",
            global_pool="avg",
            attn_type="rope",
            qkv_fused=False,
            num_kv_heads=1,
        ),
        _timm,
    ),
    Case(
        "SiglipVisionModel",
        "HF SigLIP",
        _hf_model("SiglipVisionModel", "SiglipVisionConfig", intermediate_size=64),
        _hf,
    ),
    Case(
        "Siglip2VisionModel",
        "HF SigLIP2",
        _hf_model("Siglip2VisionModel", "Siglip2VisionConfig", intermediate_size=64, num_patches=25),
        _siglip2,
    ),
    Case(
        "CLIPVisionModel",
        "HF CLIP",
        _hf_model("CLIPVisionModel", "CLIPVisionConfig", intermediate_size=64),
        lambda model, frames: _hf(model, frames, 1),
    ),
    Case(
        "CLIPVisionModelWithProjection",
        "HF CLIP",
        _hf_model("CLIPVisionModelWithProjection", "CLIPVisionConfig", intermediate_size=64, projection_dim=8),
        _clip_projected,
    ),
    Case(
        "Dinov2Model",
        "HF DINOv2",
        _hf_model("Dinov2Model", "Dinov2Config"),
        lambda model, frames: _hf(model, frames, 1),
    ),
    Case(
        "Dinov2Model, SwiGLU",
        "HF DINOv2",
        _hf_model("Dinov2Model", "Dinov2Config", use_swiglu_ffn=True),
        lambda model, frames: _hf(model, frames, 1),
    ),
    Case(
        "Dinov2WithRegistersModel",
        "HF DINOv2",
        _hf_model("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", num_register_tokens=2),
        lambda model, frames: _hf(model, frames, 3),
    ),
    Case(
        "Dinov2ForImageClassification",
        "HF DINOv2",
        _hf_model("Dinov2ForImageClassification", "Dinov2Config", num_labels=5),
        _classifier("dinov2", 1),
    ),
    Case(
        "Dinov2WithRegistersForImageClassification",
        "HF DINOv2",
        _hf_model(
            "Dinov2WithRegistersForImageClassification",
            "Dinov2WithRegistersConfig",
            num_labels=5,
            num_register_tokens=2,
        ),
        _classifier("dinov2_with_registers", 3),
    ),
    Case(
        "DINOv3ViTModel",
        "HF DINOv3",
        _hf_model("DINOv3ViTModel", "DINOv3ViTConfig", intermediate_size=64, num_register_tokens=4),
        lambda model, frames: _hf(model, frames, 5),
    ),
    Case(
        "DINOv3ViTModel, gated MLP",
        "HF DINOv3",
        _hf_model("DINOv3ViTModel", "DINOv3ViTConfig", intermediate_size=64, num_register_tokens=0, use_gated_mlp=True),
        lambda model, frames: _hf(model, frames, 1),
    ),
    Case(
        "ViTModel",
        "HF ViT",
        _hf_model("ViTModel", "ViTConfig", intermediate_size=64),
        lambda model, frames: _hf(model, frames, 1),
    ),
    Case(
        "ViTForImageClassification",
        "HF ViT",
        _hf_model("ViTForImageClassification", "ViTConfig", intermediate_size=64, num_labels=5),
        _classifier("vit", 1),
    ),
    Case(
        "ViTMSNModel",
        "HF ViT",
        _hf_model("ViTMSNModel", "ViTMSNConfig", intermediate_size=64),
        lambda model, frames: _hf(model, frames, 1),
    ),
    Case(
        "DeiTModel",
        "HF DeiT",
        _hf_model("DeiTModel", "DeiTConfig", intermediate_size=64),
        lambda model, frames: _hf(model, frames, 2),
    ),
    Case(
        "DeiTForImageClassification",
        "HF DeiT",
        _hf_model("DeiTForImageClassification", "DeiTConfig", intermediate_size=64, num_labels=5),
        _classifier("deit", 2),
    ),
    Case(
        "SiglipModel",
        "HF SigLIP",
        lambda: transformers.SiglipModel(_two_towers("Siglip")),
        lambda model, frames: _hf(model.vision_model, frames),
    ),
    Case(
        "SiglipForImageClassification",
        "HF SigLIP",
        lambda: transformers.SiglipForImageClassification(_two_towers("Siglip")),
        _classifier("vision_model", 0),
    ),
    Case(
        "CLIPModel",
        "HF CLIP",
        lambda: transformers.CLIPModel(_two_towers("CLIP")),
        _clip_model,
    ),
    Case(
        "CLIPForImageClassification",
        "HF CLIP",
        lambda: transformers.CLIPForImageClassification(_two_towers("CLIP")),
        _classifier("vision_model", 1),
    ),
    Case(
        "ViTMAEModel",
        "HF ViT-MAE",
        _hf_model("ViTMAEModel", "ViTMAEConfig", intermediate_size=64, mask_ratio=0.0),
        _mae,
    ),
)
