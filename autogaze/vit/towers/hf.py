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

from autogaze.core.grid import PatchGrid
from autogaze.vit.features import PoolInput
from autogaze.vit.towers.positions import resize_table, square
from autogaze.vit.towers.rotary import rotate
from autogaze.vit.towers.tower import Attend, Tower
from autogaze.vit.towers.wrapped import (
    Foreign,
    Part,
    check_projection,
    checkpointed,
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
    """The tower that families of transformers share.

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
        """The module that holds the layers; `root` itself in some versions."""
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
