"""AutoGaze: the network with the calls that people use.

`generate` chooses, `score` says what training needs to know about a choice, `stream` goes frame by frame.
Architecture and parameter names are the published ones (arXiv:2603.12254). One part is ours, the residual map
(`autogaze.network.residual`), which published checkpoints lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autogaze import checkpoint
from autogaze.core.checks import check_values, check_video
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.core.tiling import check_stride, make_tiling, tiling_onto
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.frames import FRAMES_AT_ONCE, FrameGazer, VideoSource, in_chunks
from autogaze.decoding.limits import DEFAULT, Limit, choose_limits
from autogaze.decoding.request import make_request
from autogaze.decoding.scoring import Scores, score
from autogaze.decoding.stream import GazeStream
from autogaze.decoding.tiles import decode_tiled
from autogaze.network.config import AutoGazeConfig
from autogaze.network.network import Connector, GazeNetwork  # models pickled by version 0.1 look for Connector here

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AutoGaze", "AutoGazeConfig", "Connector", "Scores"]


class AutoGaze(GazeNetwork):
    """Where to look in a video before a ViT does.

    `decoding` switches the back end that chooses ids: "auto" (the fastest that this device and dtype offer),
    "reference", "cpu" or "cuda"; all choose the same ids in float32. `preprocessor` makes frames into the model's
    input and is saved with the weights.
    """

    def generate(
        self,
        video: Tensor,
        gazing_ratio: Limit = DEFAULT,
        task_loss_requirement: Limit = DEFAULT,
        target_scales: Sequence[int] | None = None,
        target_patch_size: int | None = None,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        gaze_stride: int = 1,
        *,
        grid: PatchGrid | None = None,
        scales: Sequence[int] | int | None = None,
    ) -> Gaze:
        """Choose patches in every frame. Each clip is decoded as if it were alone.

        Args:
            video: (B, T, 3, H, W) float, as `model.preprocessor` returns. Without a grid of one's own it is resized to
                the model's square; clips longer than `max_num_frames` are decoded with a sliding window.
            gazing_ratio: largest share of a frame's patches, in [0, 1]: a number, one a frame (T,), one a clip (B, 1),
                or (B, T), in any container; None sets no limit, 0 looks at nothing.
            task_loss_requirement: reconstruction loss at which a frame may stop, same forms; None never stops early.
                If only one of the two is given, the other sets no limit; if none is, both are the model's (`config`).
            target_scales, target_patch_size: the published spelling of a grid: pixels, ascending, and the model's
                patch size by default. On a frame that is not square the grid has the frame's size.
            temperature: sample ids at this temperature; None takes the best.
            generator: for sampling.
            gaze_stride: with a grid, look at the frames with so many times fewer pixels each way: about its square
                fewer tiles to choose in, the same share of patches, in blocks of stride x stride patches.
            grid: gaze on another grid than the model's, such as a ViT's: the frames must be of its size, are
                cut into tiles that are decoded alone, and put together again.
            scales: choose from these scales of the grid only (pixels); the ratio stays a share of all patches.

        Returns:
            Gaze of (B, T, K): ids in the order chosen (increasing on another grid).

        Raises:
            TypeError: if a ratio or a requirement is no number.
            ValueError: if a shape or a range does not fit, or pixels are NaN, infinite or far out of range.

        Source: arXiv:2603.12254 sec. 3; stop rule and tiles as in the published implementation.
        """
        check_video(video)
        self.check_weights()
        if grid is not None and (target_scales is not None or target_patch_size is not None):
            raise ValueError("give grid, or target_scales and target_patch_size, not both")
        size = (video.shape[-2], video.shape[-1])
        tiling = None
        if grid is not None:
            tiling = None if grid == self.grid else tiling_onto(self.grid, grid, gaze_stride)
        elif target_scales is not None or target_patch_size is not None:
            tiling = make_tiling(self.grid, size, target_scales, target_patch_size, gaze_stride)
            tiling = None if tiling.whole == self.grid else tiling
        check_stride(gaze_stride, tiling is not None)
        ratio, requirement = choose_limits(self.config, gazing_ratio, task_loss_requirement)
        own = scales if tiling is None else tiling.own_scales(scales)
        request = make_request(self.grid, len(video), video.shape[1], ratio, requirement, temperature, generator, own)
        if tiling is not None:
            tiling.check_size(video)
        finish = check_values(video, *self.preprocessor.value_range)
        gaze = decode_clip(self, video, request) if tiling is None else decode_tiled(self, video, request, tiling)
        finish()
        return gaze

    def gaze(
        self,
        source: VideoSource,
        gazing_ratio: Limit = DEFAULT,
        task_loss_requirement: Limit = DEFAULT,
        tiles: bool = False,
        gaze_stride: int = 1,
        *,
        grid: PatchGrid | None = None,
        scales: Sequence[int] | int | None = None,
    ) -> Gaze:
        """Look at a whole video: reading, preprocessing, tiling and merging included, frame by frame.

        Args:
            source: a video file, or frames as `autogaze.media.frames.as_frames` takes them: uint8 RGB (T, H, W, 3),
                one image, PIL images, a list or a generator of any of these.
            gazing_ratio, task_loss_requirement: as in `generate`, a number each.
            tiles: look at full resolution, tile by tile, instead of at the whole frame in one square.
            gaze_stride: with `tiles` or a grid, look with so many times fewer pixels each way, as in `generate`.
            grid: gaze on this grid; frames are resized to its size.
            scales: choose from these scales of the grid only (pixels).

        Returns:
            Gaze of (1, T, K), on the model's grid; with `tiles` on the frame's own.

        Raises:
            TypeError, ValueError: if the frames, the limits or the stride do not fit, or the file is not a readable
                video.
            FileNotFoundError: if there is no such file.
        """
        options = (gazing_ratio, task_loss_requirement, tiles)
        return Gaze.join(list(self.gaze_frames(source, *options, gaze_stride=gaze_stride, grid=grid, scales=scales)))

    def gaze_frames(
        self,
        source: VideoSource,
        gazing_ratio: Limit = DEFAULT,
        task_loss_requirement: Limit = DEFAULT,
        tiles: bool = False,
        at_once: int = FRAMES_AT_ONCE,
        gaze_stride: int = 1,
        *,
        grid: PatchGrid | None = None,
        scales: Sequence[int] | int | None = None,
    ) -> Iterator[Gaze]:
        """`gaze` of a video of any length, or a camera, in constant memory.

        Args:
            source: as in `gaze`; frames are taken from a generator as they are needed.
            at_once: frames a result.
            others: as in `gaze`.

        Yields:
            Gaze (1, t, K) of the next t <= at_once frames.
        """
        look = FrameGazer(self, gazing_ratio, task_loss_requirement, tiles, gaze_stride, grid, scales)
        return (look(frames) for frames in in_chunks(source, at_once))

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
                (see `autogaze.decoding.sequence`); by default with a temperature only, since published scores count.

        Source: arXiv:2603.12254 sec. 3.3.
        """
        check_video(video)
        return score(self, video, gaze, temperature, temperature is not None if as_decoded is None else as_decoded)

    def stream(
        self,
        gazing_ratio: Limit = DEFAULT,
        task_loss_requirement: Limit = DEFAULT,
        batch: int = 1,
        *,
        grid: PatchGrid | None = None,
        scales: Sequence[int] | int | None = None,
        gaze_stride: int = 1,
    ) -> GazeStream:
        """Gaze frame by frame; equals `generate` on the whole clip and needs constant memory.

        Args:
            gazing_ratio, task_loss_requirement: as in `generate`: a number, or one a stream (B, 1).
            batch: streams side by side.
            grid, scales, gaze_stride: as in `generate`.
        """
        tiling = None if grid is None or grid == self.grid else tiling_onto(self.grid, grid, gaze_stride)
        check_stride(gaze_stride, tiling is not None)
        return GazeStream(self, gazing_ratio, task_loss_requirement, batch, scales, tiling)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> Self:
        """Load shipped weights by name, a folder, or a model of the Hugging Face hub. See `autogaze.checkpoint`.

        Args:
            name: as in `autogaze.checkpoint.read`.
            device: where the model is put; None: the CPU, whatever the default device is.
            dtype: of the weights; None: float32, whatever the default is and whatever the file holds.
            revision: branch, tag or commit of a model of the hub.

        Raises:
            FileNotFoundError: if there is no such checkpoint, naming what was looked for.
            ValueError: if the files are not a checkpoint of this model, or are damaged.
        """
        saved = checkpoint.read(name, revision)
        with torch.device("cpu"):
            model = cls(saved.config).float()
            model.load_state_dict(saved.tensors_for(model), assign=True)
        for parameter in model.parameters():
            if parameter.is_meta:  # a patched nn.Module, such as accelerate's init_empty_weights
                raise ValueError("from_pretrained loads weights and cannot run where every parameter is made empty")
        if saved.preprocessor is not None:
            model.preprocessor = saved.preprocessor
        model.eval()
        return model.to(device=device, dtype=dtype)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors` in the published format; `dtype` is that of the file."""
        checkpoint.save(self, folder, dtype)
