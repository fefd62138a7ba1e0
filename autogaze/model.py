"""AutoGaze: the network with the calls that people use.

`generate` chooses, `score` says what training needs to know about a choice, `stream` goes frame by frame.
Architecture and parameter names are the published ones (arXiv:2603.12254). One part is ours and off by default:
`autogaze.network.residual`.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autogaze import checkpoint
from autogaze.core.checks import check_video
from autogaze.core.gaze import Gaze
from autogaze.core.tiling import check_stride, make_tiling
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.frames import FrameGazer
from autogaze.decoding.request import PerFrame, make_request
from autogaze.decoding.scoring import Scores, score
from autogaze.decoding.stream import GazeStream
from autogaze.decoding.tiles import decode_tiled
from autogaze.media.preprocess import check_frames
from autogaze.media.source import prefetch
from autogaze.media.video import FRAMES_AT_ONCE, read_chunks
from autogaze.network.config import AutoGazeConfig
from autogaze.network.network import Connector, GazeNetwork  # models pickled by version 0.1 look for Connector here

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
        check_video(video)
        tiled = target_scales is not None or target_patch_size is not None
        check_stride(gaze_stride, tiled)
        request = make_request(
            self.grid, len(video), video.shape[1], gazing_ratio, task_loss_requirement, temperature, generator
        )
        if tiled:
            size = (video.shape[-2], video.shape[-1])
            tiling = make_tiling(self.grid, size, target_scales, target_patch_size, gaze_stride)
            if tiling.whole != self.grid:
                return decode_tiled(self, video, request, tiling)
        return decode_clip(self, video, request)

    def gaze(
        self,
        source: str | Path | np.ndarray | Tensor,
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        tiles: bool = False,
        gaze_stride: int = 1,
    ) -> Gaze:
        """Look at a whole video: reading, preprocessing, tiling and merging included.

        Frames are chosen in many at a time while the next ones are decoded.

        Args:
            source: a video, a photo, the address of a stream, or uint8 RGB frames (T, H, W, 3).
            gazing_ratio: largest share of a frame's patches, in [0, 1].
            task_loss_requirement: reconstruction loss at which a frame may stop. If only one of the two is given, the
                other sets no limit; if none is, both are the model's own (`config`), as published.
            tiles: look at full resolution, tile by tile, instead of at the whole frame in one square.
            gaze_stride: with `tiles`, look with so many times fewer pixels each way, as in `generate`.

        Returns:
            Gaze of (1, T, K), on the model's grid; with `tiles` on the frame's own. For a video that is too long to
            keep the gaze of every frame, see `autogaze.decoding.frames.gaze_frames`.

        Raises:
            ValueError: if the frames are not uint8 RGB, the file is not a readable video, or the stride does not fit.
            FileNotFoundError: if there is no such file.
        """
        if gazing_ratio is None and task_loss_requirement is None:
            gazing_ratio, task_loss_requirement = self.config.gazing_ratio, self.config.task_loss_requirement
        look = FrameGazer(self, gazing_ratio, task_loss_requirement, tiles, gaze_stride)
        if isinstance(source, str | Path):
            with closing(prefetch(read_chunks(source))) as chunks:
                return Gaze.join([look(chunk.frames) for chunk in chunks])
        return Gaze.join([look(part) for part in check_frames(source).split(FRAMES_AT_ONCE)])

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
        gazing_ratio: float | Tensor | None = None,
        task_loss_requirement: float | Tensor | None = None,
        batch: int = 1,
    ) -> GazeStream:
        """Gaze frame by frame; equals `generate` on the whole clip and needs constant memory.

        Args:
            gazing_ratio, task_loss_requirement: as in `generate`: a number or one a stream (B,).
            batch: streams side by side.
        """
        return GazeStream(self, gazing_ratio, task_loss_requirement, batch)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str | None = None) -> AutoGaze:
        """Load shipped weights by name, a folder, or a model of the Hugging Face hub. See `autogaze.checkpoint`."""
        saved = checkpoint.read(name)
        model = cls(saved.config)
        model.load_state_dict(saved.tensors_for(model))
        if saved.preprocessor is not None:
            model.preprocessor = saved.preprocessor
        model.eval()
        return model.to(device) if device is not None else model

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json` and `model.safetensors` in the published format; `dtype` is that of the file."""
        checkpoint.save(self, folder, dtype)
