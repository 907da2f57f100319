"""How often each row of a table is read, in one pass and bounded memory.

Tables of up to 2²² rows are counted in an array, exactly. Of larger ones two kinds of rows are followed:
those whose hash ends in so many zeros, a sample in which every count is exact whatever comes (Gibbons,
"Distinct sampling", VLDB 2001), and the most read, whose counts are low by at most a known number (Manku and
Motwani, "Approximate frequency counts", VLDB 2002). What is kept of either is a `RowSketch`, and the sketches
of two parts of the data make the sketch of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tesserec.dataio.columns import Keys, hash_integers
from tesserec.dataio.kernels import counting as kernels
from tesserec.dataio.vocabulary import KeyTable

Counts = npt.NDArray[np.int64]
Ints = tuple[int, ...]

ARRAY_ROWS = 1 << 22  # of a table counted in an array: 16 MiB
TABLE_ROWS = 1 << 20  # of larger tables, rows followed at a time: at most 25 MiB
HOT, SAMPLED = 1024, 8192  # rows in a sketch
MOST = 1 << 62  # rows of a table of unknown size

# classes of numbers, of rows and of lengths: sixteen single ones, then four an octave
BOUNDS: Counts = np.concatenate([np.arange(16), np.rint(2 ** np.arange(4, 62.25, 0.25))]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class RowSketch:
    """Which rows are read, and how often.

    spans: reads of the rows BOUNDS[k] … BOUNDS[k+1]-1; exact.
    hot, hot_counts: the most read rows, falling. Counts are low by at most `low`; a row that is not listed
    was read at most `rest` times.
    level, sample, sample_counts: every row read whose hash ends in `level` zeros; counts are exact.
    distinct: rows read; exact, or within 3 % (two standard errors) when from a sample.
    """

    spans: Ints
    hot: Ints
    hot_counts: Ints
    low: int
    rest: int
    level: int
    sample: Ints
    sample_counts: Ints
    distinct: int
    exact: bool

    def __post_init__(self) -> None:
        if len(self.hot) != len(self.hot_counts) or len(self.sample) != len(self.sample_counts):
            raise ValueError("wanted a count for each row")

    @classmethod
    def of(cls, rows: Keys, counts: Counts, spans: Counts, level: int = 0, low: int = 0) -> RowSketch:
        """The sketch of rows that were followed: all, or a sample (exact) and others (too low by `low`)."""
        sampled = is_sampled(rows, level)
        hot, hot_counts, rest = _hottest(rows, counts)
        thinned, sample, sample_counts = _thinned(rows[sampled], counts[sampled], level)
        return cls(
            _ints(np.trim_zeros(spans, "b")),
            _ints(hot),
            _ints(hot_counts),
            low,
            rest + low,
            thinned,
            _ints(sample),
            _ints(sample_counts),
            int(sampled.sum()) << level,
            level == 0,
        )

    def merged(self, other: RowSketch) -> RowSketch:
        """The sketch of both parts: `spans` and `sample` as of the whole, `hot` within its own `low`."""
        spans = _sum([np.array(self.spans, np.int64), np.array(other.spans, np.int64)])
        rows, counts = _united([(self.sample, self.sample_counts), (other.sample, other.sample_counts)])
        if not self.level and not other.level:
            return RowSketch.of(rows, counts, spans)
        level = max(self.level, other.level)
        kept = is_sampled(rows, level)
        level, sample, sample_counts = _thinned(rows[kept], counts[kept], level)
        candidates, _ = _united([(self.hot, self.hot_counts), (other.hot, other.hot_counts)])
        hot, hot_counts, dropped = _hottest(candidates, self.count(candidates) + other.count(candidates))
        low = max(self.low + other.low, self.low + other.rest, self.rest + other.low)
        return RowSketch(
            _ints(spans),
            _ints(hot),
            _ints(hot_counts),
            low,
            max(self.rest + other.rest, dropped + low if dropped else 0),
            level,
            _ints(sample),
            _ints(sample_counts),
            len(sample) << level,
            level == 0,
        )

    def count(self, rows: Keys) -> Counts:
        """(n,) rows → (n,) how often each was read, as far as known, else 0."""
        found = np.zeros(len(rows), np.int64)
        for known, counts in ((self.hot, self.hot_counts), (self.sample, self.sample_counts)):
            if known:
                order = np.argsort(known)
                keys = np.array(known, np.int64)[order]
                at = np.minimum(np.searchsorted(keys, rows), len(keys) - 1)
                found = np.where(keys[at] == rows, np.array(counts, np.int64)[order][at], found)
        return found


class RowCounter(Protocol):
    """Counts the ids of one feature."""

    def add(self, ids: Keys) -> int:
        """Count (n,) ids → the place of the first that is no row of the table, or -1."""
        ...

    def sketch(self) -> RowSketch:
        """What was counted."""
        ...


def row_counter(rows: int) -> RowCounter:
    """The counter for a table of so many rows."""
    return ArrayCounter(rows) if rows <= ARRAY_ROWS else TableCounter(rows)


class ArrayCounter:
    """A count for every row."""

    def __init__(self, rows: int) -> None:
        self._counts = np.zeros(rows, np.uint32)

    def add(self, ids: Keys) -> int:
        """See RowCounter."""
        return int(kernels.count_rows(ids, self._counts))

    def sketch(self) -> RowSketch:
        """Exact."""
        spans = np.add.reduceat(
            self._counts, BOUNDS[: np.searchsorted(BOUNDS, len(self._counts))], dtype=np.int64
        )
        rows = np.flatnonzero(self._counts)
        return RowSketch.of(rows, self._counts[rows].astype(np.int64), spans)


class TableCounter:
    """A count for every row of a sample, and for the rows that were most read so far."""

    def __init__(self, rows: int, limit: int = TABLE_ROWS) -> None:
        self._rows, self._limit = rows, limit
        self._table, self._level, self._low = KeyTable(), 0, 0
        self._spans = np.zeros(len(BOUNDS) - 1, np.int64)

    def add(self, ids: Keys) -> int:
        """See RowCounter."""
        wrong = int(kernels.count_classes(ids, BOUNDS, self._rows, self._spans))
        if wrong < 0:
            self._table.count(ids)
            if len(self._table) > self._limit:
                self._thin()
        return wrong

    def sketch(self) -> RowSketch:
        """Exact while the rows read fit the limit."""
        rows, counts = self._table.entries()
        return RowSketch.of(rows, counts.astype(np.int64), self._spans, self._level, self._low)

    def _thin(self) -> None:
        """Keep a sample of a quarter of the limit, and of the other rows the quarter most read."""
        rows, counts = self._table.entries()
        quarter = self._limit // 4
        while (kept := is_sampled(rows, self._level)).sum() > quarter:
            self._level += 1
        others = np.flatnonzero(~kept)
        if len(others) > quarter:
            cut = len(others) - quarter
            order = others[np.argpartition(_scattered(rows[others], counts[others].astype(np.int64)), cut)]
            self._low += int(counts[order[:cut]].max())
            others = order[cut:]
        kept[others] = True
        self._table = KeyTable(expected=self._limit)
        self._table.put(rows[kept], counts[kept])


def _scattered(rows: Keys, counts: Counts) -> Counts:
    """Numbers in the order of `counts`, ties by a hash.

    Entries come in the order of their slots: neighbours would be one long run of slots of the next table.
    """
    found: Counts = (counts << 31) | (hash_integers(rows, seed=2) & 0x7FFFFFFF)
    return found


def is_sampled(rows: Keys, level: int) -> npt.NDArray[np.bool_]:
    """(n,) rows → which of them belong to the sample at `level`: one of 2^level."""
    return np.asarray((hash_integers(rows, seed=1) & ((1 << level) - 1)) == 0)


def _thinned(rows: Keys, counts: Counts, level: int) -> tuple[int, Keys, Counts]:
    """The least level from this on whose sample is small enough, and that sample by row."""
    while len(rows) > SAMPLED:
        level += 1
        kept = is_sampled(rows, level)
        rows, counts = rows[kept], counts[kept]
    order = np.argsort(rows)
    return level, rows[order], counts[order]


def _hottest(rows: Keys, counts: Counts) -> tuple[Keys, Counts, int]:
    """The HOT rows of the largest counts, falling (of equals the first rows), and the count of the next."""
    if len(rows) > 4 * HOT:  # all that reach the count of the last, so that ties fall to the first rows
        reach = counts >= np.partition(counts, -HOT - 1)[-HOT - 1]
        rows, counts = rows[reach], counts[reach]
    order = np.lexsort((rows, -counts))
    rows, counts = rows[order], counts[order]
    return rows[:HOT], counts[:HOT], int(counts[HOT]) if len(counts) > HOT else 0


def _united(parts: list[tuple[Ints, Ints]]) -> tuple[Keys, Counts]:
    """Distinct rows of all parts, and the sum of their counts."""
    rows, places = np.unique(
        np.concatenate([np.array(rows, np.int64) for rows, _ in parts]), return_inverse=True
    )
    counts = np.zeros(len(rows), np.int64)
    np.add.at(counts, places, np.concatenate([np.array(counts, np.int64) for _, counts in parts]))
    return rows, counts


def _sum(arrays: list[Counts]) -> Counts:
    """Their sum, the shorter filled with zeros."""
    out = np.zeros(max(map(len, arrays)), np.int64)
    for array in arrays:
        out[: len(array)] += array
    return out


def _ints(values: Any) -> Ints:
    return tuple(values.tolist())
