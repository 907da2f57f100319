"""One pass over a parameter per optimizer step, in place. All arrays are flat and of one float type."""

from __future__ import annotations

import numpy as np

from tesserec.autograd.kernels.jit import kernel
from tesserec.autograd.kernels.vector import pointer_like

NEAR = 4096  # numbers of a sum that stay in the L1 cache while all terms are added


@kernel
def add_in_order(addresses, lo, hi, total):
    """total[lo:hi] += each of the packed arrays of its size at `addresses`, one after the other."""
    for start in range(lo, hi, NEAR):
        stop = min(start + NEAR, hi)
        for k in range(addresses.shape[0]):
            term = pointer_like(total, addresses[k])
            for i in range(start, stop):
                total[i] += term[i]


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
