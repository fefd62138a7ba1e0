"""Architecture and defaults of a model: everything needed to rebuild it from its weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.network.decoder import RopeConfig


@dataclass(frozen=True)
class AutoGazeConfig:
    """Architecture and defaults; everything needed to rebuild a model from its weights. By default what is shipped;
    published models have no residual map."""

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
    residual_map: bool = True  # patches are scored by what is wrong without them (`autogaze.network.residual`); ours
    residual_blur_px: float = 0.0  # sigma by which frames are smoothed before the residual map compares them; 0: none
    perceptual: bool = False  # the residual map measures differences as features see them: against contrast
    gazing_ratio: float = 0.75  # where a caller asks for nothing: largest share of a frame's patches
    task_loss_requirement: float | None = 0.7  # where a caller asks for nothing: loss at which a frame may stop
    calibration: tuple[tuple[float, float], ...] = ()  # (requested loss, threshold on the prediction), ascending

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.num_hidden_layers < 1 or self.num_multi_token_pred < 1:
            raise ValueError(
                "hidden_size, num_hidden_layers and num_multi_token_pred must be positive, got "
                f"{self.hidden_size}, {self.num_hidden_layers} and {self.num_multi_token_pred}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")
        if not 0 <= self.residual_blur_px <= 8:
            raise ValueError(f"residual_blur_px must be in [0, 8], got {self.residual_blur_px}")
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
        )

    @classmethod
    def base(cls) -> AutoGazeConfig:
        """The shipped model, `AutoGazeConfig()`: the published size, and a residual map."""
        return cls()

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.scales, self.patch_size)

    def threshold(self, requirement: Tensor) -> Tensor:
        """The threshold on the predicted loss at which a requested loss is really met (piecewise linear)."""
        if not self.calibration:
            return requirement
        pairs = torch.tensor(self.calibration, dtype=requirement.dtype, device=requirement.device)
        asked, threshold = pairs.T.contiguous()
        if len(asked) == 1:
            return requirement + (threshold - asked)
        left = torch.searchsorted(asked, requirement.contiguous()).sub(1).clamp(0, len(asked) - 2)
        slope = (threshold[left + 1] - threshold[left]) / (asked[left + 1] - asked[left])
        inside = requirement.clamp(float(asked[0]), float(asked[-1]))
        shift = requirement - inside  # outside the calibrated range: move along, do not extrapolate the slope
        return threshold[left] + slope * (inside - asked[left]) + shift
