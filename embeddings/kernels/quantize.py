"""Quantized rows: looked up, read back, and made from numbers. How a row lies in its bytes: see `codes.py`.

Quantized rows are (R, stride) uint8; 15 bytes after the last one may be read.
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.blocks import save, span
from tesserec.embeddings.kernels.codes import (
    GROUP,
    HEADER,
    add_codes,
    add_number,
    bits_of,
    codes,
    header_numbers,
    zeros,
)
from tesserec.embeddings.kernels.jit import dot_kernel, kernel
from tesserec.embeddings.kernels.memory import LINE, float32_at, int64_at, prefetch, uint32_at

AHEAD = 32  # ids between the row that is asked for and the row that is read
BAGS = 64  # whose columns are summed block after block
TRIALS = 13  # ranges that are tried for a row of 4- or 2-bit codes, from its own down to half of it
HIGH = np.uint32(0xFFFF0000)  # the bits of a float32 that a bfloat16 has
HUGE, TINY = np.float32(1e38), np.float32(1e-37)
F = np.float32


@kernel
def pool_bags_8(pool, width, lanes, lo, hi, out):
    """out[b, column:column + D] = Σ w·value over bag b, for bags lo … hi-1 of every lane, from 8-bit codes.

    pool: (R, stride) u1 of rows of `width` columns; otherwise as `pool_bags` of `lookup.py`.
    """
    _pool_bags(codes(8), pool, width, lanes, lo, hi, out)


@kernel
def pool_bags_4(pool, width, lanes, lo, hi, out):
    """The same from 4-bit codes."""
    _pool_bags(codes(4), pool, width, lanes, lo, hi, out)


@kernel
def pool_bags_2(pool, width, lanes, lo, hi, out):
    """The same from 2-bit codes."""
    _pool_bags(codes(2), pool, width, lanes, lo, hi, out)


@kernel
def _pool_bags(like, pool, width, lanes, lo, hi, out):
    for k in range(lanes.shape[0]):
        if k == 0:
            _ask_first(pool, lanes[k], lo, hi)
        for b in range(lo, hi, BAGS):
            if b + BAGS >= hi and k + 1 < lanes.shape[0]:
                _ask_first(pool, lanes[k + 1], lo, hi)
            _pool_group(like, pool, width, lanes[k], b, min(b + BAGS, hi), hi, out)


@kernel
def _ask_first(pool, lane, lo, hi):
    """Prefetch the first rows of a lane's bags lo … hi-1."""
    rows, stride = pool.ctypes.data + lane.first_row * pool.shape[1], pool.shape[1]
    ids, step, offsets = uint32_at(lane.ids), 2 - lane.narrow, int64_at(lane.offsets)
    for i in range(offsets[lo], min(offsets[lo] + AHEAD, offsets[hi])):
        _ask(rows + np.int64(ids[i * step]) * stride, stride)


@kernel
def _ask(row, stride):
    """Prefetch a row."""
    for line in range(0, stride, LINE):
        prefetch(row + line)
    prefetch(row + stride - 1)


@kernel
def _pool_group(like, pool, width, lane, lo, hi, end, out):
    """All columns of bags lo … hi-1 of one lane, the widest blocks first."""
    d = 0
    while d < width:
        left = (width - d) // GROUP
        if left >= 16:
            d += _pool_block(zeros(like, 16), pool, width, lane, d, (lo, hi, end), out)
        elif left >= 8:
            d += _pool_block(zeros(like, 8), pool, width, lane, d, (lo, hi, end), out)
        elif left >= 4:
            d += _pool_block(zeros(like, 4), pool, width, lane, d, (lo, hi, end), out)
        elif left >= 2:
            d += _pool_block(zeros(like, 2), pool, width, lane, d, (lo, hi, end), out)
        elif left >= 1:
            d += _pool_block(zeros(like, 1), pool, width, lane, d, (lo, hi, end), out)
        else:
            d += _pool_block(zeros(like, 0), pool, width, lane, d, (lo, hi, end), out)


@kernel
def _pool_block(empty, pool, width, lane, d, bags, out):
    """Columns of bags bags[0] … bags[1]-1 from column d on, as many as `empty` has -> their number.

    Prefetches for bags up to bags[2]. Σ w·(scale·code + bias) is summed as Σ (w·scale)·code + Σ w·bias.
    """
    stride, begin = pool.shape[1], HEADER + d * bits_of(empty) // 8
    rows = pool.ctypes.data + lane.first_row * stride
    ids, step, offsets = uint32_at(lane.ids), 2 - lane.narrow, int64_at(lane.offsets)
    last = offsets[bags[2]] - 1
    for b in range(bags[0], bags[1]):
        start, stop = offsets[b], offsets[b + 1]
        total, bias = empty, F(0)
        for i in range(start, stop):
            if d == 0:
                _ask(rows + np.int64(ids[min(i + AHEAD, last) * step]) * stride, stride)
            row = rows + np.int64(ids[i * step]) * stride
            scale, number = header_numbers(uint32_at(row)[0])
            if lane.weights != 0:
                weight = float32_at(lane.weights)[i]
                scale, number = scale * weight, number * weight
            total = add_codes(total, row + begin, scale)
            bias += number
        share = F(1) / F(stop - start) if lane.mean and stop - start > 1 else F(1)
        target = out.ctypes.data + b * out.strides[0] + (lane.column + d) * out.itemsize
        save(add_number(total, bias), target, width - d, share)
    return span(empty)


@kernel
def dequantize_rows(rows, bits, out):
    """out = scale·code + bias. rows: (n, stride) u1; out: (n, D) f4."""
    for r in range(rows.shape[0]):
        row, values = rows[np.uint64(r)], out[np.uint64(r)]
        scale, bias = header_numbers(uint32_at(row.ctypes.data)[0])
        for d in range(values.shape[0]):
            byte, shift = _place(d, bits)
            code = (row[byte] >> np.uint8(shift)) & np.uint8((1 << bits) - 1)
            values[d] = scale * F(code) + bias


@kernel
def quantize_rows(values, bits, out):
    """out = values as codes of `bits` bits -> -1, or the first row with a value that is not finite.

    values: (n, D) f4; out: (n, stride) u1. The codes of a row span its values from the least to the greatest;
    with fewer than 8 bits, the narrower range about the middle whose rounding and clipping err least.
    """
    top, trials = F((1 << bits) - 1), 0 if bits == 8 else TRIALS
    for r in range(values.shape[0]):
        row = values[np.uint64(r)]
        lo, hi, finite = _range(row)
        if not finite:
            return r
        best, least = _header(lo, hi, top), F(np.inf)
        for trial in range(trials):
            cut = (hi - lo) * F(0.25) * F(trial) / F(TRIALS - 1)
            header = _header(lo + cut, hi - cut, top)
            error = _square_error(row, header, top)
            if error < least:
                best, least = header, error
        _store(row, best, bits, out[np.uint64(r)])
    return -1


@kernel
def _range(row):
    """(least value, greatest value, whether all are finite)."""
    lo, hi, finite = row[0], row[0], True
    for d in range(row.shape[0]):
        lo, hi = min(lo, row[d]), max(hi, row[d])
        finite &= abs(row[d]) < HUGE
    return lo, hi, finite


@kernel
def _header(lo, hi, top):
    """The header whose codes 0 … top span lo … hi, scale and bias rounded so that they span no less."""
    bias = _away_from_zero(lo) if lo < 0 else F(lo).view(np.uint32) & HIGH
    scale = (hi - np.uint32(bias).view(np.float32)) / top
    return bias | (_away_from_zero(scale) >> np.uint32(16) if scale > TINY else np.uint32(0))


@kernel
def _away_from_zero(x):
    """The bits of x, rounded to a bfloat16 that is no nearer to 0."""
    return (F(x).view(np.uint32) + np.uint32(0xFFFF)) & HIGH


@kernel
def _code(x, bias, inverse, top):
    """The code nearest to x, as a float."""
    return np.rint(min(max((x - bias) * inverse, F(0)), top))


@kernel
def _inverse(scale):
    return F(1) / scale if scale > 0 else F(0)


@dot_kernel
def _square_error(row, header, top):
    """Σ (value - x)² of a row."""
    scale, bias = header_numbers(header)
    inverse, total = _inverse(scale), F(0)
    for d in range(row.shape[0]):
        off = scale * _code(row[d], bias, inverse, top) + bias - row[d]
        total += off * off
    return total


@kernel
def _store(row, header, bits, out):
    """out (stride,) = header and codes of a row."""
    scale, bias = header_numbers(header)
    inverse, top = _inverse(scale), F((1 << bits) - 1)
    out[:] = 0
    for k in range(HEADER):
        out[k] = np.uint8(header >> np.uint32(8 * k))
    for d in range(row.shape[0]):
        byte, shift = _place(d, bits)
        out[byte] |= np.uint8(np.uint8(_code(row[d], bias, inverse, top)) << np.uint8(shift))


@kernel
def _place(d, bits):
    """(byte of a row, bit of that byte) where the code of column d begins."""
    size, column = 2 * bits, d % GROUP
    return np.uint64(HEADER + d // GROUP * size + column % size), column // size * bits
