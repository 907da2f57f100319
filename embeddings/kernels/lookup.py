"""Lookup: rows of a pool gathered into bags, one lane after the other.

A lane is the bags of one feature in one table. It says where ids, offsets and weights lie (addresses), which
rows of the pool the table has, and which columns of the output are its own. The backward pass walks the same
lanes (`coalesce.py`). Nothing is checked here but ids, by `first_invalid`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.memory import float32_at, int64_at, like_at, prefetch

LANE = np.dtype(
    [
        ("table", np.int64),  # position of the table in its pool
        ("first_row", np.int64),  # row of the pool that holds id 0
        ("num_rows", np.int64),  # ids are below it
        ("ids", np.int64),  # address of int64 ids; a bag is ids[offsets[b]:offsets[b + 1]]
        ("offsets", np.int64),  # address of int64 offsets of the first bag
        ("weights", np.int64),  # address of float32 weights, beside the ids; 0 for none
        ("bags", np.int64),  # number of bags
        ("count", np.int64),  # number of ids
        ("mean", np.int64),  # 1: divide by the number of ids
        ("column", np.int64),  # where the D columns of this lane begin in the output
        ("grad", np.int64),  # address of the output's gradient at bag 0, `column`; set on the way back
        ("stride", np.int64),  # items from one bag's gradient to the next
        ("start", np.int64),  # position of its first id among those of all lanes that are summed
    ]
)
AHEAD = 16  # ids between the row that is asked for and the row that is read
LINE = 64  # bytes


@kernel
def first_invalid(lanes):
    """(lane, position of the id in its array) of the first id outside its table, or (-1, -1)."""
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        ids, offsets, limit = int64_at(lane.ids), int64_at(lane.offsets), np.uint64(lane.num_rows)
        start, stop = offsets[0], offsets[lane.bags]
        outside: Any = False
        for i in range(start, stop):
            outside |= np.uint64(ids[i]) >= limit  # a negative id is a huge one
        if outside:
            for i in range(start, stop):
                if np.uint64(ids[i]) >= limit:
                    return k, i
    return -1, -1


@kernel
def pool_bags(pool, lanes, lo, hi, out):
    """out[b, column:column + D] = Σ w·pool[first_row + id] over bag b, for samples lo … hi-1 of every lane.

    pool: (R, D); out: (B, ΣD), the lanes' columns overwritten. An empty bag gives zeros. Rows are added in
    the order of the ids.
    """
    size, width = pool.itemsize, pool.shape[1]
    row_bytes = width * size
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        ids, offsets = int64_at(lane.ids), int64_at(lane.offsets)
        rows = pool.ctypes.data + lane.first_row * row_bytes
        last = offsets[hi] - 1
        for b in range(lo, hi):
            start, stop = offsets[b], offsets[b + 1]
            total = like_at(pool, out.ctypes.data + (b * out.shape[1] + lane.column) * size)
            for i in range(start, stop):
                ahead = rows + ids[min(i + AHEAD, last)] * row_bytes
                for line in range(0, row_bytes, LINE):
                    prefetch(ahead + line)
            if lane.weights == 0:
                _sum_rows(pool, rows, ids, start, stop, total)
            else:
                _sum_weighted_rows(pool, rows, ids, float32_at(lane.weights), start, stop, total)
            if lane.mean and stop - start > 1:
                share = pool.dtype.type(1) / pool.dtype.type(stop - start)
                for d in range(width):
                    total[d] *= share


@kernel
def _sum_rows(pool, rows, ids, start, stop, total):
    """total[:D] = Σ of the rows that ids[start:stop] name; four per pass over `total`."""
    width = pool.shape[1]
    row_bytes = width * pool.itemsize
    if stop == start:
        for d in range(width):
            total[d] = 0
        return
    row = like_at(pool, rows + ids[start] * row_bytes)
    for d in range(width):
        total[d] = row[d]
    i = start + 1
    while i + 4 <= stop:
        p, q = like_at(pool, rows + ids[i] * row_bytes), like_at(pool, rows + ids[i + 1] * row_bytes)
        r, s = like_at(pool, rows + ids[i + 2] * row_bytes), like_at(pool, rows + ids[i + 3] * row_bytes)
        for d in range(width):
            total[d] = total[d] + p[d] + q[d] + r[d] + s[d]
        i += 4
    while i < stop:
        row = like_at(pool, rows + ids[i] * row_bytes)
        for d in range(width):
            total[d] += row[d]
        i += 1


@kernel
def _sum_weighted_rows(pool, rows, ids, weights, start, stop, total):
    """total[:D] = Σ weights[i]·row of ids[i], i from start to stop - 1."""
    width = pool.shape[1]
    for d in range(width):
        total[d] = 0
    for i in range(start, stop):
        row = like_at(pool, rows + ids[i] * width * pool.itemsize)
        for d in range(width):
            total[d] += weights[i] * row[d]
