"""The lookup op: rows of pools gathered into bags. Forward and backward walk the same lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Pullback, Tensor, op
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.kernels import lookup as kernels
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.rowgrad import Part, RowGrad, Rows
from tesserec.embeddings.spans import even_spans

Array = npt.NDArray[Any]

_LEAST = 512  # bags per lane that are worth a task of their own


@dataclass(frozen=True, slots=True, eq=False)
class Bags:
    """Bags to look up in one pool. lanes: (S,) LANE; held: the arrays that they give addresses of."""

    pool: Pool
    lanes: Array
    held: tuple[Any, ...]


def lookup(bags: Sequence[Bags], shape: tuple[int, int]) -> Tensor:
    """Every lane's pooled rows in its own columns of one (bags, ΣD) result; `shape` is that of the result.

    All lanes have as many bags. Ids must have been checked.
    """
    pools = [part.pool for part in bags]
    result: Tensor = _lookup(*pools, bags=bags, shape=shape)
    return result


@op
def _lookup(*pools: Array, bags: Sequence[Bags], shape: tuple[int, int]) -> tuple[Array, Sequence[Pullback]]:
    for pool, part in zip(pools, bags, strict=True):
        if (
            len(pool) != part.pool.bounds[-1] or not pool.flags.c_contiguous
        ):  # ids were checked against bounds
            raise RuntimeError(f"the data of {part.pool!r} was replaced: wanted as many rows, C-contiguous")
    out = np.empty(shape, pools[0].dtype)

    def pool_bags(span: tuple[int, int]) -> None:
        for pool, part in zip(pools, bags, strict=True):
            kernels.pool_bags(pool, part.lanes, *span, out)

    parallel_map(pool_bags, even_spans(shape[0], _LEAST))
    return out, [
        _pullback(part.pool.bounds, pool.shape[1], part) for pool, part in zip(pools, bags, strict=True)
    ]


def _pullback(bounds: Rows, width: int, bags: Bags) -> Callable[[Array], RowGrad]:
    """Gradient of the output -> RowGrad that remembers it; nothing is computed here."""

    def pullback(g: Array) -> RowGrad:
        if g.strides[1] != g.itemsize or g.strides[0] % g.itemsize:
            g = np.ascontiguousarray(g)
        lanes = bags.lanes.copy()
        lanes["grad"] = g.ctypes.data + lanes["column"] * g.itemsize
        lanes["stride"] = g.strides[0] // g.itemsize
        return RowGrad(bounds, width, g.dtype, [Part(lanes, (g, *bags.held))])

    return pullback
