"""First values of tables: random numbers that are a function of (key, row, column), whoever draws them.

Counter-based: the two numbers of columns 2c and 2c + 1 come from the 64 bits that SplitMix64 (Steele, Lea &
Flood 2014, section 5) gives as number row·2²⁴ + c of its stream `key`. All arithmetic is IEEE single
precision written out here, so values are the same on every machine.
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel

ROW = np.uint64(1 << 24)  # numbers set apart for one row: widths up to 2²⁵
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
M1 = np.uint64(0xBF58476D1CE4E5B9)
M2 = np.uint64(0x94D049BB133111EB)
UNIT = np.float32(2.0**-24)
LOW = np.uint64((1 << 24) - 1)
LN2 = np.float32(0.6931471805599453)
EIGHTH = np.uint64((1 << 22) - 1)
SIGN, SWAP = np.uint64(1 << 22), np.uint64(1 << 23)
EIGHTH_TURN = np.float32(np.pi / 4 / (1 << 21))
ROOT_HALF = np.int32(0x3F3504F3)  # the bits of √½
F = np.float32


@kernel
def splitmix(key, number):
    """64 bits: number `number` of stream `key`."""
    z = key + (number + np.uint64(1)) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * M1
    z = (z ^ (z >> np.uint64(27))) * M2
    return z ^ (z >> np.uint64(31))


@kernel
def fill_uniform(out, key, first_row, first_column, bound):
    """out[r, d] uniform in [-bound, bound), of row first_row + r, column first_column + d. out: (n, D)."""
    _fill(out, key, first_row, first_column, False, np.float32(2.0) * UNIT * np.float32(bound))


@kernel
def fill_normal(out, key, first_row, first_column, std):
    """out[r, d] from N(0, std²), of row first_row + r, column first_column + d. out: (n, D)."""
    _fill(out, key, first_row, first_column, True, np.float32(std))


@inlined
def _fill(out, key, first_row, first_column, normal, scale):
    """Columns in pairs; the first may be the second of its pair, the last the first."""
    odd, pair = first_column % 2, (first_column + 1) // 2
    pairs, width = (out.shape[1] - odd) // 2, out.shape[1]
    for r in range(out.shape[0]):
        base = np.uint64(first_row + r) * ROW + np.uint64(pair)
        row = out[np.uint64(r), odd:]
        for c in range(pairs):
            row[2 * c], row[2 * c + 1] = _two(normal, splitmix(key, base + np.uint64(c)), scale)
        if odd:
            out[r, 0] = _two(normal, splitmix(key, base - np.uint64(1)), scale)[1]
        if odd + 2 * pairs < width:
            out[r, width - 1] = _two(normal, splitmix(key, base + np.uint64(pairs)), scale)[0]


@inlined
def _two(normal, bits, scale):
    """The numbers of a pair of columns, of 64 random bits."""
    return _two_normals(bits, scale) if normal else _two_uniforms(bits, scale)


@inlined
def _two_uniforms(bits, scale):
    """Two numbers uniform in [-2²³·scale, 2²³·scale)."""
    first = np.float32(np.int32(np.int32(bits >> np.uint64(40)) - (1 << 23))) * scale
    return first, np.float32(np.int32(np.int32(bits & LOW) - (1 << 23))) * scale


@kernel
def _two_normals(bits, scale):
    """Two numbers from N(0, scale²), of 64 random bits. Box & Muller 1958.

    The low 24 bits are an angle: 22 within an eighth of a turn to either side of an axis, 2 choose the axis.
    """
    uniform = np.float32(np.int32(np.int32(bits >> np.uint64(40)) + 1)) * UNIT
    radius = np.sqrt(np.float32(-2.0) * _log(uniform)) * scale
    angle = np.float32(np.int32(np.int32(bits & EIGHTH) - (1 << 21))) * EIGHTH_TURN
    square = angle * angle
    near, off = radius * _cos(square), radius * angle * _sin_ratio(square)
    near = -near if bits & SIGN else near
    swap = (bits & SWAP) != np.uint64(0)
    return (off, near) if swap else (near, off)


@kernel
def _log(x):
    """ln x of a normal float32 > 0, to 1e-7. Polynomial of Moshier's Cephes, logf."""
    bits = np.int32(F(x).view(np.int32) - ROOT_HALF)  # so that the mantissa m lies in [√½, √2)
    exponent = bits >> 23
    m = np.int32((bits & 0x7FFFFF) + ROOT_HALF).view(np.float32) - F(1)
    y = F(7.0376836292e-2) * m - F(1.1514610310e-1)
    y = y * m + F(1.1676998740e-1)
    y = y * m - F(1.2420140846e-1)
    y = y * m + F(1.4249322787e-1)
    y = y * m - F(1.6668057665e-1)
    y = y * m + F(2.0000714765e-1)
    y = y * m - F(2.4999993993e-1)
    y = y * m + F(3.3333331174e-1)
    return F(exponent) * LN2 + (m + m * m * (y * m - F(0.5)))


@kernel
def _cos(z):
    """cos √z for z in [0, π²/16]. Cephes, cosf."""
    y = F(2.443315711809948e-5) * z - F(1.388731625493765e-3)
    y = y * z + F(4.166664568298827e-2)
    return y * z * z - F(0.5) * z + F(1)


@kernel
def _sin_ratio(z):
    """sin √z / √z for z in [0, π²/16]. Cephes, sinf."""
    y = F(-1.9515295891e-4) * z + F(8.3321608736e-3)
    y = y * z - F(1.6666654611e-1)
    return y * z + F(1)
