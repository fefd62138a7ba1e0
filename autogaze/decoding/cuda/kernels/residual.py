"""The residual map on the device: errors of places, scores of patches, and the canvas; see `autogaze.network.residual`.

Patches of a scale are handled as a tile (patches, places), listed in `places`, so that what a patch takes away is a sum
over its row; what is known of a place is held once a scale. `GRID[k]` are a scale's first patch, the one past its last,
and the sides of its tile. `RULE` are LEAST_GAIN, STALE_FLOOR and STALE_CAP of `autogaze.network.residual`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.cuda.kernels.ranking import noisy, ranked, ranked_index
from autogaze.decoding.cuda.kernels.state import follow, overlap


@triton.jit
def load_near(picture, PX: tl.constexpr, WIDTH: tl.constexpr):
    """A place (PX, PX), and of each pixel's neighbour to the right and below; the last in a row or
    column is its own."""
    row, column = tl.arange(0, PX)[:, None], tl.arange(0, PX)[None, :]
    here = tl.load(picture + row * WIDTH + column)
    right = tl.load(picture + row * WIDTH + tl.minimum(column + 1, PX - 1))
    below = tl.load(picture + tl.minimum(row + 1, PX - 1) * WIDTH + column)
    return here.to(tl.float32), right.to(tl.float32), below.to(tl.float32)


@triton.jit
def block_means(pixels, PX: tl.constexpr, BLOCK: tl.constexpr):
    """Means (n, n) of the blocks of a place (PX, PX)."""
    parts = tl.reshape(pixels, (PX // BLOCK, BLOCK, PX // BLOCK, BLOCK))
    return tl.sum(tl.sum(parts, axis=3), axis=1) * (1.0 / (BLOCK * BLOCK))


@triton.jit
def blurred(pixels, PX: tl.constexpr, BLOCK: tl.constexpr):
    """A place (PX, PX) as means of blocks."""
    means = block_means(pixels, PX, BLOCK)[:, None, :, None]
    return tl.reshape(tl.broadcast_to(means, (PX // BLOCK, BLOCK, PX // BLOCK, BLOCK)), (PX, PX))


@triton.jit
def wrong(here, right, below, absolute, step):
    """Weighted differences between a place and a picture of it, of each pixel and its neighbours."""
    return absolute * tl.abs(here) + step * (tl.abs(right - here) + tl.abs(below - here))


@triton.jit
def wrong_blocks(near, absolute, step, PX: tl.constexpr, BLOCK: tl.constexpr):
    """`wrong` of a place against the means of its blocks, (n, BLOCK, n, BLOCK)."""
    N: tl.constexpr = PX // BLOCK
    here, right, below = near
    means = block_means(here, PX, BLOCK)
    after = tl.minimum(tl.arange(0, N) + 1, N - 1)
    to_right = tl.gather(means, tl.broadcast_to(after[None, :], (N, N)), 1)
    to_below = tl.gather(means, tl.broadcast_to(after[:, None], (N, N)), 0)
    last = tl.arange(0, BLOCK) == BLOCK - 1
    means, to_right, to_below = means[:, None, :, None], to_right[:, None, :, None], to_below[:, None, :, None]
    to_right = tl.where(last[None, None, None, :], to_right, means)
    to_below = tl.where(last[None, :, None, None], to_below, means)
    shape: tl.constexpr = (N, BLOCK, N, BLOCK)
    return wrong(tl.reshape(here, shape) - means, tl.reshape(right, shape) - to_right,
                 tl.reshape(below, shape) - to_below, absolute, step)


@triton.jit
def total(tile):
    """Sum of a tile."""
    return tl.sum(tl.ravel(tile), axis=0)


@triton.jit
def mean_differences(here, picture, PX: tl.constexpr):
    """Mean absolute difference of the means of blocks of 4 pixels of a cell (PX, PX) and a picture of it."""
    means = block_means(here, PX, 4) - block_means(picture, PX, 4)
    return total(tl.abs(means)) / ((PX // 4) * (PX // 4))


@triton.jit
def perceived(difference, share, token, channel, weight, C: tl.constexpr, SCALES: tl.constexpr, LEAST: tl.constexpr,
              level: tl.constexpr):
    """A difference as a perceptual map counts it in a cell with a visual token; `share` of the cell's contrast,
    `weight` as `find_errors` has it."""
    power, factor = tl.load(weight + 5), tl.load(weight + 6 + level)
    gate = weight + 6 + SCALES
    row = tl.load(gate + level * C + channel, mask=channel < C, other=0.0)
    opened = tl.sum(token * row, axis=0) + tl.load(gate + SCALES * C + level)
    return tl.exp2(power * tl.log2(difference / share + LEAST) + 1.4426950408889634 * opened) * factor


@triton.jit
def find_errors(frames, canvas, visual, errors, weight, clock, SIDE: tl.constexpr, PX: tl.constexpr,
                BLOCKS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, CHUNK: tl.constexpr, LEAST: tl.constexpr,
                PDL: tl.constexpr):
    """Errors of a place of a clip, as the canvas is and after a look at each scale: one program a place.

    BLOCKS are the sides in pixels of the blocks whose means a look at each scale leaves. `weight` are those of absolute
    differences and steps; of a perceptual map, whose LEAST error is not None, those of means, its response and its
    gate follow. C: channels of a visual token, CP: a power of two from there on.
    """
    overlap(PDL)
    absolute, step = tl.load(weight) / (PX * PX), tl.load(weight + 1) / (PX * (PX - 1))
    place, b = tl.program_id(0), tl.program_id(1)
    WIDTH: tl.constexpr = SIDE * PX
    AREA: tl.constexpr = WIDTH * WIDTH
    corner = place // SIDE * PX * WIDTH + place % SIDE * PX
    follow(PDL)
    near = load_near(frames + (b.to(tl.int64) * CHUNK + tl.load(clock)) * AREA + corner, PX, WIDTH)
    here, right, below = near
    on_it, on_right, on_below = load_near(canvas + b.to(tl.int64) * AREA + corner, PX, WIDTH)
    to = errors + b * (len(BLOCKS) + 1) * SIDE * SIDE + place
    now = total(wrong(here - on_it, right - on_right, below - on_below, absolute, step))
    share, channel = 1.0, tl.arange(0, CP)
    token = tl.zeros((CP,), tl.float32)
    if LEAST is not None:
        at = (b.to(tl.int64) * CHUNK + tl.load(clock)) * SIDE * SIDE + place
        token = tl.load(visual + at * C + channel, mask=channel < C, other=0.0).to(tl.float32)
        mean = total(here) / (PX * PX)
        deviation = tl.sqrt(tl.maximum(total(here * here) / (PX * PX) - mean * mean, 0.0))
        share = tl.exp2(tl.load(weight + 4) * tl.log2(deviation + tl.load(weight + 3)))
        now = perceived(now + tl.load(weight + 2) * mean_differences(here, on_it, PX), share, token, channel,
                        weight, C, len(BLOCKS), LEAST, 0)
    tl.store(to, now)
    for k in tl.static_range(len(BLOCKS)):
        left = 0.0
        if BLOCKS[k] > 1:
            left = total(wrong_blocks(near, absolute, step, PX, BLOCKS[k]))
            if LEAST is not None:
                if BLOCKS[k] > 4:  # smaller blocks leave the means as they are
                    left += tl.load(weight + 2) * mean_differences(here, blurred(here, PX, BLOCKS[k]), PX)
                left = perceived(left, share, token, channel, weight, C, len(BLOCKS), LEAST, k + 1)
        tl.store(to + (k + 1) * SIDE * SIDE, left)


@triton.jit
def paste(frames, canvas, level, b, t, place, SIDE: tl.constexpr, PX: tl.constexpr, BLOCKS: tl.constexpr,
          CHUNK: tl.constexpr):
    """Put what a look leaves of a place on the canvas; `level` is one more than its scale."""
    WIDTH: tl.constexpr = SIDE * PX
    AREA: tl.constexpr = WIDTH * WIDTH
    corner = place // SIDE * PX * WIDTH + place % SIDE * PX
    at = corner + tl.arange(0, PX)[:, None] * WIDTH + tl.arange(0, PX)[None, :]
    seen = tl.load(frames + (b.to(tl.int64) * CHUNK + t) * AREA + at)
    left = seen.to(tl.float32)
    for k in tl.static_range(len(BLOCKS)):
        if BLOCKS[k] > 1:
            left = tl.where(level == k + 1, blurred(seen.to(tl.float32), PX, BLOCKS[k]), left)
    tl.store(canvas + b.to(tl.int64) * AREA + at, left.to(seen.dtype))


@triton.jit(do_not_specialize=["B", "SLOTS", "PER"])
def look(frames, canvas, out_ids, out_chosen, patch_at, clock, B, SLOTS, PER, V: tl.constexpr, SCALES: tl.constexpr,
         SB: tl.constexpr, CHUNK: tl.constexpr, SIDE: tl.constexpr, PX: tl.constexpr, BLOCKS: tl.constexpr):
    """Put what the ids of a clip's frame have seen of PER places on the canvas. SB: a power of two from SLOTS on."""
    b, t = tl.program_id(0), tl.load(clock)
    slot = tl.arange(0, SB)
    out = (t * B + b) * SLOTS + slot
    chosen = tl.load(out_chosen + out, mask=slot < SLOTS, other=0) != 0
    ids = tl.where(chosen, tl.load(out_ids + out, mask=slot < SLOTS, other=0), -1)
    first = tl.program_id(1) * PER
    for place in range(first, tl.minimum(first + PER, V)):
        finest = 0
        for scale in tl.static_range(SCALES):
            covered = tl.max((ids == tl.load(patch_at + scale * V + place)).to(tl.int32), axis=0)
            finest = tl.where(covered > 0, scale + 1, finest)
        if finest > 0:
            paste(frames, canvas, finest, b, t, place, SIDE, PX, BLOCKS, CHUNK)


@triton.jit
def open_scale(errors, looked, taken, ruled_out, places, k: tl.constexpr, PLACES: tl.constexpr, MOST: tl.constexpr,
               GRID: tl.constexpr, PREFILL: tl.constexpr):
    """The state of a scale of one clip before a group is chosen: of its tile the places, their levels and errors, and
    their errors after a look at this scale; and what is added to the scores of its patches, to bar those taken."""
    patch = GRID[k][0] + tl.arange(0, GRID[k][2])
    listed = tl.load(places + patch[:, None] * MOST + tl.arange(0, GRID[k][3])[None, :],
                     mask=(patch < GRID[k][1])[:, None], other=-1)
    place = tl.maximum(listed, 0)
    level = tl.zeros_like(place)
    if not PREFILL:
        level = tl.load(looked + place).to(tl.int32)
    gone = tl.load((ruled_out if PREFILL else taken) + patch, mask=patch < GRID[k][1], other=1) > 0
    level = tl.where(listed < 0, len(GRID), level)  # no place counts as one that is known exactly
    now, after = tl.load(errors + level * PLACES + place), tl.load(errors + (k + 1) * PLACES + place)
    return place, level, now, after, tl.where(gone, float("-inf"), 0.0)


@triton.jit
def open_scales(errors, looked, taken, ruled_out, places, PLACES: tl.constexpr, MOST: tl.constexpr, GRID: tl.constexpr,
                PREFILL: tl.constexpr):
    """`open_scale` of every scale."""
    scales = ()
    for k in tl.static_range(len(GRID)):
        opened = open_scale(errors, looked, taken, ruled_out, places, k, PLACES, MOST, GRID, PREFILL)
        scales = scales + (opened,)  # type: ignore[assignment] # the loop is unrolled
    return scales


@triton.jit
def gains(level, now, after, k: tl.constexpr, PLACES: tl.constexpr):
    """How much each patch of a scale would lower the mean error of a frame's places."""
    return tl.sum(tl.where(level <= k, now - after, 0.0), axis=1) * (1.0 / PLACES)


@triton.jit
def take(known, errors, patch_at, id, scale, k: tl.constexpr, PLACES: tl.constexpr, GRID: tl.constexpr):
    """The state of a scale (see `open_scale`) after a look at patch `id`, of any `scale`."""
    place, level, now, after, barred = known
    finer = (tl.load(patch_at + scale * PLACES + place) == id) & (level <= scale)
    now = tl.where(finer, tl.load(errors + (scale + 1) * PLACES + place), now)
    barred = tl.where(GRID[k][0] + tl.arange(0, GRID[k][2]) == id, float("-inf"), barred)
    return place, tl.where(finer, scale + 1, level), now, after, barred


@triton.jit
def pick_scored(logits, errors, looked, taken, ruled_out, places, patch_at, strength, seed, temperature, b, B, draw,
                PATCHES: tl.constexpr, PB: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, PLACES: tl.constexpr,
                MOST: tl.constexpr, GRID: tl.constexpr, RULE: tl.constexpr, PREFILL: tl.constexpr,
                SAMPLES: tl.constexpr):
    """Take the ids of a group of one clip, one after the other, each scored by what those before leave to be seen.

    Returns the ids (KP,), and the loss (KP,) that is predicted before each of them.
    """
    errors, looked, taken = errors + b * (len(GRID) + 1) * PLACES, looked + b * PLACES, taken + b * PATCHES
    scales = open_scales(errors, looked, taken, ruled_out, places, PLACES, MOST, GRID, PREFILL)
    slot = tl.arange(0, KP)
    group, losses = tl.zeros((KP,), tl.int32), tl.zeros((KP,), tl.float32)
    FINEST: tl.constexpr = len(GRID) - 1
    held = RULE[1] * tl.load(errors + FINEST * PLACES + scales[FINEST][0])
    strong = tl.load(strength) * 0.6931471805599453  # of logarithms to base 2
    for i in range(K):
        place, level, now, after, barred = scales[FINEST]
        told = tl.where(level == 0, tl.maximum(now, tl.minimum(held, RULE[2] * now)), now)
        losses = tl.where(slot == i, total(told) * (1.0 / PLACES), losses)
        best = tl.full((), -(1 << 63), tl.int64)
        for k in tl.static_range(len(GRID)):
            place, level, now, after, barred = scales[k]
            patch = GRID[k][0] + tl.arange(0, GRID[k][2])
            scores = tl.load(logits + (b * K + i) * (PATCHES + 1) + patch, mask=patch < PATCHES, other=float("-inf"))
            scores += strong * tl.log2(tl.maximum(gains(level, now, after, k, PLACES), 0.0) + RULE[0])
            if SAMPLES:
                scores = noisy(scores, seed, temperature, ((draw + i) * B + b) * PB + patch)
            best = tl.maximum(best, tl.max(ranked(scores + barred, patch), axis=0))
        id, scale = ranked_index(best), 0
        for k in tl.static_range(1, len(GRID)):
            scale += (id >= GRID[k][0]).to(tl.int32)
        group = tl.where(slot == i, id, group)
        for k in tl.static_range(len(GRID)):
            scales = scales[:k] + (take(scales[k], errors, patch_at, id, scale, k, PLACES, GRID),) + scales[k + 1:]
    for k in tl.static_range(len(GRID)):
        place, level, now, after, barred = scales[k]
        patch = GRID[k][0] + tl.arange(0, GRID[k][2])
        tl.store(taken + patch, (barred < 0).to(tl.int8), mask=patch < GRID[k][1])
        if k == FINEST:  # whose patches cover one place each
            tl.store(looked + place, level.to(tl.int8), mask=(patch < GRID[k][1])[:, None])
    return group, losses
