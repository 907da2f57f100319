"""A fully connected layer whose weights were packed in advance, and whose input may be shared by many rows.

y = f(x·wᵀ + shift): what the columns give that are the same for a whole segment of rows is in `shift`, a line
for each segment. Numbers that are 0 in all rows of a tile, as many are after a ReLU, are left out of its
products. float32; addresses are integers, distances bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tesserec.autograd.kernels.gemm import WIDE, pack, padded, product_tile, tile_height
from tesserec.autograd.kernels.jit import dot_kernel, kernel
from tesserec.autograd.kernels.linear import RELU, SIGMOID, TANH
from tesserec.autograd.kernels.vector import LANES, TALL, floats, listed_tile
from tesserec.embeddings.kernels.memory import uint32_at

FEW = 4  # columns that are dotted one by one instead
NEAR = 64 << 10  # numbers of x that meet one panel after the other while they stay in the L2 cache
MANY = 1 << 30  # rows for which packing pays
RESTS = 5  # tiles at most behind those of full height


def packed_weights(w: Any) -> Any:
    """w (O, I) as `layer` reads it, flat."""
    w = np.ascontiguousarray(w)
    return w.reshape(-1) if len(w) < FEW else pack(w.T, MANY)


@kernel
def layer(x, w, shift, out, rows, starts, shape, activation, skip):
    """out = f(x·wᵀ + shift): (rows, I) -> (rows, O).

    x, shift, out: (address, bytes from row to row); w: address of `packed_weights`; line k of `shift` is that
    of rows starts[k] … starts[k + 1]-1. shape: (I, O). skip: leave out what is 0.
    """
    K, N = shape
    block = max(NEAR // max(K, 1) // TALL, 1) * TALL
    listed = np.empty(((min(rows, block) // TALL + RESTS) * K) if skip else 0, np.int64)
    segment = 0
    for lo in range(0, rows, block):
        count = min(rows - lo, block)
        part, to = (x[0] + lo * x[1], x[1]), (out[0] + lo * out[1], out[1])
        if N < FEW:
            _dots(part, w, to, count, K, N)
        elif skip:
            _listed_product(part, w, to, count, K, N, listed)
        else:
            _product(part, w, to, count, K, N)
        for r in range(lo, lo + count):
            while starts[segment + 1] <= r:
                segment += 1
            _finish(out[0] + r * out[1], shift[0] + segment * shift[1], N, activation)


@kernel
def _product(x, w, out, rows, K, N):
    for j in range(0, N, WIDE):
        width, i = min(N - j, WIDE), 0
        right = (w + j * K * 4, padded(width) * 4)
        while i < rows:
            height = tile_height(rows - i)
            at = (out[0] + i * out[1] + j * 4, out[1])
            ahead = (right[0] + K * WIDE * 4 * (rows + i) // rows, WIDE * 4 * height // rows)
            if j == 0:
                ahead = (x[0] + (i + height) * x[1], height * x[1] // max(K, 1))
            product_tile(height, (x[0] + i * x[1], x[1], 4), right, at, K, width, False, ahead)
            i += height


@kernel
def _listed_product(x, w, out, rows, K, N, listed):
    """listed: room for what is not 0 in each tile."""
    counts, used = np.empty(rows // TALL + RESTS, np.int64), np.empty(K, np.uint32)
    tiles, i = 0, 0
    while i < rows:
        height = tile_height(rows - i)
        counts[tiles] = _list_used(x[0] + i * x[1], x[1], height, used, listed[tiles * K :])
        tiles, i = tiles + 1, i + height
    lists = np.int64(listed.ctypes.data)
    for j in range(0, N, WIDE):
        width, i = min(N - j, WIDE), 0
        right = (w + j * K * 4, padded(width) * 4)
        for t in range(tiles):
            height = tile_height(rows - i)
            left = (x[0] + i * x[1], x[1], lists + t * K * 8)
            at = (out[0] + i * out[1] + j * 4, out[1])
            _listed_tile(height, left, right, at, counts[t], width)
            i += height


@kernel
def _list_used(x, row_bytes, rows, used, listed):
    """Which columns are not 0 in every row -> their number; NaN is not 0."""
    used[:] = 0
    for i in range(rows):
        bits = uint32_at(x + i * row_bytes)
        for k in range(len(used)):
            used[k] |= bits[k]
    count = 0
    for k in range(len(used)):
        listed[count] = k
        count += used[k] != 0
    return count


@kernel
def _listed_tile(height, left, right, out, terms, width):
    if width > LANES:
        if height == TALL:
            listed_tile(TALL, 2, left, right, out, terms, width, False)
        elif height == 4:
            listed_tile(4, 2, left, right, out, terms, width, False)
        else:
            listed_tile(1, 2, left, right, out, terms, width, False)
    elif height == TALL:
        listed_tile(TALL, 1, left, right, out, terms, width, False)
    elif height == 4:
        listed_tile(4, 1, left, right, out, terms, width, False)
    else:
        listed_tile(1, 1, left, right, out, terms, width, False)


@dot_kernel
def _dots(x, w, out, rows, K, N):
    for i in range(rows):
        a, o = floats(x[0] + i * x[1]), floats(out[0] + i * out[1])
        for j in range(N):
            line, total = floats(w + j * K * 4), np.float32(0)
            for k in range(K):
                total += a[k] * line[k]
            o[j] = total


@kernel
def _finish(out, shift, N, activation):
    """out = f(out + shift), one row."""
    z, s, zero, one = floats(out), floats(shift), np.float32(0), np.float32(1)
    if activation == RELU:
        for j in range(N):
            v = z[j] + s[j]
            z[j] = zero if v <= zero else v
        return
    for j in range(N):
        z[j] += s[j]
    if activation == SIGMOID:
        for j in range(N):
            small = np.float32(math.exp(-abs(z[j])))
            z[j] = (one if z[j] >= zero else small) / (one + small)
    elif activation == TANH:
        for j in range(N):
            z[j] = math.tanh(z[j])
