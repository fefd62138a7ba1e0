"""The reconstructor: what a clip looks like to someone who saw only the gazed patches. Its loss judges every gaze.

A multi-scale masked auto-encoder, causal over frames: frame t is rebuilt from the patches gazed in frames <= t.
All that is encoded is what the gaze has shown so far, scale by scale, with its age (`paste.py` puts it at its
place), one token a finest cell (196 a frame). Attention alternates between the cells of a frame and the frames of a
cell. Each pixel is then a mixture of the remembered scales (a copy, exact where nothing changed since) plus a
predicted residual. Every shape is static: the count of gazed patches never enters one.

Why not tokens of the gazed patches as keys (as in the published model, `published.py`)? Their count differs in
every frame and sample; at equal time on a GPU the dense form trains several times as many clips.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.files import atomic_path, write_json
from autogaze.pretrain.reconstructor.losses import FrameLoss, parse_spec
from autogaze.pretrain.reconstructor.paste import NEVER, Painter, ages, check_video, last_seen, newest, remembered

CONFIG, WEIGHTS = "config.json", "model.safetensors"
WINNER_LOGIT, BLANK_LOGIT = 4.0, -8.0  # at the start a pixel copies the newest scale; blank only if nothing is known


@dataclass(frozen=True)
class ReconstructorConfig:
    """Architecture and loss; everything needed to rebuild a reconstructor from its weights."""

    scales: tuple[int, ...] = (32, 64, 112, 224)  # pixels, ascending
    patch_size: int = 16  # pixels
    width: int = 256
    depth: int = 5  # blocks of attention in space, attention in time, MLP
    heads: int = 4
    mlp_ratio: int = 4
    loss: str = "l1+0.5*gradient"  # see losses.py

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1 or self.width % (2 * self.heads):
            raise ValueError(
                "width and depth must be positive and width a multiple of 2 * heads, "
                f"got {self.width}, {self.depth} and {self.heads} heads"
            )
        parse_spec(self.loss)
        PatchGrid(self.scales, self.patch_size)

    @classmethod
    def tiny(cls) -> ReconstructorConfig:
        """0.3 M parameters: trains on two CPU cores."""
        return cls(width=64, depth=2, heads=2, mlp_ratio=2)

    @classmethod
    def small(cls) -> ReconstructorConfig:
        """6 M parameters."""
        return cls()

    @classmethod
    def base(cls) -> ReconstructorConfig:
        """24 M parameters."""
        return cls(width=448, depth=7, heads=7)

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.scales, self.patch_size)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Rebuilt frames and how far they are from the truth."""

    frames: Tensor  # (B, T, 3, H, W) float32, range of the preprocessed video
    loss: Tensor  # (B, T) float32, the training loss of each frame


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys; rotary positions when given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm, self.key_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.out = nn.Linear(width, width)

    def heads_of(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., heads, length, width / heads) of x (..., length, width)."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        q, k = self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)
        return (q, k, v) if rotation is None else (rotation.turn(q), rotation.turn(k), v)

    def merge(self, attended: Tensor) -> Tensor:
        return self.out(attended.transpose(-2, -3).flatten(-2))

    def forward(self, x: Tensor, rotation: Rotation | None = None, causal: bool = False) -> Tensor:
        return self.merge(F.scaled_dot_product_attention(*self.heads_of(x, rotation), is_causal=causal))


class Rotation:
    """Rotary position embedding at integer positions (length,), of queries and keys of one data type."""

    def __init__(self, position: Tensor, width: int) -> None:
        speed = 0.7 ** torch.arange(width // 2, device=position.device, dtype=torch.float32)
        angle = position[:, None].float() * speed
        self.cos, self.sin = angle.cos().repeat(1, 2), torch.cat([-angle.sin(), angle.sin()], dim=-1)

    def turn(self, x: Tensor) -> Tensor:
        """Turn x (..., length, width)."""
        if x.dtype != self.cos.dtype:  # once, not at every call: a search is bound by how many kernels it starts
            self.cos, self.sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, dims=-1), self.sin)


class Block(nn.Module):
    """Attention over the cells of a frame, over the frames of a cell (causal), and an MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.space, self.time = Attention(width, heads), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, T, cells, width) -> the same, with the rotation of its frames."""
        x = x + self.space(x.flatten(0, 1)).view_as(x)
        x = x + self.time(x.transpose(1, 2).flatten(0, 1), rotation, causal=True).unflatten(
            0, (x.shape[0], x.shape[2])
        ).transpose(1, 2)
        return x + self.mlp(x)


class Reconstructor(nn.Module):
    """Rebuilds every frame of a clip from the gaze so far; `incremental.py` does it frame by frame for a search."""

    def __init__(self, config: ReconstructorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ReconstructorConfig.small()
        self.grid = config.grid
        self.painter = Painter(self.grid)
        self.patches = self.grid.patches_per_frame
        self.rows, self.columns = self.grid.sides[-1]
        self.block_side = config.patch_size // 4 if config.patch_size % 4 == 0 else config.patch_size  # pixels
        width, patch = config.width, config.patch_size
        inputs = sum(5 * side * side for side in self.painter.small_side)
        self.embed = nn.Linear(inputs, width)
        self.place = nn.Parameter(torch.randn(self.rows * self.columns, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.residual = nn.Linear(width, 3 * patch * patch)
        self.mixture = nn.Linear(width, len(config.scales) * (patch // self.block_side) ** 2)
        self.objective = FrameLoss(config.loss)
        self._initialise()

    def _initialise(self) -> None:
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear in (block.space.out, block.time.out, block.mlp[-1]):
                assert isinstance(linear, nn.Linear)
                nn.init.normal_(linear.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)
                nn.init.zeros_(linear.bias)
        for head in (self.residual, self.mixture):  # starts as paste-and-upsample
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, video: Tensor, gaze: Gaze) -> Reconstruction:
        """Rebuild a clip from a gaze.

        Args:
            video: (B, T, 3, H, W) float, preprocessed; only gazed patches of it enter the rebuilt frames.
            gaze: of the same clips and grid; any number of slots, empty too.

        Raises:
            ValueError: if the video or the grid does not fit.
        """
        if gaze.grid != self.grid:
            raise ValueError(f"the gaze is over {gaze.grid}, this reconstructor knows {self.grid}")
        return self.reconstruct(video, gaze.patch_mask())

    def reconstruct(self, video: Tensor, mask: Tensor) -> Reconstruction:
        """`forward` from a patch mask (B, T, patches_per_frame) bool instead of a gaze."""
        check_video(video, self.grid)
        if mask.shape != (*video.shape[:2], self.patches):
            raise ValueError(
                f"the gaze must cover the video's {tuple(video.shape[:2])} clips and frames and "
                f"{self.patches} patches, got {tuple(mask.shape)}"
            )
        seen = last_seen(mask)
        age = self.painter.split(ages(seen))
        images = [
            remembered(image, part, side)
            for image, part, side in zip(
                self.painter.cut(video), self.painter.split(seen), self.grid.sides, strict=True
            )
        ]
        small = [self.painter.paint(k, image, "small") for k, image in enumerate(images)]
        full = [self.painter.paint(k, image) for k, image in enumerate(images)]
        x = self.tokens(small, [self.painter.spread(k, part, "small") for k, part in enumerate(age)])
        rotation = self.rotation(torch.arange(video.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x, rotation)
        frames = self.render(x, full, [self.painter.spread(k, part) for k, part in enumerate(age)])
        return Reconstruction(frames, self.objective(frames, video))

    def rotation(self, frames: Tensor) -> Rotation:
        """The rotation of queries and keys of frames (T,) int64 in attention over time."""
        return Rotation(frames, self.config.width // self.config.heads)

    def tokens(self, small: Sequence[Tensor], age: Sequence[Tensor]) -> Tensor:
        """One token a finest cell.

        Args:
            small: for each scale (..., 3, height, width), what is remembered of it, on the "small" canvas.
            age: for each scale (..., height, width), frames since each pixel was looked at.

        Returns:
            (..., cells, width).
        """
        parts = []
        for image, at, side in zip(small, age, self.painter.small_side, strict=True):
            known = (at != NEVER).float()[..., None, :, :]
            planes = torch.cat([image * known, known, (1 / (1 + at))[..., None, :, :]], dim=-3)
            cells = planes.unflatten(-1, (self.columns, side)).unflatten(-3, (self.rows, side))
            parts.append(cells.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2))
        return self.embed(torch.cat(parts, dim=-1)) + self.place

    def render(self, x: Tensor, full: Sequence[Tensor], age: Sequence[Tensor]) -> Tensor:
        """Pixels of tokens (..., cells, width): a mixture of the remembered scales, plus a residual.

        Args:
            x: (..., cells, width), after the blocks.
            full: for each scale (..., 3, H, W), what is remembered of it.
            age: for each scale (..., H, W).

        Returns:
            (..., 3, H, W) float32.
        """
        x = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            mixture = self._to_pixels(self.mixture(x.to(self.mixture.weight.dtype)).float(), len(full), self.block_side)
            ages_at = torch.stack(list(age), dim=-3)
            winner = newest(ages_at)[..., None, :, :]
            scales = torch.arange(len(full), device=x.device)[:, None, None]
            logits = (mixture + WINNER_LOGIT * (winner == scales)).where(ages_at != NEVER, -torch.inf)
            blank = torch.full_like(logits[..., :1, :, :], BLANK_LOGIT)
            weight = torch.cat([logits, blank], dim=-3).softmax(dim=-3)
            residual = self.residual(x.to(self.residual.weight.dtype)).float()
            frames = self._to_pixels(residual, 3, 1)
            for k, image in enumerate(full):
                frames = torch.addcmul(frames, weight[..., k : k + 1, :, :], image)
        return frames

    def _to_pixels(self, values: Tensor, channels: int, block: int) -> Tensor:
        """(..., cells, channels * side * side) -> (..., channels, H, W), each value a block x block square."""
        side = self.config.patch_size // block
        grid = values.unflatten(-1, (channels, side, side)).unflatten(-4, (self.rows, self.columns))
        image = grid.movedim((-3, -5, -2, -4, -1), (-5, -4, -3, -2, -1)).flatten(-4, -3).flatten(-2)
        return image if block == 1 else image.repeat_interleave(block, -1).repeat_interleave(block, -2)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors`, each whole or not at all; `dtype` is that of the file."""
        tensors = {
            name: value.detach().to("cpu", dtype).contiguous()
            for name, value in self.state_dict().items()
            if not name.startswith("objective.")
        }  # frozen feature models are downloaded again
        with atomic_path(Path(folder) / WEIGHTS) as path:
            save_file(tensors, path, metadata={"format": "pt"})
        write_json(Path(folder) / CONFIG, {"model_type": "autogaze-reconstructor", **asdict(self.config)})

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str | None = None) -> Reconstructor:
        """Load what `save_pretrained` wrote, in float32 and evaluation mode.

        Raises:
            FileNotFoundError: if the folder does not hold both files.
            ValueError: if they are not a reconstructor's, or damaged.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} holds no reconstructor: {name} is missing; "
                    "make one with `autogaze train --stage reconstructor`"
                )
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if data.pop("model_type", None) != "autogaze-reconstructor":
            raise ValueError(f"{folder / CONFIG} is not the config of a reconstructor of this project")
        model = cls(ReconstructorConfig(**{**data, "scales": tuple(data["scales"])}))
        try:
            tensors = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error
        missing, extra = model.load_state_dict(tensors, strict=False)
        missing = [name for name in missing if not name.startswith("objective.")]
        if missing or extra:
            raise ValueError(f"{folder / WEIGHTS} does not fit its config: missing {missing[:3]}, unknown {extra[:3]}")
        return model.to(device or "cpu").eval()
