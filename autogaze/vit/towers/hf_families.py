"""Families of transformers: what each does otherwise than `HfTower`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid
from autogaze.vit.attention import pooled_attention
from autogaze.vit.features import PoolInput
from autogaze.vit.packing import padded_rows
from autogaze.vit.towers import heads
from autogaze.vit.towers.hf import HfTower
from autogaze.vit.towers.positions import resize_table
from autogaze.vit.towers.rotary import dinov3_table
from autogaze.vit.towers.wrapped import Foreign, Part, floating_dtype, plain_class, run


class SiglipTower(HfTower):
    """SigLIP, and SigLIP2 at a fixed size: no class token, attention pooling."""

    def _prefix_tokens(self) -> int:
        return 0

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        if (head := getattr(self.root, "head", None)) is not None:
            yield Part("head", head, hooked=False)

    def prefix(self) -> Tensor | None:
        return None

    def _after(self, rows: Tensor) -> Tensor:
        return self.root.post_layernorm(rows)

    def _pool(self, tokens: PoolInput) -> Tensor:
        head = getattr(self.root, "head", None)
        if head is None:
            raise ValueError("this SigLIP was built without its pooling head (vision_use_head=False): use `features`")
        return run(head, self._attention_pool, tokens)

    def _attention_pool(self, head: Foreign, tokens: PoolInput) -> Tensor:
        attn, stretches = head.attention, len(tokens.offsets) - 1
        if not _plain_multihead(attn):  # an adapter or a hook: called as it is, on stretches padded to one length
            rows, valid = padded_rows(tokens.offsets, tokens.longest, len(tokens.features))
            keys = tokens.features[rows]
            seen = valid | ~valid.any(1, keepdim=True)  # an empty stretch must see something, or it gives NaN
            pooled = attn(head.probe.expand(stretches, -1, -1), keys, keys, key_padding_mask=~seen)[0][:, 0]
        else:
            weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
            q, k, v = (
                F.linear(x, weight, bias).unflatten(-1, (attn.num_heads, -1))
                for x, weight, bias in zip(
                    (head.probe[0], tokens.features, tokens.features), weights, biases, strict=True
                )
            )
            pooled = pooled_attention(q.expand(stretches, -1, -1), k, v, tokens.offsets, tokens.longest).flatten(1)
            # its weight, as torch does: what stands in place of this layer is skipped by the dense model too
            pooled = F.linear(pooled, attn.out_proj.weight, attn.out_proj.bias)
        return heads.empty_to_zero(pooled + head.mlp(head.layernorm(pooled)), tokens)

    def _pool_for_classes(self, tokens: PoolInput) -> Tensor:
        return heads.mean(tokens)


class Siglip2Tower(SiglipTower):
    """SigLIP2 with native aspect ratio: linear embedding of channel-last patches, bilinear positions."""

    def _side(self) -> int:
        return round(self.config.num_patches**0.5)

    def _check_projection(self) -> None:
        return  # a linear layer over the pixels of one patch, whatever stands in its place

    def embed(self, patches: Tensor) -> Tensor:
        layer = self._projection()
        return layer(patches.permute(0, 2, 3, 1).flatten(1).to(floating_dtype(layer, self.root)))

    def _resize(self, own: Tensor, rows: int, columns: int) -> Tensor:
        return resize_table(own, rows, columns, "bilinear", antialias=True)


class ClipTower(HfTower):
    """CLIP: a class token, a norm before the blocks, and one after them for the class token only."""

    def prefix(self) -> Tensor | None:
        return self.embeddings.class_embedding[None] + self._table()[:1]

    def _before(self, rows: Tensor) -> Tensor:
        return self.root.pre_layrnorm(rows)

    def _pool(self, tokens: PoolInput) -> Tensor:
        projection = getattr(self.outer, "visual_projection", None) or nn.Identity()
        return projection(self.root.post_layernorm(tokens.prefix[:, 0]))

    def _pool_for_classes(self, tokens: PoolInput) -> Tensor:
        return heads.mean(tokens)


class ViTTower(HfTower):
    """ViT, DeiT, ViT-MSN and ViT-MAE's encoder: a class token (DeiT: two), a last norm, sometimes a pooler."""

    def _prefix_tokens(self) -> int:
        return 2 if getattr(self.embeddings, "distillation_token", None) is not None else 1

    def _patch_embed(self) -> Foreign | None:
        return self.embeddings.patch_embeddings

    def _projection(self) -> Foreign:
        return self.embeddings.patch_embeddings.projection

    def _table(self) -> Tensor:
        return self.embeddings.position_embeddings[0]

    def prefix(self) -> Tensor | None:
        tokens = [self.embeddings.cls_token[0]]
        if self.prefix_tokens == 2:
            tokens.append(self.embeddings.distillation_token[0])
        return torch.cat(tokens) + self._table()[: self.prefix_tokens]

    def drop(self, rows: Tensor) -> Tensor:
        return self.embeddings.dropout(rows) if hasattr(self.embeddings, "dropout") else rows

    def _after(self, rows: Tensor) -> Tensor:
        return self.root.layernorm(rows)

    def _pool(self, tokens: PoolInput) -> Tensor:
        pooler = getattr(self.root, "pooler", None)
        return tokens.prefix[:, 0] if pooler is None else pooler(tokens.prefix)


class Dinov2Tower(ViTTower):
    """DINOv2, with or without registers."""

    def _prefix_tokens(self) -> int:
        registers = getattr(self.embeddings, "register_tokens", None)
        return 1 if registers is None else 1 + registers.shape[1]

    def _resize(self, own: Tensor, rows: int, columns: int) -> Tensor:
        return resize_table(own, rows, columns, antialias=self.prefix_tokens > 1)

    def prefix(self) -> Tensor | None:
        token = self.embeddings.cls_token[0] + self._table()[:1]
        return token if self.prefix_tokens == 1 else torch.cat([token, self.embeddings.register_tokens[0]])

    def _pool_for_classes(self, tokens: PoolInput) -> Tensor:
        return torch.cat([tokens.prefix[:, 0], heads.mean(tokens)], dim=-1)


class Dinov3Tower(HfTower):
    """DINOv3: rotary positions alone, a class token and registers."""

    def _prefix_tokens(self) -> int:
        return 1 + self.embeddings.register_tokens.shape[1]

    @property
    def encoder(self) -> Foreign:
        encoder = getattr(self.root, "model", None)
        return self.root if encoder is None else encoder

    def _projection(self) -> Foreign:
        return self.embeddings.patch_embeddings

    def positions(self, grid: PatchGrid) -> Tensor | None:
        return None

    def rotary(self, grid: PatchGrid) -> Tensor | None:
        return dinov3_table(self.root.rope_embeddings.inv_freq, grid)

    def prefix(self) -> Tensor | None:
        return torch.cat([self.embeddings.cls_token[0], self.embeddings.register_tokens[0]])

    def _after(self, rows: Tensor) -> Tensor:
        return self.root.norm(rows)


TOWERS: dict[str, type[HfTower]] = {
    "SiglipVisionModel": SiglipTower,
    "SiglipVisionTransformer": SiglipTower,
    "Siglip2VisionModel": Siglip2Tower,
    "Siglip2VisionTransformer": Siglip2Tower,
    "CLIPVisionModel": ClipTower,
    "CLIPVisionTransformer": ClipTower,
    "ViTModel": ViTTower,
    "ViTMSNModel": ViTTower,
    "ViTMAEModel": ViTTower,
    "DeiTModel": ViTTower,
    "Dinov2Model": Dinov2Tower,
    "Dinov2WithRegistersModel": Dinov2Tower,
    "DINOv3ViTModel": Dinov3Tower,
}
# What stands on top of a ViT, and the attribute that holds it.
_OUTER = {
    "SiglipModel": "vision_model",
    "SiglipForImageClassification": "vision_model",
    "Siglip2Model": "vision_model",
    "Siglip2ForImageClassification": "vision_model",
    "CLIPModel": "vision_model",
    "CLIPVisionModelWithProjection": "vision_model",
    "CLIPForImageClassification": "vision_model",
    "ViTForImageClassification": "vit",
    "ViTForMaskedImageModeling": "vit",
    "ViTMSNForImageClassification": "vit",
    "ViTMAEForPreTraining": "vit",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "DeiTForMaskedImageModeling": "deit",
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
}


def tower_of_hf(model: Foreign) -> HfTower | None:
    """The tower of a transformers model, or None if it is of no known family."""
    root, name = model, plain_class(model).__name__
    if name in _OUTER:
        root = getattr(model, _OUTER[name])
        name = plain_class(root).__name__
    kind = TOWERS.get(name)
    if kind is None:
        return None
    while not hasattr(root, "embeddings"):  # before transformers 5 a `vision_model` inside
        root = root.vision_model
    return kind(root, model)


def _plain_multihead(attn: Foreign) -> bool:
    """Whether this is torch's own attention with nothing on it."""
    return (
        type(attn) is nn.MultiheadAttention
        and not (attn._forward_pre_hooks or attn._forward_hooks or "forward" in attn.__dict__)
        and type(attn.in_proj_weight) in (Tensor, nn.Parameter)
    )
