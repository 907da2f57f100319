"""Rows of a large array copied to and from a small one, asked for ahead of time."""

from __future__ import annotations

from tesserec.embeddings.kernels.coalesce import ask
from tesserec.embeddings.kernels.jit import kernel

AHEAD = 16  # rows between the one that is asked for and the one that is copied


@kernel
def take_rows(stack, rows, out):
    """out[u] = stack[rows[u]]. stack: (R, D); rows: (U,) i8; out: (U, D), any stride between rows."""
    address, size = stack.ctypes.data, stack.strides[0]
    for u in range(rows.shape[0]):
        ask(address + rows[min(u + AHEAD, rows.shape[0] - 1)] * size, size)
        source, target = stack[rows[u]], out[u]
        for d in range(out.shape[1]):
            target[d] = source[d]


@kernel
def put_rows(values, rows, stack):
    """stack[rows[u]] = values[u]: the way back."""
    address, size = stack.ctypes.data, stack.strides[0]
    for u in range(rows.shape[0]):
        ask(address + rows[min(u + AHEAD, rows.shape[0] - 1)] * size, size)
        source, target = values[u], stack[rows[u]]
        for d in range(values.shape[1]):
            target[d] = source[d]
