"""How far back a row was touched, for the parts of a table: what `speeds.reuse` says, of many parts at once.

The running sums over the classes of a table's rows are made once; every span of rows is then a difference of
two of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.frequencies import Frequencies
from tesserec.sharding.planner.speeds import DISTANCES, FAR, INTERVALS

Numbers = npt.NDArray[np.float64]

_MIDDLE: Numbers = np.sqrt(np.maximum(INTERVALS[:-1], 0.5) * INTERVALS[1:])


class Distances:
    """The reuse distances of a table's rows, in time that is counted in ids of the table."""

    def __init__(self, frequencies: Frequencies):
        self.frequencies = frequencies
        left = np.exp(-np.outer(INTERVALS, frequencies.chances))
        seen = np.cumsum((1 - left) * frequencies.counts, axis=1)
        reached = np.cumsum(left * frequencies.shares, axis=1)
        nothing = np.zeros((len(INTERVALS), 1))
        self.seen, self.reached = np.hstack([nothing, seen]), np.hstack([nothing, reached])

    def of(
        self,
        lo: Numbers,
        hi: Numbers,
        row_bytes: Numbers,
        ids: Numbers,
        between: float,
        drift: float = 0.0,
    ) -> tuple[Numbers, Numbers]:
        """(n, K) share of the reads of rows [lo, hi) by distance: of all, and of a step's first of each row.

        All arguments are (n,) but the last two. row_bytes: of a row and what is read with it; ids: of the
        table that a holder sees in a step, all rows counted; between: bytes of anything else that are touched
        from one step's reads to the next's; drift: see `speeds.reuse`.
        """
        reached = self._between(self.reached, lo, hi)
        reached /= np.maximum(reached[:, :1], 1e-300)
        seen = self._between(self.seen, lo, hi)
        middle = np.array([np.interp(_MIDDLE, INTERVALS, one) for one in seen])
        even = -(hi - lo)[:, None] * np.expm1(-_MIDDLE / self.frequencies.rows)  # if ids were uniform
        near = row_bytes[:, None] * middle + drift * np.maximum(even - middle, 0.0)
        steps = _MIDDLE / np.maximum(ids, 1.0)[:, None]
        within = np.maximum(0.0, 1 - steps)  # the last touch is of the same step
        far = near + between * np.maximum(1.0, steps)
        mass = reached[:, :-1] - reached[:, 1:]
        first = _binned(far, mass * (1 - within))
        found = _binned(near, mass * within) + first
        never = np.maximum(0.0, 1 - found.sum(axis=1))
        found[:, FAR] += never
        first[:, FAR] += never
        return found, first / np.maximum(first.sum(axis=1), 1e-300)[:, None]

    def _between(self, sums: Numbers, lo: Numbers, hi: Numbers) -> Numbers:
        """(n, T) differences of the running sums (T, S + 1) at the rows."""
        held = self.frequencies
        if not held.ordered:
            return np.outer((hi - lo) / held.rows, sums[:, -1])
        return self._at(sums, hi) - self._at(sums, lo)

    def _at(self, sums: Numbers, row: Numbers) -> Numbers:
        held = self.frequencies
        k = np.clip(np.searchsorted(held.bounds, row, side="right") - 1, 0, len(held.counts) - 1)
        part = ((row - held.bounds[k]) / held.counts[k])[:, None]
        found: Numbers = sums[:, k].T * (1 - part) + sums[:, k + 1].T * part
        return found


def at_distances(distance: Numbers) -> Numbers:
    """(n, K): all reads at these distances (n,)."""
    return _binned(distance[:, None], np.ones((len(distance), 1)))


def _binned(distance: Numbers, share: Numbers) -> Numbers:
    """(n, T) shares at (n, T) distances -> (n, K), each between the two nearest of DISTANCES."""
    place = np.clip(np.log2(np.maximum(distance, 1.0)) - np.log2(DISTANCES[0]), 0, FAR)
    low = np.minimum(place.astype(np.int64), FAR - 1)
    high = share * (place - low)
    n, size = len(distance), FAR + 1
    flat = (low + size * np.arange(n)[:, None]).ravel()
    low_part: Numbers = np.bincount(flat, (share - high).ravel(), n * size).astype(np.float64)
    found: Numbers = (low_part + np.bincount(flat + 1, high.ravel(), n * size)).reshape(n, size)
    return found
