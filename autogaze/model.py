"""AutoGaze: frame encoder and gaze decoder, with the calls that people use.

`generate` chooses, `score` says what training needs to know about a choice, `stream` goes frame by frame.
Architecture and parameter names are the published ones (arXiv:2603.12254): 3,258,240 parameters at base size. One part
is ours and off by default: `autogaze.network.residual`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame, Request, make_request
from autogaze.media.preprocess import Preprocessor
from autogaze.network.decoder import GazeDecoder, RopeConfig
from autogaze.network.encoder import EncoderCache, FrameEncoder, FrameTokens
from autogaze.network.residual import ResidualMap

if TYPE_CHECKING:
    from autogaze.decoding.stream import GazeStream


@dataclass(frozen=True)
class AutoGazeConfig:
    """Architecture and defaults; everything needed to rebuild a model from its weights."""

    scales: tuple[int, ...] = (32, 64, 112, 224)  # pixels, ascending
    patch_size: int = 16  # pixels
    hidden_size: int = 192  # width of encoder and decoder
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    head_dim: int = 32
    intermediate_size: int = 384
    encoder_depth: int = 1  # causal 3-D convolution blocks
    temporal_kernel: int = 3
    spatial_kernel: int = 3
    num_multi_token_pred: int = 10  # ids a step
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    max_num_frames: int = 16  # frames that the decoder remembers
    residual_map: bool = False  # patches are scored by what is wrong without them (`autogaze.network.residual`); ours
    gazing_ratio: float = 0.75  # default of the command line: largest share of a frame's patches
    task_loss_requirement: float | None = 0.7  # default of the command line: loss at which a frame may stop
    calibration: tuple[tuple[float, float], ...] = ()  # (requested loss, threshold on the prediction), ascending

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.num_hidden_layers < 1 or self.num_multi_token_pred < 1:
            raise ValueError(
                "hidden_size, num_hidden_layers and num_multi_token_pred must be positive, got "
                f"{self.hidden_size}, {self.num_hidden_layers} and {self.num_multi_token_pred}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")
        if not 0 < self.gazing_ratio <= 1:
            raise ValueError(f"gazing_ratio must be in (0, 1], got {self.gazing_ratio}")
        if any(b[0] <= a[0] or b[1] < a[1] for a, b in zip(self.calibration, self.calibration[1:], strict=False)):
            raise ValueError(f"calibration must ascend, got {self.calibration}")

    @classmethod
    def tiny(cls) -> AutoGazeConfig:
        """The published grid with a small network of the shipped kind, for a CPU."""
        return cls(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            head_dim=16,
            intermediate_size=96,
            residual_map=True,
        )

    @classmethod
    def base(cls) -> AutoGazeConfig:
        """What is shipped: the published size, and the error of what is known."""
        return cls(residual_map=True)

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.scales, self.patch_size)

    def threshold(self, requirement: Tensor) -> Tensor:
        """The threshold on the predicted loss at which a requested loss is really met (piecewise linear)."""
        if not self.calibration:
            return requirement
        asked, threshold = torch.tensor(self.calibration, device=requirement.device).T.contiguous()
        if len(asked) == 1:
            return requirement + (threshold - asked)
        left = torch.searchsorted(asked, requirement.contiguous()).sub(1).clamp(0, len(asked) - 2)
        slope = (threshold[left + 1] - threshold[left]) / (asked[left + 1] - asked[left])
        inside = requirement.clamp(float(asked[0]), float(asked[-1]))
        shift = requirement - inside  # outside the calibrated range: move along, do not extrapolate the slope
        return threshold[left] + slope * (inside - asked[left]) + shift


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model says about given ids; zero at slots that were not chosen."""

    log_action_probs: Tensor  # (B, T, K) float, log-probability of each id
    task_loss_prediction: Tensor  # (B, T, K) float, predicted reconstruction loss after each id


class Connector(nn.Module):
    """Learned position embedding of the visual tokens."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(tokens, width) * 0.02)

    def forward(self, visual: Tensor) -> Tensor:
        return visual + self.pos_embed


class AutoGaze(nn.Module):
    """Where to look in a video before a ViT does.

    `decoding` switches the way ids are chosen: "auto" (the fastest that this device and dtype offer), "fused",
    "native", "cached" or "plain"; all choose the same ids in float32. `preprocessor` makes frames into the model's
    input and is saved with the weights.
    """

    def __init__(self, config: AutoGazeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AutoGazeConfig()
        self.grid = config.grid
        self.decoding = "auto"
        self.preprocessor = Preprocessor(size=(config.scales[-1], config.scales[-1]))
        self.vision_model = FrameEncoder(
            config.scales[-1],
            config.patch_size,
            config.hidden_size,
            config.hidden_size,
            config.encoder_depth,
            config.temporal_kernel,
            config.spatial_kernel,
        )
        self.connector = Connector(self.vision_model.side**2, config.hidden_size)
        self.gaze_decoder = GazeDecoder(
            self.grid.patches_per_frame,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.head_dim,
            config.intermediate_size,
            config.num_multi_token_pred,
            config.rms_norm_eps,
            config.rope,
        )
        self.residual_map = (
            ResidualMap(self.grid, self.vision_model.side, config.patch_size) if config.residual_map else None
        )
        self.apply(_initialise)
        if self.residual_map is not None:  # which predicts losses instead: a head that nobody asks learns nothing
            self.gaze_decoder.task_loss_prediction_head.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.connector.pos_embed.device

    @cached_property
    def visual_tokens(self) -> int:
        """Visual tokens a frame."""
        return self.vision_model.side**2

    def with_calibration(self, calibration: tuple[tuple[float, float], ...]) -> AutoGaze:
        """Store a calibration of the stop rule (see `autogaze.stop_rule.calibration`); returns self."""
        self.config = replace(self.config, calibration=calibration)
        return self

    def generate(
        self,
        video: Tensor,
        gazing_ratio: PerFrame = None,
        task_loss_requirement: PerFrame = None,
        target_scales: tuple[int, ...] | list[int] | None = None,
        target_patch_size: int | None = None,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        gaze_stride: int = 1,
    ) -> Gaze:
        """Choose patches in every frame.

        Args:
            video: (B, T, 3, H, W) float, as `model.preprocessor` returns. Without `target_scales` it is resized to
                the model's square; clips longer than `max_num_frames` are decoded with a sliding window.
            gazing_ratio: largest share of a frame's patches, in [0, 1]: a number, one a frame, one a clip (B,),
                or (B, T); None sets no limit, 0 looks at nothing.
            task_loss_requirement: reconstruction loss at which a frame may stop, same forms; None never stops early.
            target_scales: gaze at another resolution, in pixels, ascending: the frames must be at the largest one;
                they are cut into tiles that are decoded alone and put together again. A frame that is not square
                gets a grid of its own size.
            target_patch_size: pixels, with `target_scales`; the model's patch size by default.
            temperature: sample ids at this temperature; None takes the best.
            generator: for sampling.
            gaze_stride: with a target, look at the frames with so many times fewer pixels each way: about its square
                fewer tiles to choose in, the same share of patches, in blocks of stride x stride patches.

        Returns:
            Gaze of (B, T, K): ids in the order chosen (increasing with `target_scales`).

        Raises:
            ValueError: if a shape or a range does not fit.

        Source: arXiv:2603.12254 sec. 3; stop rule and tiles as in the published implementation.
        """
        from autogaze.tiling import check_stride, generate_tiled

        check_video(video)
        tiled = target_scales is not None or target_patch_size is not None
        check_stride(gaze_stride, tiled)
        if tiled:
            return generate_tiled(
                self,
                video,
                gazing_ratio,
                task_loss_requirement,
                target_scales,
                target_patch_size,
                temperature,
                generator,
                gaze_stride,
            )
        request = make_request(
            self.grid, len(video), video.shape[1], gazing_ratio, task_loss_requirement, temperature, generator
        )
        return self.decode(video, request)

    @torch.no_grad()
    def decode(self, video: Tensor, request: Request) -> Gaze:
        """`generate` for a request that is already checked."""
        from autogaze.decoding.clip import decode_clip

        return decode_clip(self, video, request)

    def gaze(
        self,
        source: str | Path | np.ndarray | Tensor,
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        tiles: bool = False,
        gaze_stride: int = 1,
    ) -> Gaze:
        """Look at a whole video: reading, preprocessing, tiling and merging included, frame by frame.

        Args:
            source: a video file, or uint8 RGB frames (T, H, W, 3).
            gazing_ratio: largest share of a frame's patches, in [0, 1].
            task_loss_requirement: reconstruction loss at which a frame may stop. If only one of the two is given, the
                other sets no limit; if none is, both are the model's own (`config`), as published.
            tiles: look at full resolution, tile by tile, instead of at the whole frame in one square.
            gaze_stride: with `tiles`, look with so many times fewer pixels each way, as in `generate`.

        Returns:
            Gaze of (1, T, K), on the model's grid; with `tiles` on the frame's own. For a video that is too long to
            keep the gaze of every frame, see `autogaze.tiling.gaze_frames`.

        Raises:
            ValueError: if the frames are not uint8 RGB, the file is not a readable video, or the stride does not fit.
            FileNotFoundError: if there is no such file.
        """
        from autogaze.tiling import gaze_at

        return gaze_at(self, source, gazing_ratio, task_loss_requirement, tiles, gaze_stride)

    def score(
        self, video: Tensor, gaze: Gaze, temperature: float | None = None, as_decoded: bool | None = None
    ) -> Scores:
        """Log-probabilities of given ids and the losses predicted after them; gradients flow.

        Args:
            video: (B, T, 3, H, W) float; T at most `max_num_frames`.
            gaze: (B, T, K) ids in decoding order on the model's grid; slot j is read from head j % K.
            temperature: None scores as published (no mask of taken ids, log(p + 1e-8)); a number scores under the
                policy that samples at this temperature (taken ids and `eos` impossible).
            as_decoded: give ids the rotary positions that `generate` gives them, which differ from a plain count
                (see `autogaze.decoding.plain`); by default with a temperature only, since published scores count.

        Source: arXiv:2603.12254 sec. 3.3.
        """
        from autogaze.decoding.scoring import score

        check_video(video)
        return score(self, video, gaze, temperature, temperature is not None if as_decoded is None else as_decoded)

    def stream(
        self,
        gazing_ratio: float | Tensor | None = None,
        task_loss_requirement: float | Tensor | None = None,
        batch: int = 1,
    ) -> GazeStream:
        """Gaze frame by frame; equals `generate` on the whole clip and needs constant memory.

        Args:
            gazing_ratio, task_loss_requirement: as in `generate`: a number or one a stream (B,).
            batch: streams side by side.
        """
        from autogaze.decoding.stream import GazeStream

        return GazeStream(self, gazing_ratio, task_loss_requirement, batch)

    def embed(
        self, video: Tensor, cache: EncoderCache | None = None, out: FrameTokens | None = None
    ) -> tuple[FrameTokens, EncoderCache]:
        """Visual tokens with their positions and, for a model with `residual_map`, grey frames; and the encoder's
        cache. `out`: where the tokens are put, in the model's dtype, if no gradient is wanted."""
        grey = None if out is None else out.grey
        if out is None and self.residual_map is not None:
            side = self.vision_model.image_size
            grey = self.connector.pos_embed.new_empty(*video.shape[:2], 1, side, side)
        visual, cache = self.vision_model(video, cache, grey)
        if out is None:
            return FrameTokens(self.connector(visual), grey), cache
        torch.add(visual, self.connector.pos_embed, out=out.visual)
        return out, cache

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str | None = None) -> AutoGaze:
        """Load shipped weights by name, a folder, or a model of the Hugging Face hub. See `autogaze.checkpoint`."""
        from autogaze.checkpoint import load

        model = load(name)
        return model.to(device) if device is not None else model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the published format."""
        from autogaze.checkpoint import save

        save(self, folder)


def check_video(video: Tensor) -> None:
    """Refuse what is not a preprocessed clip."""
    if not isinstance(video, Tensor) or video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
        got = f"{video.dtype} {tuple(video.shape)}" if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(f"video must be (B, T, 3, H, W) float, got {got}; see autogaze.media.preprocess")
    if 0 in video.shape:
        raise ValueError(f"video must not be empty, got {tuple(video.shape)}")


def _initialise(module: nn.Module) -> None:
    """LLaMA's initialisation for the decoder; convolutions keep torch's."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
