"""Columns of a buffer, shuffled and written straight into the layout of its batches.

One column at a time over all rows of the buffer: first its pieces are joined in `scratch` (ids narrowed, so
that the column fits a core's cache; values checked on the way), then rows are picked in their final order.
Batch k holds rows order[cuts[k]] … order[cuts[k + 1] - 1]. Picking batch by batch instead costs four times as
much: every pick then misses the cache.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

kernel = njit(nogil=True, cache=True, error_model="numpy")


@kernel
def join_floats(source, out):
    """out = source; whether every value is finite."""
    good = True
    for i in range(len(source)):
        good = good and math.isfinite(source[i])
        out[i] = source[i]
    return good


@kernel
def join_ids(source, limit, out):
    """out = source, narrowed to the type of `out`; whether every id is in [0, limit)."""
    good = True
    for i in range(len(source)):
        good = good and bool(np.uint64(source[i]) < np.uint64(limit))  # a negative id is a huge unsigned one
        out[i] = source[i]
    return good


@kernel
def pick_floats(scratch, order, column, out):
    """out[i, column] = scratch[order[i]]: (n,) → a column of (n, C)."""
    for i in range(len(order)):
        out[i, column] = scratch[np.uint64(order[i])]


@kernel
def pick_ids(scratch, order, cuts, places, out):
    """The ids of a feature with one per row: (n,) → those of batch k from out[places[k]] on."""
    for k in range(len(cuts) - 1):
        picked = out[places[k] : places[k] + cuts[k + 1] - cuts[k]]
        for i in range(len(picked)):
            picked[i] = scratch[np.uint64(order[cuts[k] + i])]


@kernel
def pick_bags(scratch, starts, order, cuts, places, out):
    """The ids of a list feature, where row r has scratch[starts[r] : starts[r + 1]] → likewise."""
    for k in range(len(cuts) - 1):
        place = np.uint64(places[k])
        for i in range(cuts[k], cuts[k + 1]):
            row = np.uint64(order[i])
            begin = np.uint64(starts[row])
            length = np.uint64(starts[row + np.uint64(1)]) - begin
            for j in range(length):
                out[place + j] = scratch[begin + j]
            place += length
