"""How often the rows of a table are read, and how many ids come in a bag: what skew means to a plan.

A table of any size is about a hundred classes of rows of like frequency. Every question the planner asks (the
share of a span of rows, the distinct rows of a batch, what a cache of the hottest rows catches) is then a sum
over classes, and as ids are taken for independent draws, it is an expectation. All is float64 and vectorised:
numbers or arrays that broadcast, for numbers a float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import PlanError

Floats = npt.NDArray[np.float64]

_SINGLES = 16  # the hottest rows have a class each
_CLASSES = 100  # in all, of a curve that a formula gives
_MOST_LENGTHS = 32
_BELOW_ONE = 1 - 2.0**-53  # log(1 - p) is finite up to there


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Classes of rows of like frequency.

    counts: (S,) rows of each class, > 0; shares: (S,) of all ids that each class gets, ≥ 0, sum 1.
    ordered: the classes lie one after the other from row 0, as in a vocabulary sorted by falling count; else
    the rows of every class are strewn evenly over the table, as hashing does. PlanError.
    """

    counts: Floats
    shares: Floats
    ordered: bool = True

    def __post_init__(self) -> None:
        counts, shares = np.asarray(self.counts, np.float64), np.asarray(self.shares, np.float64)
        if counts.ndim != 1 or counts.shape != shares.shape or not len(counts):
            raise PlanError(f"frequencies: wanted (S,) counts and shares, got {counts.shape}, {shares.shape}")
        if not (np.isfinite(counts).all() and (counts > 0).all()):
            raise PlanError(f"frequencies: wanted counts > 0, got {counts.min()}")
        if not ((shares >= 0).all() and abs(shares.sum() - 1) < 1e-6):
            raise PlanError(f"frequencies: wanted shares ≥ 0 of sum 1, got sum {shares.sum()}")
        object.__setattr__(self, "counts", counts)
        object.__setattr__(self, "shares", shares / shares.sum())

    @classmethod
    def uniform(cls, rows: float) -> Frequencies:
        """Every row as often as any other."""
        return cls(np.array([rows], np.float64), np.ones(1), ordered=False)

    @classmethod
    def zipf(cls, rows: float, exponent: float, ordered: bool = True) -> Frequencies:
        """The row of rank r = 1, 2, … gets a share ∝ r^-exponent. PlanError for a negative exponent."""
        if not exponent >= 0:
            raise PlanError(f"frequencies: wanted a Zipf exponent ≥ 0, got {exponent}")
        bounds = class_bounds(rows)
        # the midpoint rule is within 1e-4 of the sum from rank 16 on, and the ranks before are classes of one
        edges = bounds + 0.5
        mass = np.diff(np.log(edges) if exponent == 1 else edges ** (1 - exponent) / (1 - exponent))
        single = np.diff(bounds) == 1
        mass[single] = bounds[1:][single] ** -exponent
        return cls(np.diff(bounds), mass / mass.sum(), ordered)

    @classmethod
    def mixed(cls, parts: Sequence[tuple[float, Frequencies]]) -> Frequencies:
        """Of a table that several features read: (weight: ids of the feature, its frequencies) of each.

        The hot rows of one count as the hot rows of the others: they are the same things, seen in two places.
        Ordered when those parts are that bring most ids. The table has the rows of the largest part.
        """
        total = sum(weight for weight, _ in parts)
        if not parts:
            raise PlanError("frequencies: wanted parts to mix, got none")
        if not total > 0:  # nobody reads: all alike
            return cls.mixed([(1.0, part) for _, part in parts])
        rows = max(part.rows for _, part in parts)
        ordered = sum(weight for weight, part in parts if part.ordered) * 2 >= total
        spread = [
            (w / total, part.resized(rows) if ordered else part.falling.resized(rows)) for w, part in parts
        ]
        bounds = np.unique(np.concatenate([part.bounds for _, part in spread]))
        bounds = bounds[np.concatenate([[True], np.diff(bounds) > 1e-9 * rows])]
        bounds[-1] = rows
        cumulative = sum(weight * np.interp(bounds, part.bounds, part.cumulative) for weight, part in spread)
        return cls(np.diff(bounds), np.diff(cumulative), ordered)

    @property
    def rows(self) -> float:
        """Rows of the table."""
        return float(self.bounds[-1])

    @cached_property
    def bounds(self) -> Floats:
        """(S+1,) rows before each class, and all."""
        return np.concatenate([[0.0], np.cumsum(self.counts)])

    @cached_property
    def cumulative(self) -> Floats:
        """(S+1,) share of the classes before each, and 1."""
        return np.concatenate([[0.0], np.cumsum(self.shares)])

    @cached_property
    def falling(self) -> Frequencies:
        """The same classes, hottest first."""
        order = np.argsort(-self.chances, kind="stable")
        return Frequencies(self.counts[order], self.shares[order], self.ordered)

    @cached_property
    def chances(self) -> Floats:
        """(S,) that an id is one given row of the class."""
        return np.minimum(self.shares / self.counts, _BELOW_ONE)

    def share(self, lo: Any, hi: Any) -> Any:
        """Of the ids, in rows [lo, hi)."""
        if not self.ordered:
            return (np.asarray(hi, np.float64) - lo)[()] / self.rows
        return np.interp(hi, self.bounds, self.cumulative) - np.interp(lo, self.bounds, self.cumulative)

    def distinct(self, ids: Any, lo: Any = 0, hi: Any = None) -> Any:
        """Expected distinct rows of [lo, hi) among `ids` ids of the whole table: Σ rows·(1 - (1-p)^ids)."""
        seen = self.counts * -np.expm1(np.asarray(ids, np.float64)[..., None] * np.log1p(-self.chances))
        hi = self.rows if hi is None else hi
        if not self.ordered:
            return (seen.sum(-1) * (np.asarray(hi, np.float64) - lo) / self.rows)[()]
        cumulative = np.concatenate([np.zeros((*seen.shape[:-1], 1)), np.cumsum(seen, -1)], -1)
        return (self._at(cumulative, hi) - self._at(cumulative, lo))[()]

    def hottest(self, rows: Any) -> Any:
        """Share of the ids that go to the `rows` most read rows: what a cache of just them would hit."""
        return np.interp(rows, self.falling.bounds, self.falling.cumulative)

    def rows_for(self, share: Any) -> Any:
        """How many of the most read rows get `share` of the ids: the inverse of `hottest`."""
        return _inverse(self.falling.cumulative, self.falling.bounds, share)

    def row_at(self, share: Any) -> Any:
        """The row before which `share` of the ids fall: the inverse of share(0, row)."""
        if not self.ordered:
            return np.asarray(share, np.float64)[()] * self.rows
        return _inverse(self.cumulative, self.bounds, share)

    def even_cuts(self, parts: int) -> npt.NDArray[np.int64]:
        """(parts + 1,) rows from 0 to all, between which the spans get like shares of the ids.

        Every span has a row. PlanError for more parts than rows.
        """
        rows = round(self.rows)
        if not 1 <= parts <= rows:
            raise PlanError(f"frequencies: wanted 1 … {rows} parts of {rows} rows, got {parts}")
        cuts = np.rint(self.row_at(np.arange(parts + 1) / parts)).astype(np.int64)
        steps = np.arange(parts + 1)
        cuts = np.maximum.accumulate(np.clip(cuts, 0, rows) - steps) + steps
        return np.asarray(np.minimum(cuts, rows - parts + steps))

    def resized(self, rows: float) -> Frequencies:
        """Of the same ids in a table of so many rows.

        Rows added at the end are never read. The ids of rows cut off fall evenly on those that stay, as a
        smaller hash would send them; of strewn rows the coldest go.
        """
        if not rows >= 1:
            raise PlanError(f"frequencies: wanted at least 1 row, got {rows}")
        if abs(rows - self.rows) <= 1e-9 * rows:
            return self
        if rows > self.rows:
            return Frequencies(
                np.append(self.counts, rows - self.rows), np.append(self.shares, 0.0), self.ordered
            )
        kept = self if self.ordered else self.falling
        bounds = np.append(kept.bounds[kept.bounds < rows * (1 - 1e-12)], rows)
        cumulative = np.interp(bounds, kept.bounds, kept.cumulative)
        counts, lost = np.diff(bounds), 1 - cumulative[-1]
        return Frequencies(counts, np.diff(cumulative) + lost * counts / rows, self.ordered)

    def _at(self, cumulative: Floats, row: Any) -> Floats:
        """(..., S+1) running sums at the bounds → at `row`, linear between."""
        row = np.clip(np.asarray(row, np.float64), 0, self.rows)
        below = np.clip(np.searchsorted(self.bounds, row, side="right") - 1, 0, len(self.counts) - 1)
        shape = np.broadcast_shapes(cumulative.shape[:-1], below.shape)
        at = np.broadcast_to(below, shape)[..., None]
        sums = np.broadcast_to(cumulative, (*shape, cumulative.shape[-1]))
        low, high = (np.take_along_axis(sums, at + k, -1)[..., 0] for k in (0, 1))
        part: Floats = (row - self.bounds[below]) / self.counts[below]
        return np.asarray(low + (high - low) * part)


@dataclass(frozen=True, eq=False)
class Lengths:
    """How many ids a bag has: values (n,) ≥ 0, rising, with chances (n,) of sum 1. PlanError."""

    values: Floats
    chances: Floats

    def __post_init__(self) -> None:
        values, chances = np.asarray(self.values, np.float64), np.asarray(self.chances, np.float64)
        if values.ndim != 1 or values.shape != chances.shape or not len(values):
            raise PlanError(f"lengths: wanted (n,) values and chances, got {values.shape}, {chances.shape}")
        if not (np.isfinite(values).all() and values[0] >= 0 and (np.diff(values) > 0).all()):
            raise PlanError(f"lengths: wanted rising values ≥ 0, got {values.tolist()}")
        if not ((chances >= 0).all() and abs(chances.sum() - 1) < 1e-6):
            raise PlanError(f"lengths: wanted chances ≥ 0 of sum 1, got sum {chances.sum()}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "chances", chances / chances.sum())

    @classmethod
    def fixed(cls, length: float) -> Lengths:
        """Every bag has `length` ids; of a broken number the whole ones on either side, of that mean."""
        low = np.floor(length)
        if low == length:
            return cls(np.array([length], np.float64), np.ones(1))
        return cls(np.array([low, low + 1]), np.array([low + 1 - length, length - low]))

    @classmethod
    def poisson(cls, mean: float) -> Lengths:
        """Poisson lengths: some bags are empty, a share e^-mean of them."""
        if not 0 <= mean < 1e6:
            raise PlanError(f"lengths: wanted a mean of 0 … 1e6, got {mean}")
        reach = int(mean + 10 * np.sqrt(mean) + 20)
        values = np.arange(reach + 1, dtype=np.float64)
        logs = np.cumsum(np.log(np.maximum(values, 1)))
        chances = np.exp(values * np.log(mean) - mean - logs) if mean else (values == 0).astype(np.float64)
        return cls.of(values, chances)

    @classmethod
    def of(cls, values: Any, weights: Any) -> Lengths:
        """The distribution of rising `values` that come with `weights`, in at most 32 values.

        0 stays a value of its own; neighbours of like weight become one, at their mean. So `mean` and `empty`
        are exact, and `touched` is within a per cent.
        """
        values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
        values, weights = values[weights > 0], weights[weights > 0]
        if not len(values):
            raise PlanError("lengths: wanted some bags, got none")
        if len(values) > _MOST_LENGTHS:
            group = _groups(values, weights)
            sums = np.bincount(group, weights)
            values, weights = np.bincount(group, values * weights) / sums, sums
        return cls(values, weights / weights.sum())

    @cached_property
    def mean(self) -> float:
        """Ids in a bag."""
        return float(self.values @ self.chances)

    @cached_property
    def empty(self) -> float:
        """Share of the bags without ids."""
        return float(self.chances[self.values == 0].sum())

    def touched(self, share: Any) -> Any:
        """1 - E[(1 - share)^length]: the chance that a bag has an id in rows that get `share` of the ids."""
        share = np.clip(np.asarray(share, np.float64), 0, _BELOW_ONE)
        return (-np.expm1(self.values * np.log1p(-share[..., None])) @ self.chances)[()]


def class_bounds(rows: float, classes: int = _CLASSES) -> Floats:
    """(S+1,) whole numbers rising from 0 to `rows`: single rows, then steps of like ratio. PlanError."""
    if not rows >= 1:
        raise PlanError(f"frequencies: wanted at least 1 row, got {rows}")
    singles = np.arange(min(_SINGLES, int(rows)), dtype=np.float64)
    steps = np.rint(np.geomspace(min(_SINGLES, rows), rows, classes - _SINGLES + 1))
    steps[-1] = rows
    return np.unique(np.concatenate([singles, steps]))


def _inverse(rising: Floats, values: Floats, at: Any) -> Any:
    """The least value at which a rising, piecewise linear curve reaches `at`."""
    first = np.concatenate([[True], np.diff(rising) > 0])
    return np.interp(at, rising[first], values[first])


def _groups(values: Floats, weights: Floats) -> npt.NDArray[np.int64]:
    """A group number for each of the rising values: 0 alone, the others cut where their weight is even."""
    zero = int(values[0] == 0)
    weights = weights[zero:]
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    _, groups = np.unique((middle * (_MOST_LENGTHS - zero)).astype(np.int64), return_inverse=True)
    return np.concatenate([np.zeros(zero, np.int64), groups + zero])
