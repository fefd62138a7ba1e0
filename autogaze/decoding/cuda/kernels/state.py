"""The state of every clip: the columns of `state`, and where the rows of a pass stand.

Where and at which position tokens are fed is what `autogaze.decoding.sequence` says.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.cuda.buffers import COLUMNS as NAMES

PEND_N = tl.constexpr(NAMES.index("PEND_N"))
PEND_OFFSET = tl.constexpr(NAMES.index("PEND_OFFSET"))
PEND_POSITION = tl.constexpr(NAMES.index("PEND_POSITION"))
VISUAL_POSITION = tl.constexpr(NAMES.index("VISUAL_POSITION"))
GROUP_POSITION = tl.constexpr(NAMES.index("GROUP_POSITION"))
TOTAL = tl.constexpr(NAMES.index("TOTAL"))
STEP_OFFSET = tl.constexpr(NAMES.index("STEP_OFFSET"))
ACTIVE = tl.constexpr(NAMES.index("ACTIVE"))
ROOM = tl.constexpr(NAMES.index("ROOM"))
SLOTS = tl.constexpr(NAMES.index("SLOTS"))
COLS = tl.constexpr(len(NAMES))


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


@triton.jit(do_not_specialize=["B", "RING"])
def begin_frame(state, frame_len, clock, budgets, running, B, RING, V: tl.constexpr, K: tl.constexpr,
                CHUNK: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Advance the clock by a frame and prepare every clip for the prefill. One program, BLOCK clips at a time."""
    overlap(PDL)
    follow(PDL)
    t = tl.load(clock) + 1
    frame = tl.load(clock + 1) + 1
    tl.store(clock, t)
    tl.store(clock + 1, frame)
    previous = (frame + RING - 1) % RING
    current = frame % RING
    going_on = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, B, BLOCK):
        b = first + tl.arange(0, BLOCK)
        real = b < B
        row = state + b * COLS
        pend = tl.load(row + PEND_N, mask=real, other=0)
        total = tl.load(row + TOTAL, mask=real, other=0)
        held = tl.load(frame_len + b * RING + previous, mask=real, other=0)
        tl.store(row + PEND_OFFSET, held, mask=real)
        tl.store(row + PEND_POSITION, total, mask=real)
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
        going_on += (budget > 0).to(tl.int32)
    tl.store(running, tl.sum(going_on, axis=0))


@triton.jit
def place_rows(b, r, real, state, clock, RING, K: tl.constexpr, PREFILL: tl.constexpr):
    """Ring slot, offset in it, rotary position and validity of rows r of clips b."""
    frame = tl.load(clock + 1)
    row = state + b * COLS
    if PREFILL:
        pending = r < K
        slot = tl.where(pending, (frame + RING - 1) % RING, frame % RING)
        offset = tl.where(pending, tl.load(row + PEND_OFFSET, mask=real, other=0) + r, r - K)
        position = tl.where(pending, tl.load(row + PEND_POSITION, mask=real, other=0) + r,
                            tl.load(row + VISUAL_POSITION, mask=real, other=0) + r - K)
        valid = real & ((r >= K) | (r < tl.load(row + PEND_N, mask=real, other=0)))
    else:
        slot = tl.zeros_like(r) + frame % RING
        offset = tl.load(row + STEP_OFFSET, mask=real, other=0) + r
        position = tl.load(row + GROUP_POSITION, mask=real, other=0) + r
        valid = real & (tl.load(row + ACTIVE, mask=real, other=0) > 0)
    return slot, offset, position, valid
