"""An open-addressing table: 64-bit key → non-zero 32-bit value. A slot whose value is 0 is free.

Linear probing from a slot that is proportional to the mixed key, so that any capacity will do and growth can
be gentle. `used` and `limit` count filled slots: a kernel that would pass `limit` stops and says where.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _slot(slot_keys, slot_values, key):
    """The slot that holds `key`, or the free slot where it belongs."""
    mixed = (np.uint64(key) ^ (np.uint64(key) >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    at = ((mixed >> np.uint64(32)) * np.uint64(slot_keys.shape[0])) >> np.uint64(32)
    while slot_values[at] != 0 and slot_keys[at] != key:
        at += np.uint64(1)
        if at == np.uint64(slot_keys.shape[0]):
            at = np.uint64(0)
    return at


@njit(nogil=True, cache=True, error_model="numpy")
def count(keys, start, slot_keys, slot_values, used, limit, new):
    """Add 1 to the value of keys[start:] → (where it stopped, slots used). Values stop at 2³² - 1.

    new[0], new[1], …: where the keys stand that were put in.
    """
    before = used
    for i in range(start, keys.shape[0]):
        at = _slot(slot_keys, slot_values, keys[i])
        if slot_values[at] == 0:
            if used == limit:
                return i, used
            slot_keys[at] = keys[i]
            new[used - before] = i
            used += 1
        if slot_values[at] != 0xFFFFFFFF:
            slot_values[at] += np.uint32(1)
    return keys.shape[0], used


@njit(nogil=True, cache=True, error_model="numpy")
def number(keys, start, slot_keys, slot_values, used, limit, new):
    """Number every new key of keys[start:] from 1 → (where it stopped, slots used); `new` as above."""
    before = used
    for i in range(start, keys.shape[0]):
        at = _slot(slot_keys, slot_values, keys[i])
        if slot_values[at] == 0:
            if used == limit:
                return i, used
            new[used - before] = i
            used += 1
            slot_keys[at] = keys[i]
            slot_values[at] = used
    return keys.shape[0], used


@njit(nogil=True, cache=True, error_model="numpy")
def place(keys, values, slot_keys, slot_values):
    """Put distinct keys with their non-zero values into a table that has room for them."""
    for i in range(keys.shape[0]):
        if values[i] != 0:
            at = _slot(slot_keys, slot_values, keys[i])
            slot_keys[at] = keys[i]
            slot_values[at] = values[i]


@njit(nogil=True, cache=True, error_model="numpy")
def find(keys, slot_keys, slot_values, out):
    """out[i] = the value of keys[i], or 0. out: (n,) int64."""
    for i in range(keys.shape[0]):
        out[i] = slot_values[_slot(slot_keys, slot_values, keys[i])]


@njit(nogil=True, cache=True, error_model="numpy")
def keep_last_two(groups, times, rows, last, before, count):
    """Keep, per group, the rows of the two latest times; of equal times the later row counts as later.

    groups: (n,) from 1. last, before: (G, 2) f8 as (time, row), starting at -inf. count: (G,) rows seen.
    """
    for i in range(groups.shape[0]):
        g = groups[i] - 1
        count[g] += 1
        if times[i] >= last[g, 0]:
            before[g, 0], before[g, 1] = last[g, 0], last[g, 1]
            last[g, 0], last[g, 1] = times[i], rows[i]
        elif times[i] >= before[g, 0]:
            before[g, 0], before[g, 1] = times[i], rows[i]
