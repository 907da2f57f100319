"""RowGrad: the gradient of a pool, named by the rows that were touched, summed when it is first looked at.

The pullback of a lookup only notes what it was given. Parts of several lookups (slices of a batch, several
batches, several losses) are joined by `+`. Sorting and summing happen once, over all parts, when `rows` or
`values` is asked for: see docs/decisions/0002.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tesserec.autograd.exact import NOTHING, Levels, levels_of
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.entries import Entries, sorted_entries
from tesserec.embeddings.kernels import coalesce as kernels
from tesserec.embeddings.kernels.lookup import LANE
from tesserec.embeddings.spans import Span

Rows = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one lookup left. lanes: (S,) LANE with `grad`; held: the arrays that they give addresses of."""

    lanes: Array
    held: tuple[Any, ...]


class RowGrad:
    """Gradient of a pool (R, D), zero outside `rows`. A value: nothing changes it.

    rows:   (U,) int64, increasing.
    values: (U, D), each the sum over all parts, first part first.
    """

    def __init__(self, bounds: Rows, width: int, dtype: np.dtype[Any], parts: Sequence[Part]):
        """bounds: (T + 1,) first row of each table of the pool, and R. width, dtype: those of the pool."""
        self.bounds, self.width, self.dtype, self.parts = bounds, width, dtype, tuple(parts)

    @classmethod
    def from_rows(cls, bounds: Rows, rows: Rows, values: Array) -> RowGrad:
        """The gradient that has `values` (U, D) at `rows` (U,), increasing."""
        cuts = np.searchsorted(rows, bounds)
        ids, offsets = rows - np.repeat(bounds[:-1], np.diff(cuts)), np.arange(len(rows) + 1)
        lanes = np.zeros(len(bounds) - 1, LANE)
        lanes["table"] = np.arange(len(lanes))
        lanes["first_row"], lanes["num_rows"] = bounds[:-1], np.diff(bounds)
        lanes["ids"], lanes["offsets"] = ids.ctypes.data, offsets.ctypes.data + 8 * cuts[:-1]
        lanes["bags"] = lanes["count"] = np.diff(cuts)
        lanes["grad"] = values.ctypes.data + values.strides[0] * cuts[:-1]
        lanes["stride"] = values.shape[1]
        part = Part(lanes, (ids, offsets, values))
        return cls(bounds, values.shape[1], values.dtype, [part])

    def __add__(self, other: Any) -> RowGrad:
        """Both gradients' parts, in this order."""
        if not isinstance(other, RowGrad) or other.bounds is not self.bounds:
            self._refuse()
        return RowGrad(self.bounds, self.width, self.dtype, self.parts + other.parts)

    __radd__ = __add__

    @property
    def shape(self) -> tuple[int, int]:
        """(R, D), that of the pool."""
        return int(self.bounds[-1]), self.width

    @property
    def rows(self) -> Rows:
        return self._sum[0]

    @property
    def values(self) -> Array:
        return self._sum[1]

    @cached_property
    def entries(self) -> Entries:
        """What `rows` and `values` are summed from; row optimizers do that by themselves."""
        return sorted_entries(_ordered(self.parts), self.dtype.itemsize)

    @cached_property
    def _sum(self) -> tuple[Rows, Array]:
        held, spans = self.entries, self.entries.spans()
        counts = parallel_map(lambda span: kernels.count_runs(held.sorted, held.ranges, *span), spans)
        firsts = np.cumsum([0, *counts])
        rows, values = np.empty(firsts[-1], np.int64), np.empty((firsts[-1], self.width), self.dtype)

        def add_up(item: tuple[Span, int]) -> None:
            span, first = item
            kernels.sum_rows(held.sorted, held.sources, held.ranges, *span, rows, values, first)

        parallel_map(add_up, list(zip(spans, firsts.tolist(), strict=False)))
        return rows, values

    def only(self, tables: Sequence[int]) -> RowGrad | None:
        """The gradient of the tables at these positions in the pool; None where it has none."""
        kept = [(part.lanes[np.isin(part.lanes["table"], tables)], part.held) for part in self.parts]
        parts = [Part(lanes, held) for lanes, held in kept if len(lanes)]
        return RowGrad(self.bounds, self.width, self.dtype, parts) if parts else None

    def squares(self, tables: Sequence[int] | None = None) -> Levels:
        """Σ values², of all tables or of those at some positions in the pool."""
        if tables is None:
            return levels_of(self.values)
        cuts = np.searchsorted(self.rows, self.bounds).tolist()
        parts = [levels_of(self.values[cuts[t] : cuts[t + 1]]) for t in tables]
        return sum(parts, NOTHING)

    def scale(self, factor: float) -> RowGrad:
        """This gradient times `factor`."""
        return self.from_rows(self.bounds, self.rows, self.values * self.dtype.type(factor))

    def clip(self, lo: float, hi: float) -> RowGrad:
        """Every element of the summed values moved into [lo, hi]."""
        return self.from_rows(self.bounds, self.rows, self.values.clip(lo, hi))

    def to_dense(self) -> Array:
        """(R, D) array; for tests and small tables."""
        dense = np.zeros(self.shape, self.dtype)
        dense[self.rows] = self.values
        return dense

    def __array_ufunc__(self, *_: Any, **named: Any) -> Any:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(
            "a pool's gradient is a RowGrad, which adds only to another RowGrad of that pool: "
            "use a pool through its collection; for L2 regularization, give the row optimizer weight_decay"
        )

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return self.to_dense().astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        ids = sum(int(part.lanes["count"].sum()) for part in self.parts)
        return f"RowGrad(shape={self.shape}, {ids} ids in {len(self.parts)} parts)"


def _ordered(parts: Sequence[Part]) -> Array:
    """All lanes by table, then turn, then part: slicing a batch does not change the order of its ids."""
    lanes = np.concatenate([part.lanes for part in parts])
    return lanes[np.lexsort((lanes["turn"], lanes["table"]))]
