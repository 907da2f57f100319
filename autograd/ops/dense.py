"""The building blocks of dense ranking models, fused where a pass over memory can be saved."""

from __future__ import annotations

import math

import numpy as np

from tesserec.autograd.kernels import dense as kernels
from tesserec.autograd.kernels import interaction
from tesserec.autograd.kernels.linear import RELU, add_bias_activate
from tesserec.autograd.ops.elementwise import Result, unbroadcast
from tesserec.autograd.tensor import Array, op, shared


@op
def matmul(x: Array, y: Array) -> Result:
    """x @ y: (…, n, k), (…, k, m) -> (…, n, m). Leading axes broadcast."""
    if np.ndim(x) < 2 or np.ndim(y) < 2:
        raise ValueError("both arguments need two axes or more; for a vector use (x * v).sum(axis=-1)")
    return x @ y, (
        lambda g: unbroadcast(g @ y.swapaxes(-1, -2), x),
        lambda g: unbroadcast(x.swapaxes(-1, -2) @ g, y),
    )


def _flat(x: Array) -> Array:
    """(…, I) -> (n, I)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _product(x: Array, w: Array, b: Array | None) -> Array:
    """x·wᵀ in a fresh, contiguous array, after the shapes are checked: (…, I), (O, I) -> (…, O)."""
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError("wanted x (…, I) and w (O, I) with the same I: check the layer's fan_in")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"wanted b of shape ({w.shape[0]},)")
    z = np.empty((*x.shape[:-1], len(w)), x.dtype)
    np.matmul(_flat(x), w.T, out=_flat(z))
    return z


@op
def linear(x: Array, w: Array, b: Array | None = None) -> Result:
    """x·wᵀ + b: (…, I), (O, I), (O,) -> (…, O)."""
    z = _product(x, w, b)
    if b is not None:
        z += b
    return z, (
        lambda g: g @ w,
        lambda g: _flat(g).T @ _flat(x),
        lambda g: _flat(g).sum(axis=0),
    )


@op
def linear_relu(x: Array, w: Array, b: Array) -> Result:
    """max(x·wᵀ + b, 0) with one pass after the product, and one before the two products of its pullbacks."""
    y = _product(x, w, b)
    add_bias_activate(_flat(y), b, RELU)

    @shared
    def through(g: Array) -> tuple[Array, Array]:
        gz, gb = np.empty_like(y), np.zeros_like(b)
        kernels.relu_pullback(_flat(np.ascontiguousarray(g)), _flat(y), _flat(gz), gb)
        return gz, gb

    return y, (
        lambda g: through(g)[0] @ w,
        lambda g: _flat(through(g)[0]).T @ _flat(x),
        lambda g: through(g)[1],
    )


@op
def layer_norm(x: Array, scale: Array, shift: Array, *, eps: float = 1e-5) -> Result:
    """(x - mean) / sqrt(var + eps) · scale + shift over the last axis: (…, I), (I,), (I,) -> (…, I).

    Ba, Kiros & Hinton 2016.
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
    normal = centred * inverse

    def pullback(g: Array) -> Array:
        h = g * scale
        along = (h * normal).mean(axis=-1, keepdims=True)
        return np.asarray((h - h.mean(axis=-1, keepdims=True) - normal * along) * inverse)

    return normal * scale + shift, (
        pullback,
        lambda g: unbroadcast(g * normal, scale),
        lambda g: unbroadcast(g, shift),
    )


@op
def batch_norm(
    x: Array,
    scale: Array,
    shift: Array,
    *,
    running_mean: Array,
    running_var: Array,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Result:
    """(x - mean) / sqrt(var + eps) · scale + shift per column of a batch: (B, I), (I,), (I,) -> (B, I).

    Moves the running averages of mean and (unbiased) variance by `momentum` towards those of this batch, in
    place. Ioffe & Szegedy 2015.
    """
    n = len(x)
    if n < 2:
        raise ValueError(f"a training batch of {n} has no variance, wanted 2 samples or more")
    mean, var = x.mean(axis=0), x.var(axis=0)
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * (n / (n - 1)) - running_var)
    inverse = 1 / np.sqrt(var + eps)
    normal = (x - mean) * inverse

    def pullback(g: Array) -> Array:
        return np.asarray((g - g.mean(axis=0) - normal * (g * normal).mean(axis=0)) * (scale * inverse))

    return normal * scale + shift, (
        pullback,
        lambda g: (g * normal).sum(axis=0),
        lambda g: g.sum(axis=0),
    )


@op
def normalize(x: Array, scale: Array, shift: Array, *, mean: Array, var: Array, eps: float = 1e-5) -> Result:
    """(x - mean) / sqrt(var + eps) · scale + shift per column, the statistics given: (B, I), … -> (B, I)."""
    inverse = (1 / np.sqrt(var + eps)).astype(x.dtype)
    normal = (x - mean.astype(x.dtype)) * inverse
    return normal * scale + shift, (
        lambda g: g * (scale * inverse),
        lambda g: (g * normal).sum(axis=0),
        lambda g: g.sum(axis=0),
    )


@op
def dropout(x: Array, *, p: float, rng: np.random.Generator) -> Result:
    """x / (1 - p) with probability 1 - p, else 0, drawn from `rng`. Srivastava et al. 2014."""
    if not 0 <= p < 1:
        raise ValueError(f"p is {p}, wanted 0 <= p < 1")
    kept = rng.random(x.shape, dtype=np.float32) >= np.float32(p)
    mask = np.multiply(kept, 1 / (1 - p), dtype=x.dtype)
    return x * mask, (lambda g: g * mask,)


@op
def pairwise_dot(x: Array) -> Result:
    """Dot products of distinct fields: (B, N, D) -> (B, N(N-1)/2), pairs (0,1), (0,2), …, (N-2,N-1).

    The interaction of DLRM (Naumov et al. 2019, section 2.1).
    """
    if x.ndim != 3:
        raise ValueError("wanted x (B, N, D)")
    x = np.ascontiguousarray(x)
    B, N, _ = x.shape
    out = np.empty((B, N * (N - 1) // 2), x.dtype)
    interaction.pairwise_dot(x, out)

    def pullback(g: Array) -> Array:
        gx = np.empty_like(x)
        interaction.pairwise_dot_backward(x, np.ascontiguousarray(g), False, gx)
        return gx

    return out, (pullback,)


@op
def factorization(x: Array) -> Result:
    """½((Σ x)² - Σ x²) over fields, the sum of all pairwise products: (B, F, D) -> (B, D).

    The second-order term of a factorization machine in linear time (Rendle 2010, lemma 3.1), before the sum
    over D.
    """
    if x.ndim != 3:
        raise ValueError("wanted x (B, F, D)")
    total = x.sum(axis=1)
    half = x.dtype.type(0.5)
    value = half * (total * total - np.einsum("bfd,bfd->bd", x, x))
    return value, (lambda g: g[:, None] * (total[:, None] - x),)
