"""Which of some scores is the best, or is drawn."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def noisy(scores, seed, temperature, number):
    """Scores whose largest is a sample, by Gumbel noise; `number` is another for every score that is ever drawn."""
    uniform = tl.maximum(tl.rand(tl.load(seed), number), 1e-7)
    return scores / tl.load(temperature) - tl.log(-tl.log(uniform))


@triton.jit
def ranked(scores, index):
    """Scores as 64-bit integers in their order; of equal scores the first is the largest."""
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # float order as integer order
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def ranked_index(best):
    """The index of one of `ranked`."""
    return 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
