"""Ops that work element by element. Two arguments broadcast, and each gradient is summed back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.kernels import dense as kernels
from tesserec.autograd.tensor import Array, Operand, Pullback, Tensor, op

Result = tuple[Any, tuple[Pullback, ...]]


def unbroadcast(g: Array, x: Any) -> Array:
    """`g` summed over the axes along which `x` was broadcast: the gradient in the shape of `x`."""
    shape = np.shape(x)
    if g.shape == shape:
        return g
    lead = g.ndim - len(shape)
    axes = (*range(lead), *(lead + i for i, n in enumerate(shape) if n == 1))
    return np.asarray(g.sum(axis=axes).reshape(shape))


@op
def add(x: Array, y: Array) -> Result:
    """x + y."""
    return x + y, (lambda g: unbroadcast(g, x), lambda g: unbroadcast(g, y))


@op
def subtract(x: Array, y: Array) -> Result:
    """x - y."""
    return x - y, (lambda g: unbroadcast(g, x), lambda g: unbroadcast(-g, y))


@op
def multiply(x: Array, y: Array) -> Result:
    """x·y."""
    return x * y, (lambda g: unbroadcast(g * y, x), lambda g: unbroadcast(g * x, y))


@op
def multiply_add(x: Array, y: Array, z: Array) -> Result:
    """x·y + z. What a compiled model makes of a product and a sum; the step of a cross layer."""
    return x * y + z, (
        lambda g: unbroadcast(g * y, x),
        lambda g: unbroadcast(g * x, y),
        lambda g: unbroadcast(g, z),
    )


@op
def divide(x: Array, y: Array) -> Result:
    """x / y."""
    value = x / y
    return value, (lambda g: unbroadcast(g / y, x), lambda g: unbroadcast(-g * value / y, y))


@op
def negative(x: Array) -> Result:
    """-x."""
    return -x, (lambda g: -g,)


@op
def power(x: Array, *, exponent: float) -> Result:
    """x to a fixed power."""
    exponent = float(exponent)  # a numpy number would widen float32
    return x**exponent, (lambda g: g * (exponent * x ** (exponent - 1)),)


@op
def maximum(x: Array, y: Array) -> Result:
    """The larger of x and y. Where they are equal the gradient goes to x."""
    first = x >= y
    return np.maximum(x, y), (lambda g: unbroadcast(g * first, x), lambda g: unbroadcast(g * ~first, y))


@op
def minimum(x: Array, y: Array) -> Result:
    """The smaller of x and y. Where they are equal the gradient goes to x."""
    first = x <= y
    return np.minimum(x, y), (lambda g: unbroadcast(g * first, x), lambda g: unbroadcast(g * ~first, y))


@op
def clip(x: Array, *, low: float | None = None, high: float | None = None) -> Result:
    """x moved into [low, high]. The gradient is 0 outside."""
    value = np.clip(x, None if low is None else float(low), None if high is None else float(high))
    return value, (lambda g: g * (value == x),)


def where(condition: npt.ArrayLike, x: Operand, y: Operand) -> Tensor:
    """x where `condition` holds, else y. The condition, an array of bool, has no gradient."""
    return _where(x, y, condition=np.asarray(condition, np.bool_))


@op
def _where(x: Array, y: Array, *, condition: npt.NDArray[np.bool_]) -> Result:
    return np.where(condition, x, y), (
        lambda g: unbroadcast(g * condition, x),
        lambda g: unbroadcast(g * ~condition, y),
    )


@op
def exp(x: Array) -> Result:
    """e to the power x."""
    value = np.exp(x)
    return value, (lambda g: g * value,)


@op
def log(x: Array) -> Result:
    """Natural logarithm of x > 0."""
    return np.log(x), (lambda g: g / x,)


@op
def sqrt(x: Array) -> Result:
    """Square root of x > 0."""
    value = np.sqrt(x)
    return value, (lambda g: g / (2 * value),)


@op
def absolute(x: Array) -> Result:
    """|x|. The gradient at 0 is 0."""
    return np.abs(x), (lambda g: g * np.sign(x),)


@op
def relu(x: Array) -> Result:
    """max(x, 0). The gradient at 0 is 0."""
    return np.maximum(x, 0), (lambda g: np.where(x > 0, g, g.dtype.type(0)),)


@op
def gelu(x: Array) -> Result:
    """x·Φ(x), Φ the standard normal distribution, not its tanh approximation. Hendrycks & Gimpel 2016."""
    value, slope = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    kernels.gelu(np.ascontiguousarray(x).reshape(-1), value.reshape(-1), slope.reshape(-1))
    return value, (lambda g: g * slope,)


def expit(x: Array) -> Array:
    """1 / (1 + e^-x) of a plain array, without overflow and exact in relative terms at both ends."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, x.dtype.type(1), small) / (1 + small))


@op
def sigmoid(x: Array) -> Result:
    """1 / (1 + e^-x)."""
    value = expit(x)
    return value, (lambda g: g * value * (1 - value),)


@op
def tanh(x: Array) -> Result:
    """Hyperbolic tangent."""
    value = np.tanh(x)
    return value, (lambda g: g * (1 - value * value),)


@op
def softplus(x: Array) -> Result:
    """log(1 + e^x), without overflow."""
    return np.logaddexp(x, 0), (lambda g: g * expit(x),)
