"""Losses over a batch of logits, with their gradient in the same pass."""

from __future__ import annotations

import math

from tesserec.autograd.kernels.jit import kernel


@kernel
def bce_with_logits(z, y, losses, slopes):
    """losses = log(1 + e^z) - z·y, slopes = σ(z) - y: (B,) each. Stable for any finite z."""
    one = z.dtype.type(1)
    for b in range(z.shape[0]):
        v = z[b]
        small = math.exp(-abs(v))
        losses[b] = max(v, z.dtype.type(0)) - v * y[b] + math.log1p(small)
        slopes[b] = (one if v >= 0 else small) / (one + small) - y[b]
