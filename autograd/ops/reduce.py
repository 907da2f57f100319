"""Ops that fold axes, or normalise along one. `axis` None means all of them."""

from __future__ import annotations

import numpy as np

from tesserec.autograd.ops.elementwise import Result
from tesserec.autograd.tensor import Array, op

Axis = int | tuple[int, ...] | None


def spread(g: Array, x: Array, axis: Axis) -> Array:
    """`g`, with or without the folded axes, as a read-only view in the shape of `x`."""
    if axis is not None and g.ndim < x.ndim:
        g = np.expand_dims(g, axis)
    return np.broadcast_to(g, x.shape)


@op
def sum(x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Σ x over `axis`."""
    return x.sum(axis=axis, keepdims=keepdims), (lambda g: spread(g, x, axis),)


@op
def mean(x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Mean of x over `axis`."""
    value = x.mean(axis=axis, keepdims=keepdims)
    share = np.size(value) / x.size if x.size else 0.0
    return value, (lambda g: spread(g * share, x, axis),)


@op
def max(x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Largest element over `axis`. Equal ones share the gradient."""
    top = x.max(axis=axis, keepdims=True)

    def pullback(g: Array) -> Array:
        best = x == top
        share = best / best.sum(axis=axis, keepdims=True, dtype=x.dtype)
        return np.asarray(spread(g, x, axis) * share)

    return top if keepdims else np.squeeze(top, axis), (pullback,)


def _shifted(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """x - max x, its exponential, and the sum of that over `axis`. No overflow, no digits lost."""
    below = x - x.max(axis=axis, keepdims=True)
    powers = np.exp(below)
    return below, powers, powers.sum(axis=axis, keepdims=True)


@op
def logsumexp(x: Array, *, axis: int = -1) -> Result:
    """log Σ e^x over `axis`, without overflow."""
    _, powers, total = _shifted(x, axis)
    value = (np.log(total) + x.max(axis=axis, keepdims=True)).squeeze(axis)
    return value, (lambda g: spread(g, x, axis) * (powers / total),)


@op
def softmax(x: Array, *, axis: int = -1) -> Result:
    """e^x / Σ e^x over `axis`."""
    _, powers, total = _shifted(x, axis)
    value = powers / total
    return value, (lambda g: value * (g - (g * value).sum(axis=axis, keepdims=True)),)


@op
def log_softmax(x: Array, *, axis: int = -1) -> Result:
    """x - log Σ e^x over `axis`."""
    below, powers, total = _shifted(x, axis)
    return below - np.log(total), (lambda g: g - powers / total * g.sum(axis=axis, keepdims=True),)
