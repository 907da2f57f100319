"""Offsets of jagged features: checked, and cut by sample."""

from __future__ import annotations

from tesserec.embeddings.kernels.jit import kernel


@kernel
def first_decrease(offsets):
    """The first i with offsets[i + 1] < offsets[i], or -1. offsets: (N + 1,) i8."""
    falls = False
    for i in range(offsets.shape[0] - 1):
        falls |= offsets[i + 1] < offsets[i]
    if falls:
        for i in range(offsets.shape[0] - 1):
            if offsets[i + 1] < offsets[i]:
                return i
    return -1


@kernel
def select_offsets(offsets, batch, lo, hi, out):
    """out (F*(hi - lo) + 1,) = offsets (F*batch + 1,) of samples lo … hi-1 of each key, closed up; i8."""
    n = hi - lo
    out[0] = 0
    for f in range((offsets.shape[0] - 1) // batch):
        shift = out[f * n] - offsets[f * batch + lo]
        for i in range(1, n + 1):
            out[f * n + i] = offsets[f * batch + lo + i] + shift


@kernel
def select_values(values, offsets, batch, lo, out_offsets, out):
    """out = the values of the bags that `select_offsets` chose; values and out: (L,) of one type."""
    num_keys = (offsets.shape[0] - 1) // batch
    n = (out_offsets.shape[0] - 1) // num_keys
    for f in range(num_keys):
        start, first = out_offsets[f * n], offsets[f * batch + lo]
        source, target = values[first:], out[start : out_offsets[(f + 1) * n]]
        for i in range(target.shape[0]):
            target[i] = source[i]
