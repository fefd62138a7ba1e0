"""Towers of Hugging Face models: SigLIP, SigLIP2, CLIP, DINOv2 (also with registers) and ViT-MAE.

transformers renamed parts of these models between 4.51 and 5.x (`query` / `q_proj`, `output.dense` / `o_proj`, a
`vision_model` inside or not); the weights and the mathematics are the same, so parts are looked up by all their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid
from autogaze.vit import heads
from autogaze.vit.family import Attend, Tower
from autogaze.vit.features import PoolInput
from autogaze.vit.packing import pooled_attention
from autogaze.vit.positions import resize_table, square


def _part(module: nn.Module, *names: str) -> nn.Module:
    """The first part of a module that has one of these names."""
    for name in names:
        if (part := getattr(module, name, None)) is not None:
            return part
    raise ValueError(
        f"{type(module).__name__} has none of {', '.join(names)}: this version of transformers is not "
        "known (4.51 to 5.x are)"
    )


def _attention(attn: nn.Module, x: Tensor, attend: Attend) -> Tensor:
    inner = getattr(attn, "attention", attn)
    count = _part(inner, "num_heads", "num_attention_heads")
    q, k, v = (
        _part(inner, *names)(x).unflatten(-1, (count, -1))
        for names in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
    )
    out = attend(q, k, v).flatten(1)
    return _part(attn, "out_proj", "o_proj")(out) if not hasattr(attn, "output") else attn.output.dense(out)


def _layer(layer: nn.Module, x: Tensor, attend: Attend, rotary: None) -> Tensor:
    """One pre-norm layer; scale and dropout only where the family has them."""
    nothing = nn.Identity()
    drop = getattr(layer, "drop_path", getattr(layer, "dropout", nothing))
    first, second = (
        _part(layer, "layer_norm1", "norm1", "layernorm_before"),
        _part(layer, "layer_norm2", "norm2", "layernorm_after"),
    )
    attended = _attention(_part(layer, "self_attn", "attention"), first(x), attend)
    x = x + drop(getattr(layer, "layer_scale1", nothing)(attended))
    mixed = second(x)
    mixed = layer.mlp(mixed) if hasattr(layer, "mlp") else layer.output.dense(layer.intermediate(mixed))
    return x + drop(getattr(layer, "layer_scale2", nothing)(mixed))


class HfTower(Tower):
    """What the families share; `root` is the module that holds embeddings and encoder."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.config = root.config
        self.embeddings = root.embeddings
        self.layers = _part(getattr(root, "encoder", root), "layers", "layer")
        self.run_block = _layer
        self.patch_size = int(self.config.patch_size)
        self.attention_dropout = float(
            getattr(self.config, "attention_dropout", 0.0) or getattr(self.config, "attention_probs_dropout_prob", 0.0)
        )
        self.prefix_tokens = 1
        self.native_side = (self._side(),) * 2

    def _side(self) -> int:
        """Rows of the grid that the positions were trained on."""
        return int(self.config.image_size) // self.patch_size

    def _projection(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def embed(self, patches: Tensor) -> Tensor:
        proj = self._projection()
        return F.linear(patches.flatten(1).to(proj.weight.dtype), proj.weight.flatten(1), proj.bias)

    def _table(self) -> Tensor:
        """(R + S * S, D) or (S * S, D): all learned positions."""
        return self.embeddings.position_embedding.weight

    def positions(self, grid: PatchGrid) -> Tensor | None:
        own = square(self._table()[-self.native_side[0] * self.native_side[1] :])
        return torch.cat([self._resize(own, *side) for side in grid.sides])

    def _resize(self, own: Tensor, rows: int, columns: int) -> Tensor:
        return resize_table(own, rows, columns)

    def _before(self, rows: Tensor) -> Tensor:
        return rows

    def _after(self, rows: Tensor) -> Tensor:
        return rows

    def encode(self, rows: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        rows = self._before(rows)
        for layer in self.layers:
            rows = self.run_block(layer, rows, attend, rotary)
        return self._after(rows)


class SiglipTower(HfTower):
    """SigLIP, and SigLIP2 at a fixed size: no class token, attention pooling."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(root)
        self.prefix_tokens = 0

    def prefix(self) -> Tensor | None:
        return None

    def _after(self, rows: Tensor) -> Tensor:
        return self.root.post_layernorm(rows)

    def pool(self, tokens: PoolInput) -> Tensor:
        head = getattr(self.root, "head", None)
        if head is None:
            raise ValueError("this SigLIP was built without its pooling head (vision_use_head=False): use `features`")
        attn, stretches = head.attention, len(tokens.offsets) - 1
        weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (attn.num_heads, -1))
            for x, weight, bias in zip((head.probe[0], tokens.features, tokens.features), weights, biases, strict=True)
        )
        pooled = pooled_attention(q.expand(stretches, -1, -1), k, v, tokens.offsets, tokens.longest).flatten(1)
        pooled = attn.out_proj(pooled)
        return heads.empty_to_zero(pooled + head.mlp(head.layernorm(pooled)), tokens)


class Siglip2Tower(SiglipTower):
    """SigLIP2 with native aspect ratio: linear embedding of channel-last patches, bilinear positions."""

    def _side(self) -> int:
        return round(self.config.num_patches**0.5)

    def embed(self, patches: Tensor) -> Tensor:
        return self._projection()(patches.permute(0, 2, 3, 1).flatten(1).to(self._projection().weight.dtype))

    def _resize(self, own: Tensor, rows: int, columns: int) -> Tensor:
        return resize_table(own, rows, columns, "bilinear", antialias=True)


class ClipTower(HfTower):
    """CLIP: a class token, a norm before the blocks, and one after them for the class token only."""

    def __init__(self, root: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__(root)
        self.projection = projection or nn.Identity()

    def prefix(self) -> Tensor | None:
        return self.embeddings.class_embedding[None] + self._table()[:1]

    def _before(self, rows: Tensor) -> Tensor:
        return self.root.pre_layrnorm(rows)

    def pool(self, tokens: PoolInput) -> Tensor:
        return self.projection(self.root.post_layernorm(tokens.prefix[:, 0]))


class DinoTower(HfTower):
    """DINOv2, with or without registers, and ViT-MAE's encoder: a class token and a last norm."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(root)
        registers = getattr(self.embeddings, "register_tokens", None)
        self.prefix_tokens = 1 if registers is None else 1 + registers.shape[1]

    def _projection(self) -> nn.Module:
        return self.embeddings.patch_embeddings.projection

    def _table(self) -> Tensor:
        return self.embeddings.position_embeddings[0]

    def _resize(self, own: Tensor, rows: int, columns: int) -> Tensor:
        return resize_table(own, rows, columns, antialias=self.prefix_tokens > 1)

    def prefix(self) -> Tensor | None:
        token = self.embeddings.cls_token[0] + self._table()[:1]
        return token if self.prefix_tokens == 1 else torch.cat([token, self.embeddings.register_tokens[0]])

    def drop(self, rows: Tensor) -> Tensor:
        return self.embeddings.dropout(rows) if hasattr(self.embeddings, "dropout") else rows

    def _after(self, rows: Tensor) -> Tensor:
        return self.root.layernorm(rows)

    def pool(self, tokens: PoolInput) -> Tensor:
        return tokens.prefix[:, 0]


@dataclass(frozen=True)
class _Family:
    classes: tuple[str, ...]
    tower: Callable[..., HfTower]


_FAMILIES = (
    _Family(("SiglipVisionModel", "SiglipVisionTransformer", "SiglipModel"), SiglipTower),
    _Family(("Siglip2VisionModel", "Siglip2VisionTransformer", "Siglip2Model"), Siglip2Tower),
    _Family(("CLIPVisionModel", "CLIPVisionTransformer", "CLIPModel", "CLIPVisionModelWithProjection"), ClipTower),
    _Family(("Dinov2Model", "Dinov2WithRegistersModel", "ViTMAEModel"), DinoTower),
)


def tower_of_hf(model: nn.Module) -> HfTower | None:
    """The tower of a transformers model, or None if it is of no known family."""
    for family in _FAMILIES:
        if type(model).__name__ in family.classes:
            root = model
            while not hasattr(root, "embeddings"):
                root = root.vision_model
            if (projection := getattr(model, "visual_projection", None)) is not None:
                return family.tower(root, projection)
            return family.tower(root)
    return None
