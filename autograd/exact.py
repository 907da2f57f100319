"""Sums of squares that no order of adding changes: a norm has the same bits however arrays are shared out.

They are integers, and add up as such, over arrays, threads and ranks. Only `total_of` rounds, once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.kernels.exact import BITS, LEVELS, ZERO, add_squares
from tesserec.autograd.workers import parallel_map

Levels = npt.NDArray[np.int64]  # (LEVELS,), see `kernels.exact`; the sum of Levels is Levels

NOTHING: Levels = np.zeros(LEVELS, np.int64)
NOTHING.flags.writeable = False

_PIECE = 1 << 18  # numbers that are worth a task of their own


def levels_of(array: npt.NDArray[Any]) -> Levels:
    """Σ x² over an array of float32 or float64, of any shape; the square of a float64 is rounded."""
    flat = np.ascontiguousarray(array).reshape(-1)
    pieces = [flat[lo : lo + _PIECE] for lo in range(0, flat.size, _PIECE)]
    levels = np.zeros((len(pieces), LEVELS), np.int64)
    parallel_map(lambda item: add_squares(*item), list(zip(pieces, levels, strict=True)))
    total: Levels = levels.sum(axis=0)
    return total


def total_of(levels: Levels) -> float:
    """The sum, as the float nearest to it; infinite if a square was not finite, or beyond 2⁹⁶⁰."""
    if levels[-1]:
        return float("inf")
    units = sum(count << int(BITS) * k for k, count in enumerate(levels.tolist()))
    return float(units / (1 << int(BITS) * ZERO))
