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
        return spread(g, x, axis) * best / best.sum(axis=axis, keepdims=True, dtype=x.dtype)

    return top if keepdims else np.squeeze(top, axis), (pullback,)


def _logsumexp(x: Array, axis: int) -> Array:
    """log Σ e^x over `axis`, kept, without overflow."""
    top = x.max(axis=axis, keepdims=True)
    return np.asarray(top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True)))


@op
def logsumexp(x: Array, *, axis: int = -1) -> Result:
    """log Σ e^x over `axis`, without overflow."""
    value = _logsumexp(x, axis)
    return value.squeeze(axis), (lambda g: spread(g, x, axis) * np.exp(x - value),)


@op
def softmax(x: Array, *, axis: int = -1) -> Result:
    """e^x / Σ e^x over `axis`."""
    value = np.exp(x - _logsumexp(x, axis))
    return value, (lambda g: value * (g - (g * value).sum(axis=axis, keepdims=True)),)


@op
def log_softmax(x: Array, *, axis: int = -1) -> Result:
    """x - log Σ e^x over `axis`."""
    value = x - _logsumexp(x, axis)
    return value, (lambda g: g - np.exp(value) * g.sum(axis=axis, keepdims=True),)
