"""Counting ids: by row of a table, by class of rows."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def count_rows(ids, counts):
    """Add 1 to counts[id] of every id → the place of the first id outside the table, or -1.

    counts: (R,) uint32; they stop at 2³² - 1.
    """
    rows = np.uint64(counts.shape[0])
    for i in range(ids.shape[0]):
        row = np.uint64(ids[i])  # a negative id is a huge unsigned one
        if row >= rows:
            return i
        if counts[row] != 0xFFFFFFFF:
            counts[row] += np.uint32(1)
    return -1


@njit(nogil=True, cache=True, error_model="numpy")
def count_classes(ids, bounds, limit, counts):
    """Add 1 to counts[k] of every id in bounds[k] … bounds[k+1]-1 → the first id outside [0, limit), or -1.

    bounds: (S+1,) rising from 0, past all ids; counts: (S,) int64.
    """
    for i in range(ids.shape[0]):
        row = ids[i]
        if row < 0 or row >= limit:
            return i
        low, high = 0, counts.shape[0]
        while high - low > 1:
            middle = (low + high) >> 1
            if bounds[middle] <= row:
                low = middle
            else:
                high = middle
        counts[low] += 1
    return -1
