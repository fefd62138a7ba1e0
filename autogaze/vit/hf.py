"""Towers of Hugging Face models: ViT, DeiT, DINOv2 (also with registers), DINOv3, SigLIP, SigLIP2, CLIP and ViT-MAE.

transformers renamed parts of these models between 4.51 and 5.x (`query` / `q_proj`, `output.dense` / `o_proj`, a
`vision_model` inside or not); the weights and the mathematics are the same, so parts are looked up by all their names.
A model with something on top (`...ForImageClassification`, CLIP with its words) is looked through to its ViT, and
pools as what is on top does. Rows are packed (M, D), or images (S, L, D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid
from autogaze.vit import heads
from autogaze.vit.family import Attend, Tower
from autogaze.vit.features import PoolInput
from autogaze.vit.packing import padded_rows, pooled_attention
from autogaze.vit.positions import resize_table, square
from autogaze.vit.rotary import dinov3_table, rotate
from autogaze.vit.wrapped import (
    Foreign,
    Part,
    check_projection,
    checkpointed,
    floating_dtype,
    is_plain,
    opened,
    plain_class,
    projected,
    run,
)


def _part(module: Foreign, *names: str) -> Foreign:
    """The first part of a module that has one of these names."""
    for name in names:
        if (part := getattr(module, name, None)) is not None:
            return part
    raise ValueError(
        f"{type(module).__name__} has none of {', '.join(names)}: this version of transformers is not "
        "known (4.51 to 5.x are)"
    )


def _attention(attn: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    out = run(opened(attn), partial(_attended, attend=attend, rotary=rotary), x)
    return out[0] if isinstance(out, tuple) else out


def _attended(attn: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> tuple[Tensor, None]:
    inside = getattr(attn, "attention", attn)
    count = _part(inside, "num_heads", "num_attention_heads")
    q, k, v = (
        _part(inside, *names)(x).unflatten(-1, (count, -1))
        for names in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
    )
    if rotary is not None:
        q, k = (rotate(y, rotary, half=True).type_as(v) for y in (q, k))
    out = attend(q, k, v).flatten(-2)
    if not hasattr(attn, "output"):
        return _part(attn, "out_proj", "o_proj")(out), None
    return getattr(attn.output, "dropout", nn.Identity())(attn.output.dense(out)), None


def _layer(layer: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    """One pre-norm layer; scale and dropout only where the family has them."""
    nothing = nn.Identity()
    drop = getattr(layer, "drop_path", getattr(layer, "dropout", nothing))
    first, second = (
        _part(layer, "layer_norm1", "norm1", "layernorm_before"),
        _part(layer, "layer_norm2", "norm2", "layernorm_after"),
    )
    attended = _attention(_part(layer, "self_attn", "attention"), first(x), attend, rotary)
    x = x + drop(getattr(layer, "layer_scale1", nothing)(attended))
    mixed = second(x)
    if hasattr(layer, "mlp"):
        mixed = layer.mlp(mixed)
    else:
        mixed = getattr(layer.output, "dropout", nothing)(layer.output.dense(layer.intermediate(mixed)))
    return x + drop(getattr(layer, "layer_scale2", nothing)(mixed))


class HfTower(Tower):
    """What the families share.

    Args:
        root: the module that holds embeddings and encoder.
        outer: the model around it, whose pooling is used; `root` itself where there is none.
    """

    library = "transformers"

    def __init__(self, root: Foreign, outer: Foreign) -> None:
        self.root, self.outer = root, outer
        self.config = root.config
        self.run_block = _layer
        self.patch_size = int(self.config.patch_size)
        self.attention_dropout = float(
            getattr(self.config, "attention_dropout", 0.0) or getattr(self.config, "attention_probs_dropout_prob", 0.0)
        )
        self.prefix_tokens = self._prefix_tokens()
        self.native_side = (self._side(),) * 2
        self.check()

    @property
    def embeddings(self) -> Foreign:
        return self.root.embeddings

    @property
    def encoder(self) -> Foreign:
        """What holds the layers; `root` itself in some versions."""
        encoder = getattr(self.root, "encoder", None)
        return self.root if encoder is None else encoder

    @property
    def layers(self) -> Foreign:
        return _part(self.encoder, "layers", "layer")

    def parts(self) -> Iterator[Part]:
        at = next((f"{name}." for name, module in self.outer.named_modules() if module is self.root and name), "")
        if self.outer is not self.root:
            yield Part("", self.outer, hooked=False)
        yield Part(at.rstrip("."), self.root, hooked=False)
        yield Part(f"{at}embeddings", self.embeddings)
        if self.encoder is not self.root:
            yield Part(f"{at}encoder", self.encoder, hooked=False)
        for index, layer in enumerate(self.layers):
            path, layer = f"{at}encoder.layers.{index}", opened(layer)
            yield Part(path, layer, block=True)
            attn = opened(_part(layer, "self_attn", "attention"))
            yield Part(f"{path}.attention", attn)
            for name in ("attention", "output"):
                if isinstance(part := getattr(attn, name, None), nn.Module):
                    yield Part(f"{path}.attention.{name}", part, hooked=False)
            if not hasattr(layer, "mlp"):
                yield Part(f"{path}.output", layer.output, hooked=False)
        if isinstance(embed := self._patch_embed(), nn.Module):
            yield Part(f"{at}embeddings.patch_embeddings", embed)

    def check(self) -> None:
        super().check()
        if isinstance(self._projection(), nn.Conv2d) or not is_plain(self._projection(), nn.Linear):
            self._check_projection()

    def _check_projection(self) -> None:
        check_projection(self._projection(), self.patch_size, "the patch embedding")

    def _prefix_tokens(self) -> int:
        return 1

    def _side(self) -> int:
        """Rows of the grid that the positions were trained on."""
        size = self.config.image_size
        return int(size if isinstance(size, int) else size[0]) // self.patch_size

    def _patch_embed(self) -> Foreign | None:
        """The module around the projection; None where there is none."""
        return None

    def _projection(self) -> Foreign:
        return self.embeddings.patch_embedding

    def start(self, build: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
        return run(self.embeddings, lambda _, patches: build(patches), patches)

    def embed(self, patches: Tensor) -> Tensor:
        around = self._patch_embed()
        if around is None:
            return projected(self._projection(), patches)
        return run(around, lambda _, patches: projected(self._projection(), patches)[:, None], patches)[:, 0]

    def _table(self) -> Tensor:
        """(R + S * S, D) or (S * S, D): all learned positions."""
        embedding = self.embeddings.position_embedding
        if is_plain(embedding, nn.Embedding):
            return embedding.weight
        return embedding(torch.arange(embedding.num_embeddings, device=self.embeddings.position_ids.device))

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
        if self.encoder is self.root:
            rows = self._layers(rows, attend, rotary)
        else:
            rows = run(self.encoder, lambda _, rows: self._layers(rows, attend, rotary), rows)
        return self._after(rows)

    def _layers(self, rows: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        for layer in self.layers:
            layer = opened(layer)
            save = bool(getattr(layer, "gradient_checkpointing", False)) and layer.training
            rows = checkpointed(save, self._block, layer, rows, attend, rotary)
        return rows

    def _block(self, layer: Foreign, rows: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        out = run(layer, lambda layer, rows: self.run_block(layer, rows, attend, rotary), rows)
        return out[0] if isinstance(out, tuple) else out

    def pool(self, tokens: PoolInput) -> Tensor:
        """As the model on top of the ViT pools, or else the ViT itself."""
        if not plain_class(self.outer).__name__.endswith("ForImageClassification"):
            return self._pool(tokens)
        return self._pool_for_classes(tokens)

    def _pool(self, tokens: PoolInput) -> Tensor:
        return tokens.prefix[:, 0]

    def _pool_for_classes(self, tokens: PoolInput) -> Tensor:
        return tokens.prefix[:, 0]


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


_TOWERS: dict[str, type[HfTower]] = {
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
    kind = _TOWERS.get(name)
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
