"""What a pass knows about every clip: the columns of `state`, and where the rows of a pass stand."""

from __future__ import annotations

import triton
import triton.language as tl

# Columns of `state`, (B, COLUMNS) int32.
PEND_N = tl.constexpr(0)  # ids of the last frame's final group that are not in the cache yet
PEND_OFFSET = tl.constexpr(1)  # where in the last frame's ring slot they go
PEND_POSITION = tl.constexpr(2)  # rotary position of the first of them
PEND_FROZEN = tl.constexpr(3)  # 1: they are fed as they stood in the group, with padding (see `plain`)
VISUAL_POSITION = tl.constexpr(4)  # rotary position of the frame's first visual token
GROUP_POSITION = tl.constexpr(5)  # rotary position of the first id of every group of the frame
TOTAL = tl.constexpr(6)  # tokens counted so far
STEP_OFFSET = tl.constexpr(7)  # where in the frame's ring slot the group being fed goes
ACTIVE = tl.constexpr(8)  # 1: the clip goes on with its frame
ROOM = tl.constexpr(9)  # ids the frame may still spend
SLOTS = tl.constexpr(10)  # slots decoded in this frame
GROUPS = tl.constexpr(11)  # groups decoded in this frame
COLUMNS = 12


@triton.jit
def overlap(PDL: tl.constexpr):
    """Programmatic dependent launch (Hopper): the next kernel may be launched while this one runs. Before it calls
    `follow` a kernel may only read what no kernel writes: weights."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def follow(PDL: tl.constexpr):
    """Wait for the results of the kernel before."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def begin_frame(state, frame_len, clock, budgets, in_step, running, B, V: tl.constexpr, K: tl.constexpr,
                RING: tl.constexpr, CHUNK: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Advance the clock by a frame and prepare every clip for the prefill. One program."""
    overlap(PDL)
    follow(PDL)
    t = tl.load(clock) + 1
    frame = tl.load(clock + 1) + 1
    tl.store(clock, t)
    tl.store(clock + 1, frame)
    previous = (frame + RING - 1) % RING
    current = frame % RING
    b = tl.arange(0, BLOCK)
    real = b < B
    row = state + b * COLS
    pend = tl.load(row + PEND_N, mask=real, other=0)
    total = tl.load(row + TOTAL, mask=real, other=0)
    groups = tl.load(row + GROUPS, mask=real, other=0)
    group_position = tl.load(row + GROUP_POSITION, mask=real, other=0)
    together = tl.load(in_step + 1)  # of the frame before
    tl.store(in_step + 1, tl.load(in_step))
    frozen = (groups < tl.max(groups, axis=0)) & (together > 0)
    held = tl.load(frame_len + b * RING + previous, mask=real, other=0)
    tl.store(row + PEND_OFFSET, held, mask=real)
    tl.store(row + PEND_POSITION, tl.where(frozen, group_position, total), mask=real)
    tl.store(row + PEND_FROZEN, frozen.to(tl.int32), mask=real)
    tl.store(frame_len + b * RING + previous, held + pend, mask=real)
    tl.debug_barrier()
    tl.store(frame_len + b * RING + current, tl.zeros_like(b) + V, mask=real)
    tl.store(row + VISUAL_POSITION, total + pend, mask=real)
    tl.store(row + TOTAL, total + pend + V, mask=real)
    tl.store(row + GROUP_POSITION, total + pend + V - K, mask=real)
    budget = tl.load(budgets + b * CHUNK + t, mask=real, other=0)
    tl.store(row + ROOM, budget, mask=real)
    tl.store(row + ACTIVE, (budget > 0).to(tl.int32), mask=real)
    tl.store(row + SLOTS, tl.zeros_like(b), mask=real)
    tl.store(row + GROUPS, tl.zeros_like(b), mask=real)
    tl.store(running, tl.sum((budget > 0).to(tl.int32), axis=0))


@triton.jit
def fed_rows(size, slots):
    """Rows of a final group that is fed as it stood: its `size` ids, and the padding before the last of them. `slots`
    lists where they stood: first the ids, then the padding, each in order."""
    return tl.load(slots + size - 1, mask=size > 0, other=-1) + 1


@triton.jit
def place_rows(b, r, real, state, pend_slots, clock, K: tl.constexpr, RING: tl.constexpr, COLS: tl.constexpr,
               PREFILL: tl.constexpr):
    """Ring slot, offset in it, rotary position and validity of rows r of clips b."""
    frame = tl.load(clock + 1)
    row = state + b * COLS
    if PREFILL:
        pending = r < K
        size = tl.load(row + PEND_N, mask=real, other=0)
        frozen = tl.load(row + PEND_FROZEN, mask=real, other=0) > 0
        stood = tl.load(pend_slots + b * K + r, mask=real & pending, other=0)
        pend_position = tl.load(row + PEND_POSITION, mask=real, other=0) + tl.where(frozen, stood, r)
        slot = tl.where(pending, (frame + RING - 1) % RING, frame % RING)
        offset = tl.where(pending, tl.load(row + PEND_OFFSET, mask=real, other=0) + r, r - K)
        position = tl.where(pending, pend_position, tl.load(row + VISUAL_POSITION, mask=real, other=0) + r - K)
        fed = tl.where(frozen, fed_rows(size, pend_slots + b * K), size)
        valid = real & ((r >= K) | (r < fed))
    else:
        slot = tl.zeros_like(r) + frame % RING
        offset = tl.load(row + STEP_OFFSET, mask=real, other=0) + r
        position = tl.load(row + GROUP_POSITION, mask=real, other=0) + r
        valid = real & (tl.load(row + ACTIVE, mask=real, other=0) > 0)
    return slot, offset, position, valid
