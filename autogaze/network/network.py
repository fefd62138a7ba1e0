"""The network: frame encoder, connector, gaze decoder and residual map, with their parameters under published names.

3,258,240 parameters at base size, and three of the residual map; 783 if that is perceptual. Nothing here chooses:
decoding does, with the network as its argument.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from autogaze.media.preprocess import Preprocessor
from autogaze.network.config import AutoGazeConfig
from autogaze.network.constants import Constants
from autogaze.network.decoder import GazeDecoder
from autogaze.network.encoder import EncoderCache, FrameEncoder, FrameTokens
from autogaze.network.residual import ResidualMap, smoothing

Network = TypeVar("Network", bound="GazeNetwork")


class Connector(nn.Module):
    """Learned position embedding of the visual tokens."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(tokens, width) * 0.02)

    def forward(self, visual: Tensor) -> Tensor:
        return visual + self.pos_embed


class GazeNetwork(nn.Module):
    """The modules that a model computes with. `decoding` names the back end that is to choose ids for it;
    `preprocessor` makes frames into its input and is saved with the weights."""

    def __init__(self, config: AutoGazeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AutoGazeConfig()
        self.grid = config.grid
        self.decoding: Literal["auto", "reference", "cpu", "cuda"] = "auto"
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
            ResidualMap(self.grid, self.vision_model.side, config.patch_size, config.perceptual, config.hidden_size)
            if config.residual_map
            else None
        )
        side, sigma = config.scales[-1], config.residual_blur_px
        self._smoothing = Constants(lines=smoothing(side, sigma)) if config.residual_map and sigma else None
        self.apply(_initialise)
        if self.residual_map is not None:  # which predicts losses instead: a head that nobody asks learns nothing
            if self.residual_map.gate is not None:  # 1 for every cell, until it is trained
                nn.init.zeros_(self.residual_map.gate.weight)
                nn.init.zeros_(self.residual_map.gate.bias)
            self.gaze_decoder.task_loss_prediction_head.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.connector.pos_embed.device

    @cached_property
    def visual_tokens(self) -> int:
        """Visual tokens a frame."""
        return self.vision_model.side**2

    def smoothing(self, device: torch.device) -> Tensor | None:
        """(S, S) float32 through which rows and columns of grey frames go before they are compared; None: not."""
        return None if self._smoothing is None else self._smoothing.on(device)["lines"]

    def with_calibration(self: Network, calibration: tuple[tuple[float, float], ...]) -> Network:
        """A copy of the model with a calibration of the stop rule (see `autogaze.stop_rule.calibration`)."""
        model = copy.deepcopy(self)
        model.config = replace(self.config, calibration=calibration)
        return model

    def check_weights(self) -> None:
        """Refuse to compute without weights.

        Raises:
            ValueError: if the parameters are on the meta device.
        """
        if self.device.type == "meta":
            raise ValueError(
                "the model is on the meta device and has no weights: model.load_state_dict(weights, assign=True), or "
                "model.to_empty(device=...) and then load_state_dict; or AutoGaze.from_pretrained, which loads them"
            )

    def embed(
        self, video: Tensor, cache: EncoderCache | None = None, out: FrameTokens | None = None
    ) -> tuple[FrameTokens, EncoderCache]:
        """Visual tokens with their positions and, for a model with `residual_map`, grey frames, smoothed if it compares
        them so; and the encoder's cache. `out`: where the tokens are put, in the model's dtype, if no gradient is
        wanted."""
        grey = None if out is None else out.grey
        if out is None and self.residual_map is not None:
            side = self.vision_model.image_size
            grey = self.connector.pos_embed.new_empty(*video.shape[:2], 1, side, side)
        visual, cache = self.vision_model(video, cache, grey)
        if grey is not None and (lines := self.smoothing(grey.device)) is not None:
            lines = lines.to(grey.dtype)
            with torch.autocast(grey.device.type, enabled=False):
                grey.copy_(lines @ grey @ lines.t())
        if out is None:
            return FrameTokens(self.connector(visual), grey), cache
        torch.add(visual, self.connector.pos_embed, out=out.visual)
        return out, cache


def _initialise(module: nn.Module) -> None:
    """LLaMA's initialisation for the decoder; convolutions keep torch's."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
