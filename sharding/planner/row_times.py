"""Seconds of rows and of sizes, between those that were measured.

Lookups go over a row once for each of its blocks of 16, 8, 4, 2, 1 vectors of 16 numbers, and for a tail: see
`embeddings.kernels.lookup`. Far from the cache a row's lines are what counts, near it its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.grids import LINE, Curve

Numbers = npt.NDArray[np.float64]
Real = Any  # a number, or an array of them; all broadcast

DISTANCES: Numbers = np.exp2(np.arange(14.0, 41.0))  # bytes: the reuse distances that shares are given for
FAR = len(DISTANCES) - 1


class RowTimes:
    """Seconds of rows by bytes and reuse distance, from what uniform reads of rising working sets took.

    S(W) seconds of a row, in steady state: the distances of uniform reads are uniform in (0, W], so a read at
    distance d takes d/dW (W·S(W)), at W = d.
    """

    def __init__(self, curves: Mapping[int, Curve], scale: float, item_bytes: int = 4):
        """curves: by width, of rows of numbers of `item_bytes`."""
        # widths of less than a line are alike: the widest stands for them
        by_lines = {float(lines_of(item_bytes * w)): curves[w] for w in sorted(curves)}
        self.lines = np.array(list(by_lines))
        self.at = [scale * at_distances(curve) for curve in by_lines.values()]

    def seconds(self, row_bytes: Real, reuse: Any = None, least: Any = 0.0) -> Any:
        """(…,) of rows of (…,) bytes; reuse: (…, K), None for the farthest; least: in the cache."""
        lines = np.asarray(lines_of(row_bytes))
        if reuse is None:
            return np.maximum(between(lines, self.lines, [at[FAR] for at in self.at]), least)
        cost = np.maximum(between(lines[..., None], self.lines, list(self.at)), np.asarray(least)[..., None])
        return (cost * reuse).sum(axis=-1)


class BlockTimes:
    """Seconds of rows in the cache by width, as lookup kernels cut it.

    Between measured widths of like blocks: a pass for each block, its vectors, and the tail.
    """

    def __init__(self, seconds: Mapping[int, float], scale: float):
        self.widths = np.array(sorted(seconds), float)
        self.known = scale * np.array([seconds[int(w)] for w in self.widths])
        self.terms = np.linalg.lstsq(_blocks(self.widths), self.known, rcond=None)[0]
        self.left = self.known - _blocks(self.widths) @ self.terms

    def seconds(self, width: Real) -> Any:
        """The formula, and what it misses of the nearest measured widths."""
        width = np.asarray(width, float)
        found = _blocks(width) @ self.terms + np.interp(width, self.widths, self.left)
        return np.maximum(found, self.known.min())


def _blocks(width: Numbers) -> Numbers:
    """(…, 3): passes, vectors, whether there is a tail."""
    tail = (np.asarray(width) % 16 > 0).astype(float)
    return np.stack([passes_of(width), np.asarray(width, float) // 16, tail], axis=-1)


def passes_of(width: Real) -> Any:
    """How often a kernel goes over a row: once for each of its blocks, and its tail."""
    vectors = np.asarray(width).astype(int) // 16
    return vectors // 16 + sum((vectors >> k) & 1 for k in range(4)) + (np.asarray(width) % 16 > 0)


def lines_of(row_bytes: Real) -> Any:
    """Lines of memory that a row touches in the mean, one behind the other from the start of a line on."""
    size = np.maximum(np.asarray(row_bytes, float), 1.0)
    whole = np.rint(size).astype(int)
    return (size + LINE - np.gcd(whole, LINE)) / LINE


def on_curve(curve: Curve, size: Real) -> Any:
    """Seconds at `size`, between the measured ones; beyond them as the last two rise."""
    sizes, seconds = np.array(curve.sizes), np.array(curve.seconds)
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    return np.interp(size, sizes, seconds) + np.maximum(np.asarray(size) - sizes[-1], 0) * slope


def at_distances(curve: Curve) -> Numbers:
    """(K,) seconds of a row by reuse distance; they never fall."""
    sizes, seconds = np.array(curve.sizes), np.array(curve.seconds)
    steps = np.diff(sizes * seconds) / np.diff(sizes)  # of distances between two sizes
    rising = np.maximum.accumulate(np.concatenate([seconds[:1], steps]))
    middle = np.concatenate([sizes[:1], np.sqrt(sizes[:-1] * sizes[1:])])
    found: Numbers = np.interp(np.log2(DISTANCES), np.log2(middle), rising)
    return found


def between(at: Any, places: Numbers, values: Any) -> Any:
    """Linear between the nearest of `places`, and beyond the last; below the first its value."""
    high = np.clip(np.searchsorted(places, at), 1, len(places) - 1)
    share = np.maximum((at - places[high - 1]) / (places[high] - places[high - 1]), 0.0)
    stacked = np.stack(np.broadcast_arrays(*values)) if np.ndim(values[0]) else np.array(values)
    return _picked(stacked, high - 1) * (1 - share) + _picked(stacked, high) * share


def _picked(stacked: Numbers, which: Any) -> Any:
    """stacked[which], where `which` has its own axes, or shares the others of `stacked`."""
    if stacked.ndim == 1 or np.ndim(which) == 0:
        return stacked[which]
    if which.shape[-1] == 1 and stacked.shape[1:] != which.shape:
        return stacked[which[..., 0]]
    return np.take_along_axis(stacked, np.broadcast_to(which, stacked.shape[1:])[None], axis=0)[0]


def log_sizes(curve: Curve) -> Numbers:
    sizes: Numbers = np.log2(np.maximum(np.array(curve.sizes), 1.0))
    return sizes
