"""Fields of candidates that meet those of their requests, and what is repeated for each candidate.

Request k has rows starts[k] … starts[k + 1]-1 of the candidates. x, y and out are given as (address, bytes
from row to row), and rows are packed; those of y are the requests'. float32.
"""

from __future__ import annotations

import math

import numpy as np
from numba.np.numpy_support import carray
from numpy.lib.stride_tricks import as_strided

from tesserec.autograd.kernels import interaction
from tesserec.autograd.kernels.gemm import multiply, pack
from tesserec.autograd.kernels.jit import inlined, kernel
from tesserec.autograd.kernels.vector import floats
from tesserec.embeddings.kernels.memory import int64_at

MANY = 1 << 30  # rows for which packing pays


@inlined
def _matrix(address, shape, strides):
    """What lies at an address, as an array; strides in bytes."""
    return as_strided(carray(floats(address), (1, 1)), shape, strides)


@kernel
def pairs(x, out, rows, fields, width):
    """out[b] = x[b, i]·x[b, j] for i < j, in row-major order: (rows, F, D) -> (rows, F(F-1)/2)."""
    vectors = _matrix(x[0], (rows, fields, width), (x[1], width * 4, 4))
    interaction.pairwise_dot(vectors, _matrix(out[0], (rows, fields * (fields - 1) // 2), (out[1], 4)))


@kernel
def meet(x, y, out, starts, requests, fields, others, width):
    """out[b, i, j] = x[b, i]·y[request, j]: (rows, F, D), (requests, G, D) -> (rows, F·G)."""
    for k in range(requests):
        lo, rows = starts[k], starts[k + 1] - starts[k]
        if rows == 0:
            continue
        # y as a matrix (D, G): each field of x times it is a product of matrices
        columns = _matrix(y[0] + k * y[1], (width, others), (4, width * 4))
        panels = pack(columns, MANY)
        for i in range(fields):
            left = _matrix(x[0] + lo * x[1] + i * width * 4, (rows, width), (x[1], 4))
            right = _matrix(out[0] + lo * out[1] + i * others * 4, (rows, others), (out[1], 4))
            multiply(left, columns, panels, right, False)


@kernel
def put(x, out, rows, runs, count):
    """out[b, to:to + n] = x[b, at:at + n] for each of the runs (at, to, n), int64 at an address."""
    for b in range(rows):
        _copy_runs(x[0] + b * x[1], out[0] + b * out[1], runs, count)


@kernel
def spread(y, out, starts, requests, runs, count):
    """out[b, to:to + n] = y[request, at:at + n] for each of the runs."""
    for k in range(requests):
        for b in range(starts[k], starts[k + 1]):
            _copy_runs(y[0] + k * y[1], out[0] + b * out[1], runs, count)


@kernel
def _copy_runs(source, target, runs, count):
    run, s, t = int64_at(runs), floats(source), floats(target)
    for i in range(count):
        at, to = run[3 * i], run[3 * i + 1]
        for d in range(run[3 * i + 2]):
            t[to + d] = s[at + d]


@kernel
def add_up(x, y, out, starts, requests, fields, width):
    """out[b] = y[request] + Σ x[b, i]: (rows, F, D), (requests, D) -> (rows, D)."""
    for k in range(requests):
        first = floats(y[0] + k * y[1])
        for b in range(starts[k], starts[k + 1]):
            v, o = floats(x[0] + b * x[1]), floats(out[0] + b * out[1])
            for d in range(width):
                o[d] = first[d]
            for i in range(fields):
                for d in range(width):
                    o[d] += v[i * width + d]


@kernel
def moments(x, y, out, starts, requests, fields, width):
    """out[b] = y[request] + (Σ x[b, i], Σ x[b, i]²): (rows, F, D), (requests, 2·D) -> (rows, 2·D)."""
    for k in range(requests):
        first = floats(y[0] + k * y[1])
        for b in range(starts[k], starts[k + 1]):
            v, o = floats(x[0] + b * x[1]), floats(out[0] + b * out[1])
            for d in range(2 * width):
                o[d] = first[d]
            for i in range(fields):
                for d in range(width):
                    o[d] += v[i * width + d]
                    o[width + d] += v[i * width + d] * v[i * width + d]


@kernel
def products(x, out, rows, width):
    """out = ½(x₁² - x₂), of moments (rows, 2·D), the sum of the products of all pairs -> (rows, D)."""
    half = np.float32(0.5)
    for b in range(rows):
        v, o = floats(x[0] + b * x[1]), floats(out[0] + b * out[1])
        for d in range(width):
            o[d] = half * (v[d] * v[d] - v[width + d])


@kernel
def sigmoid(x, out, rows):
    """out = 1 / (1 + e^-x): (rows, 1) twice; exact in relative terms at both ends."""
    one = np.float32(1)
    for b in range(rows):
        v, o = floats(x[0] + b * x[1])[0], floats(out[0] + b * out[1])
        small = np.float32(math.exp(-abs(v)))
        o[0] = (one if v >= 0 else small) / (one + small)
