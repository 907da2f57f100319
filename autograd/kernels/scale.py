"""Vectors times a number per sample: dense values as fields. Samples are packed, but may lie apart."""

from __future__ import annotations

from tesserec.autograd.kernels.jit import kernel
from tesserec.autograd.kernels.vector import row


@kernel
def scale_vectors(x, s, out):
    """out[b, f] = x[f]·s[b, f, 0]: (F, D), (B, F, 1) -> (B, F, D)."""
    for b in range(out.shape[0]):
        sb, ob = row(s, b), row(out, b)
        for f in range(x.shape[0]):
            xf, of, v = x[f], ob[f], sb[f, 0]
            for d in range(x.shape[1]):
                of[d] = xf[d] * v


@kernel
def scale_vectors_backward(g, s, accumulate, gx):
    """gx[f] = Σ_b g[b, f]·s[b, f, 0], added to if `accumulate`: (B, F, D), (B, F, 1) -> (F, D)."""
    if not accumulate:
        gx[:] = 0
    for b in range(g.shape[0]):
        sb, gb = row(s, b), row(g, b)
        for f in range(gx.shape[0]):
            out, gf, v = gx[f], gb[f], sb[f, 0]
            for d in range(gx.shape[1]):
                out[d] += gf[d] * v
