"""XXH64 of every string of an Arrow column, or of every integer's eight bytes, read in place.

XXH64 (Yann Collet, "xxHash fast digest algorithm", version 0.1.1) is written down here because fitted
encoders depend on it for ever: the same text must find the same row years later.
"""

from __future__ import annotations

import numpy as np
from numba import njit

P1 = np.uint64(0x9E3779B185EBCA87)
P2 = np.uint64(0xC2B2AE3D27D4EB4F)
P3 = np.uint64(0x165667B19E3779F9)
P4 = np.uint64(0x85EBCA77C2B2AE63)
P5 = np.uint64(0x27D4EB2F165667C5)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _rotate(x, bits):
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _read(data, at, count):
    """`count` bytes from `at`, little-endian; LLVM turns the constant counts into one load."""
    word = np.uint64(0)
    for k in range(count):
        word |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return word


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _round(lane, word):
    return _rotate(lane + word * P2, 31) * P1


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _word(h, word):
    """Mix eight bytes into the hash."""
    return _rotate(h ^ _round(np.uint64(0), word), 27) * P1 + P4


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _avalanche(h):
    h ^= h >> np.uint64(33)
    h *= P2
    h ^= h >> np.uint64(29)
    h *= P3
    return h ^ (h >> np.uint64(32))


@njit(nogil=True, cache=True, error_model="numpy")
def _stripes(data, at, stop, seed):
    """The hash of all whole 32-byte stripes of data[at:stop]."""
    a, b, c, d = seed + P1 + P2, seed + P2, seed, seed - P1
    while at + 32 <= stop:
        a = _round(a, _read(data, at, 8))
        b = _round(b, _read(data, at + 8, 8))
        c = _round(c, _read(data, at + 16, 8))
        d = _round(d, _read(data, at + 24, 8))
        at += 32
    h = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
    for lane in (a, b, c, d):
        h = (h ^ _round(np.uint64(0), lane)) * P1 + P4
    return h


@njit(nogil=True, cache=True, error_model="numpy")
def hash_bytes(data, at, stop, seed):
    """XXH64(data[at:stop]). data: u1."""
    size = stop - at
    if size >= 32:
        h = _stripes(data, at, stop, seed)
        at += size - size % 32
    else:
        h = seed + P5
    h += np.uint64(size)
    while at + 8 <= stop:
        h = _word(h, _read(data, at, 8))
        at += 8
    if at + 4 <= stop:
        h = _rotate(h ^ (_read(data, at, 4) * P1), 23) * P2 + P3
        at += 4
    while at < stop:
        h = _rotate(h ^ (np.uint64(data[at]) * P5), 11) * P1
        at += 1
    return _avalanche(h)


@njit(nogil=True, cache=True, error_model="numpy")
def hash_strings(data, offsets, seed, out):
    """out[i] = XXH64(data[offsets[i]:offsets[i+1]]). data: u1; offsets: (n+1,) i4 or i8; out: (n,) u8."""
    for i in range(out.shape[0]):
        out[i] = hash_bytes(data, np.int64(offsets[i]), np.int64(offsets[i + 1]), seed)


@njit(nogil=True, cache=True, error_model="numpy")
def hash_integers(values, seed, out):
    """out[i] = XXH64(the eight little-endian bytes of values[i]). values: (n,) i8; out: (n,) u8."""
    for i in range(out.shape[0]):
        out[i] = _avalanche(_word(seed + P5 + np.uint64(8), np.uint64(values[i])))
