"""One pass over a parameter per optimizer step, in place. All arrays are flat and of one float type."""

from __future__ import annotations

import numpy as np

from tesserec.autograd.kernels.jit import inlined, kernel
from tesserec.autograd.kernels.vector import address, pointer_like

NEAR = 2048  # numbers of each sum under way: all of them stay in the L1 cache


@kernel
def add_by_tree(addresses, joins, lo, hi, total):
    """total[lo:hi] = the sum of the packed arrays of its size at `addresses`, added in the order of a tree.

    joins[k]: after array k, how often the last two of the sums so far become one. `total` may be the first.
    """
    size = total.itemsize
    scratch = np.empty((max(joins) + 1, NEAR), total.dtype)
    sums = np.empty(len(joins) + 1, np.int64)  # where the sums so far lie; the first is made in total
    for start in range(lo, hi, NEAR):
        n = min(NEAR, hi - start)
        top = 0
        for k in range(addresses.shape[0]):
            sums[top] = addresses[k] + start * size
            for _ in range(joins[k]):
                top -= 1
                into = address(total) + start * size if top == 0 else address(scratch[top - 1])
                _join(sums[top], sums[top + 1], n, into, total)
                sums[top] = into
            top += 1


@inlined
def _join(first, second, n, into, like):
    """The n numbers at `into` = those at `first` + those at `second`; `into` may be `first`."""
    x, y, out = pointer_like(like, first), pointer_like(like, second), pointer_like(like, into)
    if first == into:
        for i in range(n):
            out[i] += y[i]
    else:
        for i in range(n):
            out[i] = x[i] + y[i]


@kernel
def sgd(w, g, lr, decay):
    lr, decay = w.dtype.type(lr), w.dtype.type(decay)
    for i in range(w.shape[0]):
        w[i] -= lr * (g[i] + decay * w[i])


@kernel
def momentum(w, g, velocity, lr, decay, mu, nesterov):
    lr, decay, mu = w.dtype.type(lr), w.dtype.type(decay), w.dtype.type(mu)
    for i in range(w.shape[0]):
        d = g[i] + decay * w[i]
        v = mu * velocity[i] + d
        velocity[i] = v
        w[i] -= lr * (d + mu * v if nesterov else v)


@kernel
def adagrad(w, g, total, lr, decay, eps):
    lr, decay, eps = w.dtype.type(lr), w.dtype.type(decay), w.dtype.type(eps)
    for i in range(w.shape[0]):
        d = g[i] + decay * w[i]
        total[i] += d * d
        w[i] -= lr * d / (np.sqrt(total[i]) + eps)


@kernel
def rmsprop(w, g, square, lr, decay, alpha, eps):
    lr, decay, eps = w.dtype.type(lr), w.dtype.type(decay), w.dtype.type(eps)
    fresh, alpha = w.dtype.type(1 - alpha), w.dtype.type(alpha)
    for i in range(w.shape[0]):
        d = g[i] + decay * w[i]
        square[i] = alpha * square[i] + fresh * d * d
        w[i] -= lr * d / (np.sqrt(square[i]) + eps)


@kernel
def adam(w, g, mean, square, lr, decay, beta1, beta2, eps):
    """`lr` and `eps` already hold the bias corrections."""
    lr, decay, eps = w.dtype.type(lr), w.dtype.type(decay), w.dtype.type(eps)
    fresh1, beta1 = w.dtype.type(1 - beta1), w.dtype.type(beta1)
    fresh2, beta2 = w.dtype.type(1 - beta2), w.dtype.type(beta2)
    for i in range(w.shape[0]):
        d = g[i] + decay * w[i]
        m = beta1 * mean[i] + fresh1 * d
        s = beta2 * square[i] + fresh2 * d * d
        mean[i], square[i] = m, s
        w[i] -= lr * m / (np.sqrt(s) + eps)
