"""Which rows were touched: a bit for each row of a pool."""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.embeddings.kernels.memory import int64_at, uint32_at

ONE = np.uint64(1)
WORD = np.uint64(6)  # 2 to this power are the bits of a word
PLACE = np.uint64(63)  # the bits of a row's number that say which bit of its word it is


@kernel
def mark_rows(lanes, bits):
    """Set the bit of every row that an id of the lanes names. bits: (⌈R / 64⌉,) u8."""
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        offsets, ids, step = int64_at(lane.offsets), uint32_at(lane.ids), 2 - lane.narrow
        for i in range(offsets[0], offsets[lane.bags]):
            row = np.uint64(lane.first_row + np.int64(ids[i * step]))
            bits[row >> WORD] |= ONE << (row & PLACE)


@kernel
def count_rows(bits):
    """How many bits are set."""
    count = 0
    for word in bits:
        while word:
            word = _without_lowest(word)
            count += 1
    return count


@kernel
def take_rows(bits, rows):
    """rows (U,) i8 = the numbers of the bits that are set, increasing; then none is."""
    at = 0
    for k in range(bits.shape[0]):
        word = bits[k]
        while word:
            rest = _without_lowest(word)
            rows[at] = k * 64 + _number(word ^ rest)
            word, at = rest, at + 1
        bits[k] = 0


@inlined
def _without_lowest(word):
    return word & (word - ONE)


@inlined
def _number(bit):
    """Which bit it is."""
    number = 0
    while bit > ONE:
        bit >>= ONE
        number += 1
    return number
