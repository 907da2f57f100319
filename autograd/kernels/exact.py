"""Squares added up without rounding, in integers: level k counts multiples of 2^(40·(k - 26)).

From a few squares at a time, all that is a multiple of the level of the greatest is taken away, as integers;
from what is left, at the level below; and so on until nothing is left. It is the extraction of Demmel &
Nguyen 2013, "Fast reproducible floating-point summation", with levels that are the same for all data, so that
sums of any parts may be added.
"""

from __future__ import annotations

import numpy as np

from tesserec.autograd.kernels.jit import inlined, kernel

LEVELS, ZERO = 51, 26  # level ZERO counts ones; the last level counts what is not finite, or beyond 2⁹⁶⁰
BITS = np.int64(40)  # of a level
NEAR = 1024  # squares under way: they stay in the L1 cache
BEYOND = 1023 + 960  # the exponent of 2⁹⁶⁰
SIZE = np.int64((1 << 63) - 1)  # the bits of |x|


@kernel
def add_squares(values, levels):
    """levels += Σ values², as carried integers. values: (n,) float32 or float64; levels: (LEVELS,) i8.

    The square of a float64 is rounded first, of a float32 it need not be.
    """
    squares = np.empty(NEAR, np.float64)
    for start in range(0, values.shape[0], NEAR):
        count = min(NEAR, values.shape[0] - start)
        exponent = _square(values[start : start + count], squares)
        if exponent >= BEYOND:
            levels[LEVELS - 1] += 1
            continue
        level, left = (exponent - 1023) // BITS + ZERO, exponent > 0
        while left and level >= 0:
            step = np.int64((1023 + BITS * (level - ZERO) + 52) << 52).view(np.float64)
            found, left = _take(squares[:count], step * 1.5)
            levels[level] += found
            level -= 1
    for level in range(LEVELS - 2):
        levels[level + 1] += levels[level] >> BITS
        levels[level] &= (np.int64(1) << BITS) - 1


@inlined
def _square(values, squares):
    """Fill `squares` -> the exponent of the greatest."""
    greatest = np.int64(0)
    for i in range(values.shape[0]):
        x = np.float64(values[np.uint64(i)])
        squares[np.uint64(i)] = x * x
        greatest = max(greatest, np.float64(x * x).view(np.int64) & SIZE)  # a NaN may have a sign
    return greatest >> 52


@inlined
def _take(squares, large):
    """How often the last bit of `large` is in all of them, which is taken away; whether anything is left."""
    total, left, base = np.int64(0), np.int64(0), np.float64(large).view(np.int64)
    for i in range(squares.shape[0]):
        square = squares[np.uint64(i)]
        moved = square + large
        total += np.float64(moved).view(np.int64) - base
        rest = square - (moved - large)
        squares[np.uint64(i)] = rest
        left |= np.float64(rest).view(np.int64) << np.int64(1)
    return total, left != 0
