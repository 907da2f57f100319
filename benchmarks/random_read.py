"""The limit of a lookup: how fast rows at random places can be read at all, with nothing done with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from tesserec.embeddings.kernels.memory import LINE, prefetch
from tesserec.embeddings.kernels.rows import stored

AHEAD = 64  # ids; more was not faster


def read_rows(pool: npt.NDArray[Any], ids: npt.NDArray[np.int64]) -> None:
    """Read every cache line of rows `ids` (n,) of `pool` (R, D), in their order, on one thread."""
    _read_rows(stored(pool), ids)


@njit(nogil=True, cache=True, error_model="numpy")
def _read_rows(pool, ids):  # type: ignore[no-untyped-def]
    """A sum that needs one element of each line; without it the compiler would read nothing."""
    row_bytes, per_line = pool.shape[1] * pool.itemsize, LINE // pool.itemsize
    total, last = pool.dtype.type(0), ids.shape[0] - 1
    for i in range(ids.shape[0]):
        row = pool.ctypes.data + ids[np.uint64(min(i + AHEAD, last))] * row_bytes
        for line in range(0, row_bytes, LINE):
            prefetch(row + line)
        for d in range(0, pool.shape[1], per_line):
            total += pool[np.uint64(ids[np.uint64(i)]), np.uint64(d)]
    return total
