"""From counted rows to a frequency curve: about a hundred classes of rows of like frequency.

Where the frequent rows lie first, as in a vocabulary sorted by count, classes are spans of rows and their
shares are what was counted. Where they are strewn, as hashes are, classes are of rank, and the ranks of
rarely read rows are mostly luck: a row read once in a million may be one of many. So how many rows came 0, 1,
2, … times is explained by a mixture of Poisson distributions, fitted by EM (Simar, "Maximum likelihood
estimation of a compound Poisson process", 1976); rows never read have their part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.dataio.row_counts import BOUNDS, RowSketch

Floats = npt.NDArray[np.float64]

_SINGLES = 16
_FEW = 32  # spans with fewer reads are joined to their like
_LUCK = 48  # counts above it are taken as they are: luck changes them by a seventh or less
_ATOMS = 64
_ROUNDS = 2000


@dataclass(frozen=True, slots=True)
class Curve:
    """counts: rows of each class; shares: of all ids that each gets.

    ordered: the classes lie one after the other from row 0; else they are strewn, and fall.
    """

    ordered: bool
    counts: tuple[float, ...]
    shares: tuple[float, ...]

    def hottest(self, rows: Any) -> Any:
        """Share of the ids that go to the `rows` most read rows."""
        counts, shares = np.array(self.counts), np.array(self.shares)
        order = np.argsort(-shares / counts, kind="stable")
        return np.interp(rows, _sums(counts[order]), _sums(shares[order]))


def curve_of(sketch: RowSketch, rows: int) -> Curve:
    """The curve of a table of `rows` rows. Without any reads: all rows alike."""
    if not sum(sketch.spans):
        return Curve(False, (float(rows),), (1.0,))
    ordered, ranked = _by_row(sketch, rows), _by_rank(sketch, rows)
    if rows <= _SINGLES:  # each row is a class
        return ordered
    return ordered if _follows(ordered, ranked, rows) else ranked


def _follows(ordered: Curve, ranked: Curve, rows: int) -> bool:
    """Whether the first rows get more than half of what the hottest rows get above an even share.

    Averaged over the first half, quarter, eighth, … of the rows.
    """
    some = rows / 2 ** np.arange(1, max(2, int(np.log2(rows)) + 1))
    first = np.interp(some, _sums(np.array(ordered.counts)), _sums(np.array(ordered.shares)))
    return bool((first - some / rows).mean() > 0.5 * max((ranked.hottest(some) - some / rows).mean(), 0.01))


def _by_row(sketch: RowSketch, rows: int) -> Curve:
    """Spans of rows with the share that each got; neighbours that were hardly read are one."""
    edges = np.append(BOUNDS[: np.searchsorted(BOUNDS, rows)], rows)
    reads = np.zeros(len(edges) - 1)
    reads[: len(sketch.spans)] = sketch.spans
    groups = np.array(_joined(reads))
    counts, shares = np.bincount(groups, np.diff(edges)), np.bincount(groups, reads / reads.sum())
    return Curve(True, tuple(counts.tolist()), tuple(shares.tolist()))


def _joined(reads: Floats) -> list[int]:
    """The number of its group for each span: spans with few reads join until they have enough."""
    groups, group, held = [], -1, float("inf")
    for count in reads:
        if count >= _FEW or held >= _FEW:
            group, held = group + 1, 0.0
        held += count
        groups.append(group)
    return groups


def _by_rank(sketch: RowSketch, rows: int) -> Curve:
    """Classes of rank: rows read often as counted, the others as the mixture explains them."""
    listed = np.array(sketch.hot_counts, np.float64)
    listed, few = listed[listed > _LUCK], listed[listed <= _LUCK]
    sampled, weight = _unlisted(sketch)
    often = sampled[sampled > _LUCK]
    cells = _cells(few) + weight * _cells(sampled)
    cells[0] = max(rows - len(listed) - len(often) * weight - cells.sum(), 0.0)
    head = _grouped(listed, 1.0, 0)
    tail = np.concatenate([_grouped(often, weight, len(listed)), _mixture(cells)], 1)
    missing = np.array([rows, sum(sketch.spans)]) - head.sum(1)  # a sample meets it nearly
    tail *= (np.maximum(missing, 0.0) / np.maximum(tail.sum(1), 1e-300))[:, None]
    counts, reads = np.concatenate([head, tail[:, tail[0] > 1e-9 * rows]], 1)
    order = np.argsort(-reads / counts, kind="stable")
    return Curve(False, tuple(counts[order].tolist()), tuple((reads / reads.sum())[order].tolist()))


def _unlisted(sketch: RowSketch) -> tuple[Floats, float]:
    """How often the sampled rows were read that are not among the hot, falling; how many each stands for."""
    listed = set(sketch.hot)
    counts = [n for row, n in zip(sketch.sample, sketch.sample_counts, strict=True) if row not in listed]
    weight = (sketch.distinct - len(sketch.hot)) / max(len(counts), 1)
    return -np.sort(-np.array(counts, np.float64)), max(weight, 1.0)


def _cells(reads: Floats) -> Floats:
    """(_LUCK + 1,): how many rows were read 0, 1, … times."""
    few = reads[reads <= _LUCK].astype(np.int64)
    return np.bincount(few, minlength=_LUCK + 1).astype(np.float64)


def _grouped(reads: Floats, weight: float, first: int) -> Floats:
    """(2, S): rows and reads of classes of rank; falling `reads` of `weight` rows each, from rank `first`."""
    ranks = first + weight * np.arange(len(reads))
    _, groups = np.unique(np.searchsorted(BOUNDS, ranks, side="right"), return_inverse=True)
    return weight * np.array([np.bincount(groups), np.bincount(groups, reads)])


def _mixture(cells: Floats) -> Floats:
    """cells[c]: rows read c times → (2, S): rows and reads of classes, falling, that explain them best.

    Only counts up to the last cell are seen, so a class is weighed by how it looks below that.
    """
    rates = np.concatenate([[0.0], np.geomspace(1e-3, 1.5 * _LUCK, _ATOMS)])
    number = np.arange(len(cells))
    logs = np.cumsum(np.log(np.maximum(number, 1)))
    chances = np.exp(number[:, None] * np.log(np.maximum(rates, 1e-300)) - rates - logs[:, None])
    chances[:, 0] = number == 0
    chances /= chances.sum(0)
    weights = np.full(len(rates), cells.sum() / len(rates))
    for _ in range(_ROUNDS):
        weights *= chances.T @ (cells / np.maximum(chances @ weights, 1e-300))
    return np.array([weights, weights * rates])[:, ::-1]


def _sums(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])
