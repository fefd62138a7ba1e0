"""From the newest row to a group of ids: heads, no repeats, budget, stop rule."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.cuda.kernels.ranking import noisy, ranked, ranked_index
from autogaze.decoding.cuda.kernels.residual import pick_scored
from autogaze.decoding.cuda.kernels.rows import load_pair, normed, project
from autogaze.decoding.cuda.kernels.state import (
    ACTIVE,
    COLS,
    PEND_N,
    ROOM,
    SLOTS,
    STEP_OFFSET,
    TOTAL,
    follow,
    overlap,
)


@triton.jit(do_not_specialize=["B"])
def read_heads(last, logits, losses, wl, wt, state, eps, B, VOCABULARY: tl.constexpr, K: tl.constexpr,
               C: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr, NB: tl.constexpr,
               LOSSES: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Logits (B, K, vocabulary) and, if LOSSES are asked for, predicted losses (B, K) of the newest row; NB columns of
    one head a program."""
    overlap(PDL)
    follow(PDL)
    head = tl.program_id(1)
    b = tl.program_id(0) * BM + tl.arange(0, BM)
    active = tl.load(state + b * COLS + ACTIVE, mask=b < B, other=0) > 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    rows_a, rows_b = load_pair(last, b * C, active, ca, cb, C)
    xa, xb = normed(rows_a, rows_b, wl.dtype.element_ty, eps, C)
    columns = tl.program_id(2) * NB + tl.arange(0, NB)
    values = project(xa, xb, wl + head * VOCABULARY, ca, cb, columns, K * VOCABULARY, VOCABULARY, C, PRECISION)
    to = logits + (b[:, None] * K + head) * VOCABULARY + columns[None, :]
    tl.store(to, values, mask=active[:, None] & (columns < VOCABULARY)[None, :])
    if LOSSES and tl.program_id(2) == 0:
        wa = tl.load(wt + head * C + ca).to(tl.float32)
        wb = tl.load(wt + head * C + cb, mask=cb < C, other=0.0).to(tl.float32)
        loss = tl.sum(xa.to(tl.float32) * wa[None, :], axis=1) + tl.sum(xb.to(tl.float32) * wb[None, :], axis=1)
        tl.store(losses + b * K + head, loss, mask=active)


@triton.jit
def pick_group(logits, taken, barred, seed, temperature, b, B, draw, PATCHES: tl.constexpr, PB: tl.constexpr,
               K: tl.constexpr, KP: tl.constexpr, PREFILL: tl.constexpr, SAMPLES: tl.constexpr):
    """Take the ids (KP,) of a group of one clip, the best or a drawn one of each head."""
    patch, slot = tl.arange(0, PB), tl.arange(0, KP)
    gone_before = barred if PREFILL else taken + b * PATCHES
    gone = (patch >= PATCHES) | (tl.load(gone_before + patch, mask=patch < PATCHES, other=1) > 0)
    group = tl.zeros((KP,), tl.int32)
    for i in tl.static_range(K):
        scores = tl.load(logits + (b * K + i) * (PATCHES + 1) + patch, mask=patch < PATCHES, other=float("-inf"))
        if SAMPLES:
            scores = noisy(scores, seed, temperature, ((draw + i) * B + b) * PB + patch)
        id = ranked_index(tl.max(ranked(tl.where(gone, float("-inf"), scores), patch), axis=0))
        gone = gone | (patch == id)
        group = tl.where(slot == i, id, group)
    tl.store(taken + b * PATCHES + patch, gone.to(tl.int8), mask=patch < PATCHES)
    return group


@triton.jit(do_not_specialize=["B", "RING", "SLOTS_OUT", "STOPS"])
def choose(logits, losses, errors, looked, places, patch_at, strength, taken, barred, state, frame_len, clock,
           requirements, ids, pend_ids, out_ids, out_chosen, out_loss, running, seed, temperature, B, RING, SLOTS_OUT,
           STOPS, PATCHES: tl.constexpr, PB: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, PLACES: tl.constexpr,
           MOST: tl.constexpr, GRID: tl.constexpr, RULE: tl.constexpr, SB: tl.constexpr, CHUNK: tl.constexpr,
           PREFILL: tl.constexpr, SAMPLES: tl.constexpr, PDL: tl.constexpr):
    """Take a group of ids for one clip: no repeats, none that is `barred` (PATCHES,), budget, stop rule; then prepare
    the clip's next pass.

    Without PLACES the heads alone say what is best and what loss they expect, else see `residual`.
    """
    overlap(PDL)
    follow(PDL)
    b = tl.program_id(0)
    row = state + b * COLS
    t, frame = tl.load(clock), tl.load(clock + 1)
    out = (t * B + b) * SLOTS_OUT
    if PREFILL:
        for first in range(0, SLOTS_OUT, SB):
            every = first + tl.arange(0, SB)
            tl.store(out_ids + out + every, tl.zeros_like(every), mask=every < SLOTS_OUT)
            tl.store(out_chosen + out + every, tl.zeros_like(every).to(tl.int8), mask=every < SLOTS_OUT)
            tl.store(out_loss + out + every, tl.full((SB,), float("nan"), tl.float32), mask=every < SLOTS_OUT)
        tl.debug_barrier()
    if tl.load(row + ACTIVE) == 0:
        if PREFILL:
            tl.store(row + PEND_N, 0)  # a frame with no budget
        return
    room, used = tl.load(row + ROOM), tl.load(row + SLOTS)
    need = tl.load(requirements + b * CHUNK + t)
    slot = tl.arange(0, KP)
    if PLACES > 0:
        group, loss = pick_scored(logits, errors, looked, taken, barred, places, patch_at, strength, seed, temperature,
                                  b, B, frame * 1024 + used, PATCHES, PB, K, KP, PLACES, MOST, GRID, RULE, PREFILL,
                                  SAMPLES)
    else:
        group = pick_group(logits, taken, barred, seed, temperature, b, B, frame * 1024 + used, PATCHES, PB, K, KP,
                           PREFILL, SAMPLES)
        loss = tl.load(losses + b * K + slot, mask=slot < K, other=0.0)
    within = slot < tl.minimum(room, K)
    met = within & (loss <= need) & (STOPS != 0)
    if PREFILL:
        met = met & (slot > 0)
    keep = within & ~met
    met_any = tl.max(met.to(tl.int32), axis=0)
    kept = tl.sum(keep.to(tl.int32), axis=0)
    place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(out_ids + out + used + slot, group, mask=within)
    tl.store(out_chosen + out + used + slot, keep.to(tl.int8), mask=within)
    tl.store(out_loss + out + used + slot, loss, mask=within)
    tl.store(pend_ids + b * K + place, group, mask=keep)
    tl.store(ids + b * K + slot, group, mask=slot < K)
    goes_on = (room > K) & (met_any == 0)
    tl.store(row + ACTIVE, goes_on.to(tl.int32))
    tl.store(row + PEND_N, tl.where(goes_on, 0, kept))
    tl.store(row + ROOM, room - K)
    tl.store(row + SLOTS, used + K)
    if goes_on:  # the ring slot holds the group once the next pass has run
        length = frame_len + b * RING + frame % RING
        held = tl.load(length)
        tl.store(row + STEP_OFFSET, held)
        tl.store(row + TOTAL, tl.load(row + TOTAL) + K)
        tl.store(length, held + K)
    elif STOPS != 0:
        tl.atomic_add(running, -1)
