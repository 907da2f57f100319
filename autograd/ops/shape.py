"""Ops that move elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.kernels import dense as kernels
from tesserec.autograd.ops.elementwise import Result, unbroadcast
from tesserec.autograd.tensor import Array, Piece, Tensor, op


@op
def reshape(x: Array, *, shape: tuple[int, ...]) -> Result:
    """The same elements in another shape; one axis may be -1."""
    return x.reshape(shape), (lambda g: g.reshape(x.shape),)


@op
def transpose(x: Array, *, axes: Sequence[int] | None = None) -> Result:
    """The axes in another order, by default reversed."""
    return x.transpose(axes), (lambda g: g.transpose(None if axes is None else np.argsort(axes)),)


@op
def broadcast_to(x: Array, *, shape: tuple[int, ...]) -> Result:
    """x repeated along new or unit axes, without a copy."""
    return np.broadcast_to(x, shape), (lambda g: unbroadcast(g, x),)


@op
def concat(*xs: Array, axis: int = 1) -> Result:
    """Join along `axis`; all other axes equal."""
    ends = np.cumsum([x.shape[axis] for x in xs])
    lead = (slice(None),) * (axis % xs[0].ndim)
    keys = [(*lead, slice(end - x.shape[axis], end)) for x, end in zip(xs, ends, strict=True)]
    return np.concatenate(xs, axis), tuple(lambda g, key=key: g[key] for key in keys)


@op
def stack(*xs: Array, axis: int = 1) -> Result:
    """F tensors of one shape -> one with a new axis of size F: with axis 1, (B, D) each -> (B, F, D)."""
    return np.stack(xs, axis), tuple(lambda g, i=i: g.take(i, axis) for i in range(len(xs)))


def split(x: Tensor, sizes: Sequence[int], *, axis: int = 1) -> list[Tensor]:
    """Consecutive pieces of `x` along `axis`, of the given sizes: the inverse of `concat`."""
    ends = [int(end) for end in np.cumsum(sizes)]
    if not ends or ends[-1] != x.shape[axis] or min(sizes) < 0:
        raise ValueError(f"split: sizes {list(sizes)} do not add up to axis {axis} of shape {x.shape}")
    lead = (slice(None),) * (axis % x.ndim)
    return [x[(*lead, slice(end - size, end))] for size, end in zip(sizes, ends, strict=True)]


@op
def getitem(x: Array, *, key: Any) -> Result:
    """x[key], any key that numpy takes. An element taken twice gets both gradients."""
    keys = key if isinstance(key, tuple) else (key,)
    basic = all(k is None or k is ... or isinstance(k, int | np.integer | slice) for k in keys)
    return x[key], (lambda g: Piece(key, g, _add_slice if basic else np.add.at),)


def _add_slice(buffer: Array, key: Any, values: Array) -> None:
    buffer[key] += values


@op
def gather(x: Array, *, index: npt.NDArray[np.integer[Any]]) -> Result:
    """Rows of `x`: (R, …)[index (n, …)] -> (n, …, …). Indices lie in [0, R)."""
    index = np.asarray(index)
    if index.size and (index.min() < 0 or index.max() >= len(x)):
        raise ValueError(f"index reaches from {index.min()} to {index.max()}, wanted [0, {len(x)})")
    return x[index], (lambda g: Piece(index, g, _add_rows),)


def _add_rows(buffer: Array, index: Array, values: Array) -> None:
    width = math.prod(buffer.shape[1:])
    rows = np.ascontiguousarray(values).reshape(index.size, width)
    kernels.add_rows(buffer.reshape(len(buffer), width), index.reshape(-1), rows)
