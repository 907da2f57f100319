"""Row updates: each gradient into its row of the pool, in place.

rows: (U,) i8, distinct; grads: (U, D); pool: (R, D). g below is the gradient plus decay times the row. Rows
that are not named stay as they are, and so does their state.
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.memory import prefetch

AHEAD = 8  # rows
LINE = 64  # bytes


@kernel
def _ask(array, rows, u):
    """Prefetch the row of `array` that is due AHEAD rows after `u`."""
    size = array.itemsize * (array.size // array.shape[0])
    begin = array.ctypes.data + rows[min(u + AHEAD, rows.shape[0] - 1)] * size
    for line in range(0, size, LINE):
        prefetch(begin + line)


@kernel
def sgd(rows, grads, pool, lr, decay):
    """w -= lr·g."""
    step, fade = pool.dtype.type(lr), pool.dtype.type(decay)
    for u in range(rows.shape[0]):
        _ask(pool, rows, u)
        w, g = pool[np.uint64(rows[u])], grads[np.uint64(u)]
        for d in range(w.shape[0]):
            w[d] -= step * (g[d] + fade * w[d])


@kernel
def adagrad(rows, grads, pool, total, lr, decay, eps):
    """s += g², w -= lr·g / (√s + eps). total: (R, D)."""
    real = pool.dtype.type
    step, fade, tiny = real(lr), real(decay), real(eps)
    for u in range(rows.shape[0]):
        _ask(pool, rows, u)
        _ask(total, rows, u)
        w, s, g = pool[np.uint64(rows[u])], total[np.uint64(rows[u])], grads[np.uint64(u)]
        for d in range(w.shape[0]):
            slope = g[d] + fade * w[d]
            s[d] += slope * slope
            w[d] -= step * slope / (np.sqrt(s[d]) + tiny)


@kernel
def rowwise_adagrad(rows, grads, pool, total, lr, decay, eps):
    """s += mean(g²), w -= lr·g / (√s + eps). total: (R,)."""
    real = pool.dtype.type
    fade = real(decay)
    for u in range(rows.shape[0]):
        _ask(pool, rows, u)
        _ask(total, rows, u)
        w, g = pool[np.uint64(rows[u])], grads[np.uint64(u)]
        square = real(0)
        for d in range(w.shape[0]):
            slope = g[d] + fade * w[d]
            square += slope * slope
        s = total[np.uint64(rows[u])] + square / real(w.shape[0])
        total[np.uint64(rows[u])] = s
        step = real(lr) / (np.sqrt(s) + real(eps))
        for d in range(w.shape[0]):
            w[d] -= step * (g[d] + fade * w[d])


@kernel
def adam(rows, grads, pool, mean, square, lr, decay, betas, eps):
    """m = β₁·m + (1 - β₁)·g, s = β₂·s + (1 - β₂)·g², w -= lr·m / (√s + eps). mean, square: (R, D)."""
    real = pool.dtype.type
    step, fade, tiny = real(lr), real(decay), real(eps)
    keep1, keep2 = real(betas[0]), real(betas[1])
    take1, take2 = real(1 - betas[0]), real(1 - betas[1])
    for u in range(rows.shape[0]):
        _ask(pool, rows, u)
        _ask(mean, rows, u)
        _ask(square, rows, u)
        row = np.uint64(rows[u])
        w, m, s, g = pool[row], mean[row], square[row], grads[np.uint64(u)]
        for d in range(w.shape[0]):
            slope = g[d] + fade * w[d]
            m[d] = keep1 * m[d] + take1 * slope
            s[d] = keep2 * s[d] + take2 * slope * slope
            w[d] -= step * m[d] / (np.sqrt(s[d]) + tiny)
