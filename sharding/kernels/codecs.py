"""Codecs: blocks of float32 rows to the bytes that travel, and back. `codecs.py` says what each promises.

A block is `rows` rows of `width` numbers; blocks is (K, 4) int64: where its numbers begin, where its bytes
(or 16-bit units) do, rows, width.
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.embeddings.kernels.memory import like_at
from tesserec.embeddings.kernels.rows import get, put_nearest

F = np.float32
SIZE = np.uint32(0x7FFFFFFF)  # the bits of |x|
INFINITE = np.uint32(0x7F800000)  # those of infinity; NaN has greater ones
LEAST = F(2.0**-126)  # the least normal number
ROUND = F(1.5 * 2**23)  # added to a small number, it leaves its nearest integer in the low bits
UP = np.uint32(0xFFFF)  # makes the cut to bfloat16 one to the next greater
CODES = F(127)


@kernel
def encode_fp16(values, blocks, lo, hi, out):
    """out (…,) i2: of blocks lo … hi-1 first e, then every number times 2ᵉ as float16.

    2ᵉ moves the greatest of a block's numbers to [2¹⁴, 2¹⁵), so that none is too large, and only those are
    lost that are 2³⁸ times smaller.
    """
    for k in range(lo, hi):
        at, to, size = blocks[k, 0], blocks[k, 1], blocks[k, 2] * blocks[k, 3]
        if size:
            exponent = _lift(_greatest(values[at : at + size]))
            out[to] = exponent
            factor, address = _power(exponent), out[to + 1 :].ctypes.data
            like = like_at(out, address)
            for i in range(size):
                put_nearest(like, address, i, values[np.uint64(at + i)] * factor)


@kernel
def decode_fp16(data, blocks, lo, hi, out):
    """out = the numbers of blocks lo … hi-1. data: (…,) i2."""
    for k in range(lo, hi):
        at, source, size = blocks[k, 0], blocks[k, 1], blocks[k, 2] * blocks[k, 3]
        if size:
            factor, address = _power(-np.int64(data[source])), data[source + 1 :].ctypes.data
            like = like_at(data, address)
            for i in range(size):
                out[np.uint64(at + i)] = get(like, address, i) * factor


@kernel
def encode_int8(values, blocks, lo, hi, out):
    """out (…,) u1: of each row in blocks lo … hi-1 its scale, a bfloat16, then its numbers / scale.

    The scale is the row's greatest number / 127, rounded up; NaN where one is not finite; 0 where the scale
    would be no normal number.
    """
    for k in range(lo, hi):
        at, to, width = blocks[k, 0], blocks[k, 1], blocks[k, 3]
        for _ in range(blocks[k, 2]):
            scale, inverse = _scale(_greatest(values[at : at + width]))
            out[to], out[to + 1] = scale & np.uint32(0xFF), scale >> np.uint32(8)
            row, codes = values[at : at + width], out[to + 2 : to + 2 + width]
            for d in range(width):
                codes[np.uint64(d)] = np.uint8(F(row[np.uint64(d)] * inverse + ROUND).view(np.int32))
            at += width
            to += width + 2


@kernel
def decode_int8(data, blocks, lo, hi, out):
    """out = the numbers of blocks lo … hi-1. data: (…,) u1."""
    for k in range(lo, hi):
        at, source, width = blocks[k, 0], blocks[k, 1], blocks[k, 3]
        for _ in range(blocks[k, 2]):
            bits = np.uint32(data[source]) << np.uint32(16) | np.uint32(data[source + 1]) << np.uint32(24)
            scale = np.uint32(bits).view(np.float32)
            row, codes = out[at : at + width], data[source + 2 : source + 2 + width]
            for d in range(width):
                row[np.uint64(d)] = F(np.int8(codes[np.uint64(d)])) * scale
            at += width
            source += width + 2


@inlined
def _greatest(values):
    """The bits of the greatest |x|; of a NaN where there is one."""
    greatest = np.uint32(0)
    for i in range(values.shape[0]):
        size = np.uint32(F(values[np.uint64(i)]).view(np.uint32) & SIZE)
        greatest = size if size > greatest else greatest
    return greatest


@inlined
def _lift(greatest):
    """The exponent of 2 that moves a number of these bits to [2¹⁴, 2¹⁵), if it is finite; 126 at most."""
    return min(141 - np.int64(greatest >> np.uint32(23)), 126) if greatest < INFINITE else 0


@inlined
def _power(exponent):
    """2 ** exponent, of -126 … 127."""
    return np.int32((exponent + 127) << 23).view(np.float32)


@inlined
def _scale(greatest):
    """(upper half of the bits of a row's scale, what to multiply its numbers by)."""
    if greatest >= INFINITE:
        return np.uint32(0x7FC0), F(0)
    bits = np.uint32(F(np.uint32(greatest).view(np.float32) / CODES).view(np.uint32) + UP)
    scale = np.uint32(bits & ~UP).view(np.float32)
    return (np.uint32(bits >> np.uint32(16)), F(1) / scale) if scale >= LEAST else (np.uint32(0), F(0))
