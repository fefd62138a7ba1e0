"""Towers of timm models: VisionTransformer, Eva (also DINOv3 and Perception Encoder) and NaFlexVit.

Written against timm 1.0.16 to 1.0.31. Every block of these models is token-wise but for its attention, so each
function below is the block's formula with attention handed in. Rows are packed (M, D), or images (S, L, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid
from autogaze.vit.attention import pooled_attention
from autogaze.vit.features import PoolInput
from autogaze.vit.towers import heads
from autogaze.vit.towers.positions import resize_table
from autogaze.vit.towers.rotary import rotary_table, rotate
from autogaze.vit.towers.tower import Attend, Tower
from autogaze.vit.towers.wrapped import (
    Foreign,
    Part,
    check_projection,
    checkpointed,
    floating_dtype,
    opened,
    plain_class,
    projected,
    run,
)


def _attention(attn: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    """timm's Attention, EvaAttention and AttentionRope."""
    return run(opened(attn), partial(_attended, attend=attend, rotary=rotary), x)


def _attended(attn: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    if getattr(attn, "qkv", None) is None:
        size = attn.q_proj.out_features // attn.num_heads
        q, k, v = (proj(x).unflatten(-1, (-1, size)) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
    else:
        together = attn.qkv(x)  # the module, not its weight: an adapter may stand in its place
        if getattr(attn, "q_bias", None) is not None:
            together = together + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        q, k, v = together.unflatten(-1, (3, attn.num_heads, -1)).unbind(-3)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rotary is not None:
        half = bool(getattr(attn, "rotate_half", False))
        q, k = rotate(q, rotary, half).type_as(v), rotate(k, rotary, half).type_as(v)
    if k.shape[-2] != q.shape[-2]:  # grouped queries
        k, v = (y.repeat_interleave(q.shape[-2] // k.shape[-2], dim=-2) for y in (k, v))
    out = attn.norm(attend(q.type_as(v), k.type_as(v), v).flatten(-2))
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out))


def _pre_norm(block: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    x = x + block.drop_path1(block.ls1(_attention(block.attn, block.norm1(x), attend, rotary)))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _post_norm(block: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    x = x + block.drop_path1(block.norm1(_attention(block.attn, x, attend, rotary)))
    return x + block.drop_path2(block.norm2(block.mlp(x)))


def _eva(block: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    attended = _attention(block.attn, block.norm1(x), attend, rotary)
    x = x + block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)
    mixed = block.mlp(block.norm2(x))
    return x + block.drop_path2(mixed if block.gamma_2 is None else block.gamma_2 * mixed)


def _parallel_things(block: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    x = x + sum(part.drop_path(part.ls(_attention(part.attn, part.norm(x), attend, rotary))) for part in block.attns)
    return x + sum(part(x) for part in block.ffns)


def _parallel_scaling(block: Foreign, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    x_in, old_bias = block.in_norm(x), getattr(block, "qkv_bias", None)
    mixed = block.in_proj(x_in)
    if old_bias is not None:  # timm before 1.0.26 adds its bias in this order
        mixed = mixed + torch.cat([old_bias, block.mlp_bias])
    mixed, q, k, v = mixed.split(block.in_split, dim=-1)
    if old_bias is None and block.mlp_bias is not None:
        mixed = mixed + block.mlp_bias
    q, k, v = (y.unflatten(-1, (block.num_heads, -1)) for y in (q, k, v))
    attended = attend(block.q_norm(q), block.k_norm(k), v).flatten(-2)
    mixed = block.mlp_drop(block.mlp_act(mixed))
    if getattr(block, "out_proj", None) is not None:
        out = block.out_proj(torch.cat([attended, mixed], dim=-1))
    else:
        out = block.attn_out_proj(attended) + block.mlp_out_proj(mixed)
    return x + block.drop_path(block.ls(out))


_BLOCKS = {
    "Block": _pre_norm,
    "ResPostBlock": _post_norm,
    "EvaBlock": _eva,
    "EvaBlockPostNorm": _post_norm,
    "ParallelThingsBlock": _parallel_things,
    "ParallelScalingBlock": _parallel_scaling,
}
_STACKS = ("Sequential", "ModuleList")
_ATTENTIONS = ("Attention", "EvaAttention", "AttentionRope")


class TimmTower(Tower):
    """The tower that the three timm families share: blocks, norms and pooling."""

    library = "timm"

    def __init__(self, model: Foreign) -> None:
        self.root = self.model = model
        self.run_block = _BLOCKS[self._kind_of_blocks()]
        self.prefix_tokens = model.num_prefix_tokens
        self.attention_dropout = max(_dropout(block) for block in model.blocks)
        self.check()

    def parts(self) -> Iterator[Part]:
        yield Part("", self.root, hooked=False)
        yield Part("blocks", self.model.blocks, _STACKS, hooked=False)
        if (drop := getattr(self.model, "patch_drop", None)) is not None:
            yield Part("patch_drop", drop, ("Identity",), hooked=False)
        for index, block in enumerate(self.model.blocks):
            yield Part(f"blocks.{index}", opened(block), tuple(_BLOCKS), block=True)
            for path, attn in _attentions(block):
                yield Part(f"blocks.{index}.{path}", opened(attn), _ATTENTIONS)
        if (pool := getattr(self.model, "attn_pool", None)) is not None:
            yield Part("attn_pool", pool, hooked=False)

    def check(self) -> None:
        drop = getattr(self.model, "patch_drop", None)
        if drop is not None and not isinstance(drop, nn.Identity):
            raise ValueError(
                "this ViT drops random patches in training (patch_drop_rate): a gaze chooses them instead; "
                "build it with patch_drop_rate=0"
            )
        self._kind_of_blocks()
        super().check()

    def _kind_of_blocks(self) -> str:
        if (stack := plain_class(self.model.blocks).__name__) not in _STACKS:
            raise ValueError(f"GazedViT needs the blocks of a ViT in one of {', '.join(_STACKS)}, got {stack}")
        kinds = {plain_class(opened(block)).__name__ for block in self.model.blocks}
        if len(kinds) != 1:
            raise ValueError(f"GazedViT needs blocks of one kind, got {sorted(kinds)}")
        kind = kinds.pop()
        if kind not in _BLOCKS:
            raise ValueError(f"GazedViT does not know blocks of {kind}; it knows {', '.join(_BLOCKS)}")
        return kind

    def encode(self, rows: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        rows = self.model.norm_pre(rows)
        save = bool(getattr(self.model, "grad_checkpointing", False))
        for index, block in enumerate(self.model.blocks):
            angles = rotary
            if rotary is not None and rotary.ndim == rows.ndim + 2:  # its own angles in every block
                angles = rotary.select(-3, index)
            rows = checkpointed(save, self._block, opened(block), rows, attend, angles)
        return self.model.norm(rows)

    def _block(self, block: Foreign, rows: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        return run(block, lambda block, rows: self.run_block(block, rows, attend, rotary), rows)

    def rotary(self, grid: PatchGrid) -> Tensor | None:
        rope = getattr(self.model, "rope", None)
        return None if rope is None else rotary_table(rope, grid)

    def pools_prefix(self) -> bool:
        """Whether pooling sees class and register tokens too."""
        return self.model.pool_include_prefix

    def pool(self, tokens: PoolInput) -> Tensor:
        model = self.model
        pooled_over = heads.with_prefix(tokens) if self.pools_prefix() else tokens
        if model.attn_pool is not None:
            pooled = _attention_pool(model.attn_pool, pooled_over)
        elif model.global_pool == "token":
            pooled = tokens.prefix[:, 0]
        elif model.global_pool == "avg":
            pooled = heads.mean(pooled_over)
        elif model.global_pool == "max":
            pooled = heads.largest(pooled_over)
        elif model.global_pool == "avgmax":
            pooled = (heads.largest(pooled_over) + heads.mean(pooled_over)) / 2
        else:
            raise ValueError(
                "this ViT was built without pooling (global_pool=''): use `features`, or build it with one"
            )
        pooled = model.head_drop(model.fc_norm(pooled))
        return pooled if self.prefix_tokens else heads.empty_to_zero(pooled, tokens)


class VisionTransformerTower(TimmTower):
    """timm's VisionTransformer: base, DeiT-III, SigLIP, DINOv2 with and without registers, CLIP, MAE ..."""

    def __init__(self, model: Foreign) -> None:
        embed = model.patch_embed
        if plain_class(embed).__name__ != "PatchEmbed":
            raise ValueError(
                f"GazedViT needs a patch embedding that sees one patch at a time, got {plain_class(embed).__name__}"
            )
        if embed.patch_size[0] != embed.patch_size[1]:
            raise ValueError(f"GazedViT needs square patches, got {tuple(embed.patch_size)}")
        self.patch_size = embed.patch_size[0]
        self.native_side = embed.grid_size
        self._no_embed_class = getattr(model, "no_embed_class", False)  # Eva has it from timm 1.0.20
        super().__init__(model)

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        yield Part("patch_embed", self.model.patch_embed, ("PatchEmbed",))

    def check(self) -> None:
        super().check()
        check_projection(self.model.patch_embed.proj, self.patch_size, "patch_embed.proj")

    def embed(self, patches: Tensor) -> Tensor:
        def formula(embed: Foreign, patches: Tensor) -> Tensor:
            return embed.norm(projected(embed.proj, patches))[:, None]  # as of images of one patch

        return run(self.model.patch_embed, formula, patches)[:, 0]

    def drop(self, rows: Tensor) -> Tensor:
        return self.model.pos_drop(rows)

    def positions(self, grid: PatchGrid) -> Tensor | None:
        if self.model.pos_embed is None:
            return None
        table = self.model.pos_embed[0]
        own = table if self._no_embed_class else table[self.prefix_tokens :]
        own = own.unflatten(0, tuple(self.native_side))
        return torch.cat([resize_table(own, *side, antialias=True) for side in grid.sides])

    def prefix(self) -> Tensor | None:
        model = self.model
        tokens = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
        if not tokens:
            return None
        prefix = torch.cat(tokens)
        if model.pos_embed is None or self._no_embed_class:
            return prefix
        return prefix + model.pos_embed[0, : self.prefix_tokens]


class EvaTower(VisionTransformerTower):
    """timm's Eva: EVA-01/02, DINOv3, Perception Encoder, RoPE-ViT."""

    def pools_prefix(self) -> bool:
        return self.model.attn_pool is not None


class NaFlexTower(TimmTower):
    """timm's NaFlexVit: learned or factorised positions, linear or convolutional embedding."""

    def __init__(self, model: Foreign) -> None:
        embeds = model.embeds
        self.patch_size = embeds.patch_size[0]
        if embeds.patch_size[0] != embeds.patch_size[1]:
            raise ValueError(f"GazedViT needs square patches, got {tuple(embeds.patch_size)}")
        self.native_side = embeds.pos_embed_grid_size or (16, 16)
        super().__init__(model)

    @property
    def embeds(self) -> Foreign:
        return self.model.embeds

    def parts(self) -> Iterator[Part]:
        yield from super().parts()
        yield Part("embeds", self.embeds, ("NaFlexEmbeds",), hooked=False)

    def check(self) -> None:
        super().check()
        if not self.embeds.is_linear:
            check_projection(self.embeds.proj, self.patch_size, "embeds.proj")

    def embed(self, patches: Tensor) -> Tensor:
        return run(self.embeds, lambda _, patches: self._embed(patches), patches)

    def _embed(self, patches: Tensor) -> Tensor:
        embeds = self.embeds
        if not embeds.is_linear:
            return embeds.norm(projected(embeds.proj, patches))
        patches = patches.to(floating_dtype(embeds.proj, embeds))
        patches = patches.permute(0, 2, 3, 1) if getattr(embeds, "channels_last", True) else patches
        flat = patches.flatten(1)
        return embeds.norm(embeds.proj(flat if embeds.norm_input is None else embeds.norm_input(flat)))

    def drop(self, rows: Tensor) -> Tensor:
        return self.embeds.pos_drop(rows)

    def positions(self, grid: PatchGrid) -> Tensor | None:
        if self.embeds.pos_embed_type == "none":
            return None
        return torch.cat([self._of_side(*side) for side in grid.sides])

    def _of_side(self, rows: int, columns: int) -> Tensor:
        embeds = self.embeds
        height, width = (max(rows, columns),) * 2 if embeds.pos_embed_ar_preserving else (rows, columns)
        if embeds.pos_embed_type == "factorized":
            down, right = (
                F.interpolate(table.mT.float(), size, mode="linear").mT[0] if table.shape[1] != size else table[0]
                for table, size in ((embeds.pos_embed_y, height), (embeds.pos_embed_x, width))
            )
            return (down[:rows, None] + right[None, :columns]).flatten(0, 1)
        own = embeds.pos_embed[0]
        if own.shape[:2] == (rows, columns):
            return own.flatten(0, 1)
        table = resize_table(
            own,
            height,
            width,
            embeds.pos_embed_interp_mode,
            getattr(embeds, "pos_embed_antialias", True),
            getattr(embeds, "pos_embed_align_corners", False),
        )
        return table.unflatten(0, (height, width))[:rows, :columns].flatten(0, 1)

    def prefix(self) -> Tensor | None:
        tokens = [token[0] for token in (self.embeds.cls_token, self.embeds.reg_token) if token is not None]
        return torch.cat(tokens) if tokens else None


TOWERS: dict[str, type[TimmTower]] = {
    "VisionTransformer": VisionTransformerTower,
    "Eva": EvaTower,
    "NaFlexVit": NaFlexTower,
}


def _attention_pool(pool: Foreign, tokens: PoolInput) -> Tensor:
    """timm's AttentionPoolLatent over packed rows."""
    if type(pool).__name__ != "AttentionPoolLatent" or pool.pos_embed is not None or pool.latent_len != 1:
        raise ValueError(f"pooling by {type(pool).__name__} needs every patch of an image; use `features` or `dense()`")
    stretches = len(tokens.offsets) - 1
    q = pool.q_norm(pool.q(pool.latent[0]).unflatten(-1, (pool.num_heads, -1))).expand(stretches, -1, -1)
    k, v = pool.kv(tokens.features).unflatten(-1, (2, pool.num_heads, -1)).unbind(1)
    pooled = pool.proj_drop(
        pool.proj(pooled_attention(q, pool.k_norm(k), v, tokens.offsets, tokens.longest).flatten(1))
    )
    return pooled if pool.mlp is None else pooled + pool.mlp(pool.norm(pooled))


def _attentions(block: Foreign) -> Iterator[tuple[str, nn.Module]]:
    """(path inside the block, attention); none where the block itself attends."""
    block = opened(block)
    if plain_class(block).__name__ == "ParallelThingsBlock":
        for index, part in enumerate(block.attns):
            yield f"attns.{index}.attn", part.attn
    elif getattr(block, "attn", None) is not None:
        yield "attn", block.attn


def _dropout(block: Foreign) -> float:
    """Attention dropout of a block."""
    return max((module.p for name, module in block.named_modules() if name.endswith("attn_drop")), default=0.0)
