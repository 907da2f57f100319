"""Entries: every id of a gradient, sorted by row, so that the gradients of a row lie side by side."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.kernels import coalesce as kernels
from tesserec.embeddings.kernels.coalesce import RANGE, SOURCE
from tesserec.embeddings.spans import Span, even_bounds, weighted_spans

Array = npt.NDArray[Any]

_LEAST = 4096  # entries that are worth a task of their own


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Ids sorted by row, each with its gradient: what is left is to add up.

    sorted: (N,) u8; sources: SOURCE; ranges: RANGE. See `kernels.coalesce`.
    """

    sorted: npt.NDArray[np.uint64]
    sources: Array
    ranges: Array

    def spans(self) -> list[Span]:
        """The entries in (lo, hi) of about equal length, no row in two of them."""
        marks = np.array(even_bounds(len(self.sorted), _LEAST))
        bounds = kernels.cut_runs(self.sorted, self.ranges, marks)
        return [(lo, hi) for lo, hi in pairwise(bounds.tolist()) if lo < hi]


def sorted_entries(lanes: Array, itemsize: int) -> Entries:
    """The entries of `lanes`, which are ordered by table; itemsize: that of their gradients.

    A table is sorted by one thread: with two, sharing a large one out took longer than it saved.
    """
    ranges = np.empty(len(lanes), RANGE)
    tables, num_entries, num_sources = kernels.plan_lanes(lanes, ranges)
    if max(num_entries, num_sources) >= 2**32:
        raise ValueError(f"a RowGrad of {num_entries} ids: wanted fewer than 2³²; step more often")
    ranges, sources = ranges[:tables], np.empty(num_sources, SOURCE)
    entries = np.empty((2, num_entries), np.uint64)

    def sort(span: Span) -> None:
        kernels.sort_ranges(lanes, ranges, *span, itemsize, sources, entries)

    parallel_map(sort, weighted_spans(ranges["stop"], _LEAST))
    return Entries(entries[0], sources, ranges)
