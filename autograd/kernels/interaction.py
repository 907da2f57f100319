"""How fields meet: pairwise dot products, factorization, cross layers; forward and backward in place.

A sample is packed, samples may lie apart. `accumulate`: add to what the gradient holds.
"""

from __future__ import annotations

import numpy as np

from tesserec.autograd.kernels.jit import inlined, kernel
from tesserec.autograd.kernels.vector import (
    LANES,
    REGISTER,
    SQUARE,
    address,
    aligned,
    floats,
    lane_dots,
    row,
    scattered_tile,
    transpose,
)


@kernel
def pairwise_dot(x, out):
    """out[b] = x[b, i]·x[b, j] for i < j in row-major order: (B, N, D) -> (B, N(N-1)/2).

    Works on LANES samples abreast: a register holds one number of each, so no sum crosses its lanes.
    """
    if x.itemsize == 8:
        _plain_dots(x, out)
        return
    B, N, D = x.shape
    P = out.shape[1]
    fields, pairs, square = aligned(N * SQUARE // 4), aligned(P * LANES + SQUARE // 4), aligned(SQUARE // 4)
    for b in range(0, B, LANES):
        samples = min(B - b, LANES)
        for d in range(0, D, LANES):
            _fields_abreast(x, b, samples, d, square, fields)
            _dots_of_fields(address(fields), N, d > 0, address(pairs))
        for k in range(0, P, LANES):
            target = address(out) + b * out.strides[0] + k * 4
            _apart(address(pairs) + k * REGISTER, target, out.strides[0], samples, min(P - k, LANES), square)


@kernel
def _dots_of_fields(fields, N, accumulate, pairs):
    """`pairs` (+)= the products of LANES columns of all fields; both by address, in registers."""
    for i in range(N - 1):
        left, j = fields + i * SQUARE, i + 1
        while j < N:
            right, count = fields + j * SQUARE, _most(N - j)
            if count == 8:
                lane_dots(8, left, right, pairs, SQUARE, LANES, accumulate)
            elif count == 4:
                lane_dots(4, left, right, pairs, SQUARE, LANES, accumulate)
            elif count == 2:
                lane_dots(2, left, right, pairs, SQUARE, LANES, accumulate)
            else:
                lane_dots(1, left, right, pairs, SQUARE, LANES, accumulate)
            j += count
            pairs += count * REGISTER


@inlined
def _most(left):
    return 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1


@kernel
def pairwise_dot_backward(x, g, accumulate, out):
    """out[b, i] = Σ_j g[b, (i, j)]·x[b, j] over j ≠ i: (B, N, D), (B, N(N-1)/2) -> (B, N, D).

    The product of a symmetric matrix, which is read where its half is, with the fields.
    """
    if x.itemsize == 8:
        _plain_dots_backward(x, g, accumulate, out)
        return
    B, N, D = x.shape
    places = _places(N)
    pairs = np.zeros(g.shape[1] + 1, np.float32)
    full = -(-D // LANES) * LANES
    fields = aligned(N * full)
    for b in range(B):
        sample, line = row(x, b), row(g, b)
        for k in range(g.shape[1]):
            pairs[k] = line[k]
        right = address(x) + b * x.strides[0]
        if full != D:  # registers would reach beyond
            right = address(fields)
            for i in range(N):
                for d in range(D):
                    fields[i * full + d] = sample[i, d]
        to = address(out) + b * out.strides[0]
        for d in range(0, D, 2 * LANES):
            width, i = min(D - d, 2 * LANES), 0
            while i < N:
                left = (address(pairs), address(places) + i * 8 * N, 8 * N)
                target = (to + (i * D + d) * 4, 4 * D)
                i += _rows(N - i, left, (right + d * 4, 4 * full), target, N, width, accumulate)


@kernel
def _rows(most, left, right, out, N, width, accumulate):
    """A tile of at most so many rows -> its rows."""
    if width > LANES:
        if most >= 8:
            scattered_tile(8, 2, left, right, out, N, width, accumulate)
            return 8
        if most >= 2:
            scattered_tile(2, 2, left, right, out, N, width, accumulate)
            return 2
        scattered_tile(1, 2, left, right, out, N, width, accumulate)
        return 1
    if most >= 8:
        scattered_tile(8, 1, left, right, out, N, width, accumulate)
        return 8
    if most >= 2:
        scattered_tile(2, 1, left, right, out, N, width, accumulate)
        return 2
    scattered_tile(1, 1, left, right, out, N, width, accumulate)
    return 1


@kernel
def _places(N):
    """Where pair (i, j) is among all; that of (i, i) comes after them: (N, N), in bytes."""
    places = np.empty((N, N), np.int64)
    k = 0
    for i in range(N):
        places[i, i] = N * (N - 1) // 2 * 4
        for j in range(i + 1, N):
            places[i, j] = places[j, i] = k * 4
            k += 1
    return places


@kernel
def _fields_abreast(x, b, samples, d, square, fields):
    """LANES columns from `d` of every field, of LANES samples from `b`: fields[i, column, sample]."""
    _, N, D = x.shape
    for i in range(N):
        source = address(x) + b * x.strides[0] + (i * D + d) * 4
        _abreast(source, x.strides[0], samples, min(D - d, LANES), address(fields) + i * SQUARE, square)


@kernel
def _abreast(source, row_bytes, samples, width, target, square):
    """target[c, s] = source[s, c] for s < samples, c < width, else 0: LANES each way."""
    if samples == LANES and width == LANES:
        transpose(source, row_bytes, target, REGISTER)
        return
    square[:] = 0
    for s in range(samples):
        line = floats(source + s * row_bytes)
        for c in range(width):
            square[s * LANES + c] = line[c]
    transpose(address(square), REGISTER, target, REGISTER)


@kernel
def _apart(source, target, row_bytes, samples, width, square):
    """target[s, c] = source[c, s] for s < samples, c < width."""
    if samples == LANES and width == LANES:
        transpose(source, REGISTER, target, row_bytes)
        return
    transpose(source, REGISTER, address(square), REGISTER)
    for s in range(samples):
        line = floats(target + s * row_bytes)
        for c in range(width):
            line[c] = square[s * LANES + c]


@kernel
def _plain_dots(x, out):
    B, N, _ = x.shape
    for b in range(B):
        sample, pairs = row(x, b), row(out, b)
        k = 0
        for i in range(N):
            for j in range(i + 1, N):
                pairs[k] = (sample[i] * sample[j]).sum()
                k += 1


@kernel
def _plain_dots_backward(x, g, accumulate, out):
    B, N, D = x.shape
    for b in range(B):
        sample, pairs, o = row(x, b), row(g, b), row(out, b)
        if not accumulate:
            o[:] = 0
        k = 0
        for i in range(N):
            for j in range(i + 1, N):
                for d in range(D):
                    o[i, d] += pairs[k] * sample[j, d]
                    o[j, d] += pairs[k] * sample[i, d]
                k += 1


@kernel
def factorization(x, total, out):
    """total = Σ x, out = ½(total² - Σ x²), sums over fields: (B, F, D) -> (B, D) twice."""
    half = x.dtype.type(0.5)
    for b in range(x.shape[0]):
        sample, t, o = row(x, b), row(total, b), row(out, b)
        t[:] = 0
        o[:] = 0
        for f in range(sample.shape[0]):
            v = sample[f]
            for d in range(t.shape[0]):
                t[d] += v[d]
                o[d] += v[d] * v[d]
        for d in range(t.shape[0]):
            o[d] = half * (t[d] * t[d] - o[d])


@kernel
def factorization_backward(g, x, total, accumulate, out):
    """out[b, f] = g[b]·(total[b] - x[b, f]): (B, D), (B, F, D), (B, D) -> (B, F, D)."""
    for b in range(x.shape[0]):
        gb, sample, t, o = row(g, b), row(x, b), row(total, b), row(out, b)
        for f in range(sample.shape[0]):
            v, of = sample[f], o[f]
            for d in range(t.shape[0]):
                slope = gb[d] * (t[d] - v[d])
                of[d] = of[d] + slope if accumulate else slope


@kernel
def cross(x0, x, through, out):
    """out = x0·through + x, element by element, where through = x·wᵀ + b: (B, W) four times."""
    for r in range(x.shape[0]):
        a, v, t, o = row(x0, r), row(x, r), row(through, r), row(out, r)
        for j in range(o.shape[0]):
            o[j] = a[j] * t[j] + v[j]


@kernel
def cross_backward(g, x0, through, accumulate, gx0, gthrough):
    """gx0 = g·through, added to if `accumulate`; gthrough = g·x0. That of x is g itself. (B, W) each."""
    for r in range(g.shape[0]):
        gr, a, t, g0, gt = row(g, r), row(x0, r), row(through, r), row(gx0, r), row(gthrough, r)
        for j in range(gr.shape[0]):
            v = gr[j]
            gt[j] = v * a[j]
            g0[j] = g0[j] + v * t[j] if accumulate else v * t[j]
