"""Statistics of a column in one pass and bounded memory: how many distinct ids and how skewed, quantiles.

Past a limit both kinds go on with a sample chosen by hash: `IdCounter` of the keys, so that the counts of
those kept are exact (after Gibbons, "Distinct sampling", VLDB 2001), `NumberSketch` of the values. What is
estimated from a sample says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.dataio.columns import Keys, hash_integers
from tesserec.dataio.vocabulary import KeyTable

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_TOP = 256  # most frequent keys whose counts are kept whatever the sample


@dataclass(frozen=True, slots=True)
class IdStats:
    """distinct: estimated unless `exact`. top: (value, share of the ids) of the most frequent.

    zipf: exponent s of count ∝ rank^-s, fitted to the ranks in `counts`; None for fewer than four ids.
    counts: of the most frequent ids, falling.
    """

    distinct: int
    exact: bool
    top: tuple[tuple[str, float], ...]
    zipf: float | None
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NumberStats:
    """Of finite values. quantiles: at QUANTILES; from a sample of the rows unless `exact`."""

    mean: float
    deviation: float
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]
    exact: bool


class IdCounter:
    """How often each key comes."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit, self._mask, self._total = limit, 0, 0
        self._table, self._top = KeyTable(), np.empty(0, np.int64)

    def add(self, keys: Keys) -> None:
        """Count (n,) keys."""
        self._total += len(keys)
        self._table.count(keys[self._kept(keys)] if self._mask else keys)
        while len(self._table) > self._limit:
            self._thin()

    def stats(self, names: dict[int, str], *, shown: int = 3) -> IdStats:
        """names: key → text for keys that have one; others are shown as numbers."""
        keys, counts = self._table.entries()
        order = np.lexsort((keys, -counts.astype(np.int64)))
        sampled = int((~np.isin(keys, self._top)).sum()) if self._mask else len(keys)
        reliable = self._top.size if self._mask else len(keys)
        head = counts[order[: min(reliable, _TOP)]]
        top = [(names.get(int(keys[i]), str(keys[i])), float(counts[i] / self._total)) for i in order[:shown]]
        return IdStats(
            distinct=len(keys) + sampled * self._mask,
            exact=not self._mask,
            top=tuple(top),
            zipf=zipf_exponent(head),
            counts=tuple(head.tolist()),
        )

    def _kept(self, keys: Keys) -> npt.NDArray[np.bool_]:
        sampled = (hash_integers(keys, seed=1) & self._mask) == 0
        return np.asarray(sampled | np.isin(keys, self._top))

    def _thin(self) -> None:
        """Halve the sample; the keys most frequent so far stay whatever happens."""
        keys, counts = self._table.entries()
        if not self._mask:
            self._top = keys[np.argpartition(counts, -_TOP)[-_TOP:]]
        self._mask = 2 * self._mask + 1
        kept = self._kept(keys)
        self._table = KeyTable(int(kept.sum()))
        self._table.put(keys[kept], counts[kept])


class NumberSketch:
    """Moments of all values, quantiles of a sample of at most `limit` of them."""

    def __init__(self, limit: int = 1 << 18) -> None:
        self._limit, self._mask, self._seen = limit, 0, 0
        self._sample, self._hashes = np.empty(0), np.empty(0, np.int64)
        self._sums = np.zeros(2)
        self._range = (np.inf, -np.inf)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take (n,) finite values."""
        if not len(values):
            return
        wide = values.astype(np.float64)
        hashes = hash_integers(np.arange(self._seen, self._seen + len(wide)))
        self._seen += len(wide)
        self._sums += wide.sum(), np.square(wide).sum()
        self._range = min(self._range[0], wide.min()), max(self._range[1], wide.max())
        self._sample = np.concatenate([self._sample, wide])
        self._hashes = np.concatenate([self._hashes, hashes])
        self._thin()

    def stats(self) -> NumberStats | None:
        """None when no value came."""
        if not self._seen:
            return None
        mean, square = self._sums / self._seen
        quantiles = np.quantile(self._sample, QUANTILES).tolist()
        deviation = float(np.sqrt(max(square - mean * mean, 0.0)))
        least, largest = map(float, self._range)
        return NumberStats(float(mean), deviation, least, largest, tuple(quantiles), not self._mask)

    def _thin(self) -> None:
        while True:
            kept = (self._hashes & self._mask) == 0
            self._sample, self._hashes = self._sample[kept], self._hashes[kept]
            if len(self._sample) <= self._limit:
                return
            self._mask = 2 * self._mask + 1


def zipf_exponent(counts: npt.NDArray[Any]) -> float | None:
    """Falling counts → s of the least-squares line log count = a - s·log rank; None for fewer than four.

    Ranks are weighted by 1/rank, so that each octave of ranks counts alike.
    """
    if len(counts) < 4:
        return None
    ranks = np.arange(1, len(counts) + 1)
    slope, _ = np.polyfit(np.log(ranks), np.log(counts), 1, w=np.sqrt(1 / ranks))
    return float(-slope)
