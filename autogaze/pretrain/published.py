"""The published reconstructor: a multi-scale masked auto-encoder for video, causal over frames (VideoMAE).

Reads published checkpoints (Hugging Face names of ViT-MAE) and reproduces their numbers. Ours is in
`reconstructor.py`; this one exists so that published judges can be used.

The encoder sees a class token and the gazed patches of every scale; each token sees its own and earlier frames. The
decoder sees the encoded tokens of the other frames and, for every frame to be rebuilt, all ids of that frame: a gazed
id carries its encoded token, the others the mask token. Only the finest scale's prediction makes the image.

Quirks that the numbers depend on: the class token sees only itself and is seen by all; padding is never a key;
positions of the encoder are resized as a picture, those of the decoder as a line of token indices, both bicubic.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.reconstructor.losses import l1


@dataclass(frozen=True)
class PublishedConfig:
    """What of the published `config.json` the numbers depend on."""

    scales: tuple[int, ...]
    patch_size: int
    image_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    decoder_hidden_size: int
    decoder_num_hidden_layers: int
    decoder_num_attention_heads: int
    decoder_intermediate_size: int
    layer_norm_eps: float
    max_num_frames: int
    qkv_bias: bool = True

    @classmethod
    def from_json(cls, path: str | Path) -> PublishedConfig:
        """Read a published `config.json`.

        Raises:
            ValueError: if it lacks a field, or asks for something that this class does not do.
        """
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        for key, value in {
            "causal": True,
            "scale_embed": True,
            "time_embed": True,
            "norm_pix_loss": False,
            "hidden_act": "gelu",
            "num_channels": 3,
        }.items():
            if data.get(key, value) != value:
                raise ValueError(f"{path}: only {key} = {value} is supported, got {data[key]!r}")
        try:
            return cls(
                scales=PatchGrid.parse(data["scales"]).scales,
                **{key: data[key] for key in cls.__dataclass_fields__ if key not in ("scales", "qkv_bias")},
                qkv_bias=data.get("qkv_bias", True),
            )
        except KeyError as error:
            raise ValueError(f"{path} is not the config of a published reconstructor: it lacks {error}") from error

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.scales, self.patch_size)


@dataclass(frozen=True, eq=False)
class PublishedReconstruction:
    """Rebuilt frames and their loss."""

    reconstruction: Tensor  # (B, R, 3, H, W) float
    loss_each_reconstruction_frame: Tensor  # (B, R) mean absolute error


class Layer(nn.Module):
    """A transformer layer under its Hugging Face names."""

    def __init__(self, width: int, heads: int, inner: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        projections = nn.ModuleDict({name: nn.Linear(width, width, bias=bias) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict(
            {"attention": projections, "output": nn.ModuleDict({"dense": nn.Linear(width, width)})}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width)})
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, sees: Tensor) -> Tensor:
        """x (B, N, width), sees (B, 1, N, N) bool."""
        normed, attention = self.layernorm_before(x), self.attention["attention"]
        q, k, v = (
            attention[name](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=sees).transpose(1, 2).flatten(2)
        x = x + self.attention["output"]["dense"](seen)
        return x + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class Embeddings(nn.Module):
    """Parameters of the encoder's input."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        width, patch, places = config.hidden_size, config.patch_size, (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, patch)})
        self.position_embeddings = nn.Parameter(torch.zeros(1, places + 1, width))
        self.scale_embed = nn.Parameter(torch.zeros(len(config.scales), width))
        self.time_embed = nn.Parameter(torch.zeros(config.max_num_frames, width))


class Encoder(nn.Module):
    """The published `vit`."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict(
            {
                "layer": nn.ModuleList(
                    Layer(
                        config.hidden_size,
                        config.num_attention_heads,
                        config.intermediate_size,
                        config.layer_norm_eps,
                        config.qkv_bias,
                    )
                    for _ in range(config.num_hidden_layers)
                )
            }
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class Decoder(nn.Module):
    """The published `decoder`."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        width, places = config.decoder_hidden_size, (config.image_size // config.patch_size) ** 2
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, places + 1, width))
        self.decoder_scale_embed = nn.Parameter(torch.zeros(len(config.scales), width))
        self.time_embed = nn.Parameter(torch.zeros(config.max_num_frames, width))
        self.decoder_layers = nn.ModuleList(
            Layer(
                width,
                config.decoder_num_attention_heads,
                config.decoder_intermediate_size,
                config.layer_norm_eps,
                config.qkv_bias,
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.decoder_pred = nn.Linear(width, 3 * config.patch_size**2)


class PublishedReconstructor(nn.Module):
    """Multi-scale VideoMAE that rebuilds chosen frames from a gaze."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__()
        self.config, self.grid = config, config.grid
        self.vit, self.decoder = Encoder(config), Decoder(config)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config: str = "config.json", weights: str = "model.safetensors"
    ) -> PublishedReconstructor:
        """Load a published checkpoint.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if they do not fit together.
        """
        for name in (config, weights):
            if not (Path(folder) / name).is_file():
                raise FileNotFoundError(f"{folder} holds no published reconstructor: {name} is missing")
        model = cls(PublishedConfig.from_json(Path(folder) / config))
        missing, extra = model.load_state_dict(load_file(Path(folder) / weights), strict=False)
        if missing or extra:
            raise ValueError(
                f"{Path(folder) / weights} does not fit its config: missing {missing[:3]}, unknown {extra[:3]}"
            )
        return model.eval()

    def forward(
        self, video: Tensor, gaze: Gaze | dict[str, Any], frame_idx_to_reconstruct: Sequence[int] | Tensor | None = None
    ) -> PublishedReconstruction:
        """Rebuild frames.

        Args:
            video: (B, T, 3, H, W) float of the largest scale.
            gaze: of the same clips, or the published dict of one.
            frame_idx_to_reconstruct: frames, in any order; None: all.

        Raises:
            ValueError: if the shapes do not fit.
        """
        gaze = Gaze.from_gazing_info(gaze, self.grid) if isinstance(gaze, dict) else gaze
        clips, frames, slots = gaze.ids.shape
        if video.shape[:2] != (clips, frames) or frames > self.config.max_num_frames:
            raise ValueError(
                f"video and gaze must be of the same clips of at most {self.config.max_num_frames} "
                f"frames, got {tuple(video.shape)} and {tuple(gaze.ids.shape)}"
            )
        wanted = range(frames) if frame_idx_to_reconstruct is None else frame_idx_to_reconstruct
        rebuilt = torch.as_tensor(wanted, device=video.device)
        if len(rebuilt) == 0 or int(rebuilt.min()) < 0 or int(rebuilt.max()) >= frames:
            raise ValueError(f"frame_idx_to_reconstruct must name some of the frames 0 to {frames - 1}, got {wanted}")
        ids, valid = gaze.ids.flatten(1), gaze.chosen.flatten(1)
        when = torch.arange(frames, device=video.device).repeat_interleave(slots)
        encoded = self._encode(video, ids, valid, when)
        predicted = self._decode(encoded, ids, valid, when, rebuilt)
        images = self._images(predicted)
        return PublishedReconstruction(images, l1(images, video[:, rebuilt]))

    def _encode(self, video: Tensor, ids: Tensor, valid: Tensor, when: Tensor) -> Tensor:
        """(B, 1 + N, hidden): the class token and the gazed patches."""
        embeddings = self.vit.embeddings
        patches = self._embed_patches(video)  # (B, T, patches, hidden)
        clip = torch.arange(len(ids), device=ids.device)[:, None]
        x = patches[clip, when, ids] + embeddings.time_embed[when]
        class_token = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        x = torch.cat([class_token.expand(len(ids), -1, -1), x], dim=1)
        first = valid.new_ones(len(ids), 1)
        sees = causal_sight(torch.cat([when.new_full((1,), -1), when]), torch.cat([first, valid], 1))
        for layer in self.vit.encoder["layer"]:
            x = layer(x, sees)
        return self.vit.layernorm(x)

    def _embed_patches(self, video: Tensor) -> Tensor:
        """Every patch of every scale, with position and scale: (B, T, patches_per_frame, hidden)."""
        embeddings, parts = self.vit.embeddings, []
        places = embeddings.position_embeddings[0, 1:]
        side = self.config.image_size // self.config.patch_size
        picture = places.T.unflatten(-1, (side, side))[None]
        for k, scale in enumerate(self.config.scales):
            frames = _resize(video.flatten(0, 1), scale)
            tokens = embeddings.patch_embeddings["projection"](frames).flatten(2).mT
            position = _resize(picture, scale // self.config.patch_size).flatten(2)[0].T
            parts.append(tokens + position + embeddings.scale_embed[k])
        return torch.cat(parts, dim=1).unflatten(0, video.shape[:2])

    def _decode(self, encoded: Tensor, ids: Tensor, valid: Tensor, when: Tensor, rebuilt: Tensor) -> Tensor:
        """Predicted patches (B, R, patches of the finest scale, 3 * patch * patch) of the rebuilt frames."""
        decoder, patches = self.decoder, self.grid.patches_per_frame
        x, clips = decoder.decoder_embed(encoded), len(ids)
        position = self._decoder_positions()
        gazed = x[:, 1:] + position[ids] + decoder.time_embed[when]
        asked = decoder.mask_token.expand(clips, len(rebuilt), patches, -1).clone()
        clip, slot = valid.nonzero(as_tuple=True)
        for r, frame in enumerate(rebuilt):
            inside = when[slot] == frame
            asked[clip[inside], r, ids[clip[inside], slot[inside]]] = x[clip[inside], slot[inside] + 1]
        asked = asked + position + decoder.time_embed[rebuilt][:, None]
        x = torch.cat([x[:, :1] + decoder.decoder_pos_embed[:, :1], gazed, asked.flatten(1, 2)], dim=1)
        times = torch.cat([when.new_full((1,), -1), when, rebuilt.repeat_interleave(patches)])
        elsewhere = valid & ~(when[:, None] == rebuilt).any(1)  # a rebuilt frame's gazes are among its ids already
        known = torch.cat([valid.new_ones(clips, 1), elsewhere, valid.new_ones(clips, len(rebuilt) * patches)], dim=1)
        sees = causal_sight(times, known)
        for layer in decoder.decoder_layers:
            x = layer(x, sees)
        x = decoder.decoder_norm(x[:, 1 + ids.shape[1] :]).unflatten(1, (len(rebuilt), patches))
        return decoder.decoder_pred(x[:, :, self.grid.offsets[-1] :])

    def _decoder_positions(self) -> Tensor:
        """(patches_per_frame, width): positions stretched as a line, plus the scale."""
        line = self.decoder.decoder_pos_embed[0, 1:].T[None, :, None]  # (1, width, 1, places)
        parts = []
        for k, count in enumerate(self.grid.patches_per_scale):
            stretched = F.interpolate(line, (1, count), mode="bicubic", align_corners=False)
            parts.append(stretched[0, :, 0].T + self.decoder.decoder_scale_embed[k])
        return torch.cat(parts)

    def _images(self, predicted: Tensor) -> Tensor:
        """Patches (row, column, channel) to pictures (B, R, 3, H, W)."""
        patch = self.config.patch_size
        grid = predicted.unflatten(-1, (patch, patch, 3)).unflatten(2, self.grid.sides[-1])
        return grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(-4, -3).flatten(-2)


def causal_sight(times: Tensor, known: Tensor) -> Tensor:
    """(B, 1, N, N) bool: who sees whom, by frame; the class token (time -1) sees itself, padding is seen by none."""
    sees = (times[:, None] >= times) & known[:, None, :]
    return (sees | torch.eye(len(times), dtype=torch.bool, device=times.device))[:, None]


def _resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False)
