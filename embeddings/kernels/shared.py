"""Bags that several samples share: pooled once, copied to each sample; gradients summed on the way back."""

from __future__ import annotations

from tesserec.embeddings.kernels.jit import kernel


@kernel
def copy_bags(bags, index, out):
    """out[b] = bags[index[b]]. bags: (N, D); index: (B,) i8; out: (B, D), any stride between rows."""
    for b in range(out.shape[0]):
        source, target = bags[index[b]], out[b]
        for d in range(bags.shape[1]):
            target[d] = source[d]


@kernel
def add_bags(grads, index, out):
    """out[index[b]] += grads[b], in the order of b. grads: (B, D), any stride between rows; out: (N, D)."""
    for b in range(grads.shape[0]):
        source, target = grads[b], out[index[b]]
        for d in range(out.shape[1]):
            target[d] += source[d]
