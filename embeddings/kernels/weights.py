"""Gradients of per-id weights, and weights that are learned per position in the bag."""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import dot_kernel, kernel
from tesserec.embeddings.kernels.memory import LINE, int64_at, prefetch, uint32_at
from tesserec.embeddings.kernels.rows import get

AHEAD = 64  # cache lines between the row that is asked for and the row that is read


@kernel
def weight_grads(pool, lanes, lo, hi, like, out):
    """out[i] += row of id i · gradient of its bag, over the number of its ids for "mean".

    For bags lo … hi-1 of every lane, as far as it has them. pool: (R, D) stored; lanes: with `grad`, of the
    type of `like`; out: (L,), beside the ids.
    """
    width = pool.shape[1]
    row_bytes, size = width * pool.itemsize, like.itemsize
    ahead = 8 + AHEAD * LINE // row_bytes
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        offsets, rows = int64_at(lane.offsets), pool.ctypes.data + lane.first_row * row_bytes
        ids, step = uint32_at(lane.ids), 2 - lane.narrow  # the low half of an int64 says it all
        last = offsets[min(hi, lane.bags)] - 1
        for b in range(lo, min(hi, lane.bags)):
            grad, bag = lane.grad + b * lane.stride * size, offsets[b + 1] - offsets[b]
            bag = np.int64(uint32_at(lane.sizes)[b]) if lane.sizes else bag
            share = 1 / bag if lane.mean and bag > 1 else 1.0
            for i in range(offsets[b], offsets[b + 1]):
                due = rows + np.int64(ids[min(i + ahead, last) * step]) * row_bytes
                for line in range(0, row_bytes, LINE):
                    prefetch(due + line)
                row = rows + np.int64(ids[i * step]) * row_bytes
                out[i] += share * _dot(pool, row, like, grad, width)


@dot_kernel
def _dot(pool, row, like, grad, width):
    """Of the row at address `row` and the gradient at address `grad`."""
    total = like.dtype.type(0)
    for d in range(width):
        total += get(pool, row, d) * get(like, grad, d)
    return total


@kernel
def position_weights(offsets, table, out):
    """out[i] = table[position of i in its bag], the last one beyond its end. offsets: (B + 1,); out: (L,)."""
    end = table.shape[0] - 1
    for b in range(offsets.shape[0] - 1):
        for i in range(offsets[b], offsets[b + 1]):
            out[i] = table[min(i - offsets[b], end)]


@kernel
def position_grads(offsets, grads, out):
    """out[p] += Σ grads[i] over the ids at position p of their bags, in order; see `position_weights`."""
    end = out.shape[0] - 1
    for b in range(offsets.shape[0] - 1):
        for i in range(offsets[b], offsets[b + 1]):
            out[min(i - offsets[b], end)] += grads[i]
