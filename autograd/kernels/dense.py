"""Elementwise passes around a matrix product. Rows are contiguous; `out` may be an input where it says so."""

from __future__ import annotations

import math

import numpy as np

from tesserec.autograd.kernels.jit import kernel


@kernel
def relu_pullback(g, y, out, bias):
    """out = g where y > 0, else 0; bias = its sum over rows. (B, O) three times, (O,) of zeros."""
    zero = g.dtype.type(0)
    for r in range(g.shape[0]):
        gr = g[r]
        yr = y[r]
        o = out[r]
        for j in range(o.shape[0]):
            v = gr[j] if yr[j] > zero else zero
            o[j] = v
            bias[j] += v


@kernel
def gelu(x, out, slope):
    """out = x·Φ(x), slope = its derivative Φ(x) + x·φ(x), Φ the standard normal distribution: (n,) each."""
    half, one = x.dtype.type(0.5), x.dtype.type(1)
    root, density = x.dtype.type(math.sqrt(0.5)), x.dtype.type(1 / math.sqrt(2 * math.pi))
    for i in range(x.shape[0]):
        v = x[i]
        phi = half * (one + math.erf(v * root))
        out[i] = v * phi
        slope[i] = phi + v * density * np.exp(-half * v * v)


@kernel
def add_rows(out, index, values):
    """out[index[k]] += values[k] in the order of k: (R, D), (n,), (n, D). The caller checks the index."""
    for k in range(index.shape[0]):
        row = out[index[k]]
        v = values[k]
        for d in range(row.shape[0]):
            row[d] += v[d]
