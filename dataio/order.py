"""Which row stands where in an epoch. Pure arithmetic: no I/O, no state.

An epoch is one sequence of rows: the row groups in a random order, cut into one contiguous part per rank, and
inside a part every few row groups (a buffer) shuffled row by row. Batch k is rows [k·B, (k+1)·B) of a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows lo … hi-1 of one row group."""

    group: int
    lo: int
    hi: int

    @property
    def rows(self) -> int:
        return self.hi - self.lo


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """Pieces whose rows are shuffled together; the first row is row `start` of the epoch."""

    start: int
    pieces: list[Piece]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


def group_order(num_groups: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of range(num_groups), a function of (seed, epoch) alone: (G,).

    The two seed the generator as a sequence, so (1, 2) and (2, 1) differ.
    """
    return np.random.default_rng([seed, epoch]).permutation(num_groups)


def row_order(plan: BufferPlan, seed: tuple[int, int] | None) -> npt.NDArray[np.int32]:
    """The order in which a buffer's rows are seen, for `seed` = (seed, epoch), or as they lie: (rows,)."""
    order = np.arange(plan.rows, dtype=np.int32)
    if seed is not None:
        np.random.default_rng([*seed, plan.start + 1]).shuffle(order)
    return order


def batch_cuts(held: int, rows: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Where `rows` more rows are cut after `held` rows of an unfinished batch: (K + 1,), from 0 to rows."""
    cuts = np.arange(batch_size - held, rows, batch_size)
    return np.array([0, *cuts, rows], np.int64)


def rank_part(rows: int, *, rank: int, size: int) -> tuple[int, int]:
    """The rows [lo, hi) of the epoch that `rank` of `size` reads. Parts differ by one row at most."""
    return rows * rank // size, rows * (rank + 1) // size


def batch_count(rows: int, batch_size: int, *, size: int = 1, drop_last: bool = True) -> int:
    """Batches of an epoch, the same number on every rank, without the remainder when `drop_last`.

    Computed, not negotiated: a rank that took one more step than its peers would wait for them for ever.
    """
    return rows // size // batch_size if drop_last else -(-rows // (size * batch_size))


def cut_pieces(sizes: Sequence[int], order: Iterable[int], lo: int, hi: int) -> list[Piece]:
    """Rows [lo, hi) of the row groups put one after another in `order`; `sizes[g]` is the rows of group g."""
    pieces, start = [], 0
    for group in order:
        first, last = max(lo - start, 0), min(hi - start, sizes[group])
        if first < last:
            pieces.append(Piece(int(group), first, last))
        start += sizes[group]
    return pieces


def fill_buffers(pieces: Iterable[Piece], start: int, rows: int) -> list[BufferPlan]:
    """The pieces in runs of at least `rows` rows, the last run excepted; the first begins at row `start`."""
    buffers: list[BufferPlan] = []
    for piece in pieces:
        if not buffers or buffers[-1].rows >= rows:
            buffers.append(BufferPlan(start, []))
        buffers[-1].pieces.append(piece)
        start += piece.rows
    return buffers


def buffers_from(buffers: Sequence[BufferPlan], row: int) -> Sequence[BufferPlan]:
    """The buffers that hold row `row` of the epoch or a later one; the last buffer when there is none."""
    ended = sum(buffer.start + buffer.rows <= row for buffer in buffers)
    return buffers[min(ended, len(buffers) - 1) :]
