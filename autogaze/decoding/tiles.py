"""Gazing at another resolution: tiles of frames are decoded as clips of their own and put together again.

Where frames are not cut, `tiling` is None and a frame is its only tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.tiling import Tiling
from autogaze.decoding.backends import Decoding
from autogaze.decoding.clip import decode_chunks, frames_at_once, join_frames
from autogaze.decoding.limits import PerFrame
from autogaze.decoding.request import Request, make_request
from autogaze.network.network import GazeNetwork

TILES_AT_ONCE = {"cuda": 256, "cpu": 64}  # tiles decoded together


def decode_tiled(model: GazeNetwork, video: Tensor, request: Request, tiling: Tiling) -> Gaze:
    """Choose patches in frames that are cut into tiles: ids in increasing order, on the frame's own grid.

    Ratio and requirement hold in each tile, which is decoded as if it were a clip alone.
    """
    masks = _decode_tiles(model, video, request, tiling, tiles_at_once(model, request, tiling.count))
    return Gaze.from_patch_mask(tiling.join(masks), tiling.whole)


def request_tiles(
    model: GazeNetwork,
    limits: tuple[PerFrame, PerFrame],
    batch: int,
    frames: int,
    tiling: Tiling | None,
    scales: Sequence[int] | int | None,
) -> Request:
    """The request of `decode_next` for the tiles of so many frames: limits, and ids of some scales of the grid."""
    own = scales if tiling is None else tiling.own_scales(scales)
    request = make_request(model.grid, batch, frames, *limits, scales=own).calibrated(model.config)
    return request if tiling is None else request.repeated(tiling.count)


def decode_next(model: GazeNetwork, decoding: Decoding, video: Tensor, request: Request, tiling: Tiling | None) -> Gaze:
    """Choose patches in the next frames (B, T, 3, H, W) of clips that are decoded stretch by stretch."""
    video = video if tiling is None else tiling.cut(video)
    gaze = join_frames([decoding.decode(video, request)], model)
    return gaze if tiling is None else Gaze.from_patch_mask(tiling.join(gaze.patch_mask()), tiling.whole)


def tiles_at_once(model: GazeNetwork, request: Request, tiles: int) -> int:
    """The number of tiles to decode together, of `tiles` a clip: the more the faster, as long as their keys and values
    take no more than a quarter of a GPU's free memory."""
    total = len(request.budget) * tiles
    most = TILES_AT_ONCE.get(model.device.type, TILES_AT_ONCE["cpu"])
    if model.device.type == "cuda":
        config = model.config
        tokens = model.visual_tokens + int(request.budget.max()) + 2 * config.num_multi_token_pred
        frames = min(request.budget.shape[1], config.max_num_frames + 1)
        cache = 2 * config.num_hidden_layers * config.hidden_size * frames * tokens
        free = torch.cuda.mem_get_info(model.device)[0]
        most = max(1, min(most, free // 4 // (cache * model.connector.pos_embed.element_size())))
    return -(-total // -(-total // most))  # as many rounds, all of about the same size


@torch.no_grad()
def _decode_tiles(model: GazeNetwork, video: Tensor, request: Request, tiling: Tiling, at_once: int) -> Tensor:
    """Masks (B * count, T, patches of a tile), with `at_once` tiles decoded together."""
    request = request.repeated(tiling.count)
    masks = []
    for start in range(0, len(request.budget), at_once):
        part = slice(start, start + at_once)
        step = frames_at_once(min(at_once, len(request.budget)), model.device)
        clips = slice(start // tiling.count, -(-part.stop // tiling.count))  # that these tiles are of
        offset = clips.start * tiling.count
        chunks = (
            tiling.cut(video[clips, t : t + step])[start - offset : part.stop - offset]
            for t in range(0, video.shape[1], step)
        )
        masks.append(decode_chunks(model, chunks, request.clips(part)).patch_mask())
    return torch.cat(masks)
