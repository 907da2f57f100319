"""An open-addressing table: 64-bit key → non-zero 32-bit value. A slot whose value is 0 is free.

Linear probing from a slot that is proportional to the mixed key, so that any capacity will do and growth can be
gentle. `used` and `limit` count filled slots: a kernel that would pass `limit` stops and says how far it came.
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
def count(keys, slot_keys, slot_values, used, limit):
    """Add 1 to the value of every key → (keys taken, slots used). Values stop at 2³² - 1."""
    for i in range(keys.shape[0]):
        at = _slot(slot_keys, slot_values, keys[i])
        if slot_values[at] == 0:
            if used == limit:
                return i, used
            slot_keys[at] = keys[i]
            used += 1
        if slot_values[at] != 0xFFFFFFFF:
            slot_values[at] += np.uint32(1)
    return keys.shape[0], used


@njit(nogil=True, cache=True, error_model="numpy")
def number(keys, slot_keys, slot_values, used, limit):
    """Give every new key the next number, from 1 → (keys taken, slots used)."""
    for i in range(keys.shape[0]):
        at = _slot(slot_keys, slot_values, keys[i])
        if slot_values[at] == 0:
            if used == limit:
                return i, used
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
def first_seen(ids, seen, rows):
    """rows[:n] = where each id above 0 is met for the first time, marked in `seen` → n. seen: (max id + 1,) u1."""
    found = 0
    for i in range(ids.shape[0]):
        if ids[i] > 0 and seen[ids[i]] == 0:
            seen[ids[i]] = 1
            rows[found] = i
            found += 1
    return found
