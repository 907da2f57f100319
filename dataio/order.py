"""Which row stands where in an epoch. Pure arithmetic: no I/O, no state.

An epoch is one sequence of rows: the row groups in a random order, cut into V contiguous streams, and inside
a stream every few row groups (a buffer) shuffled row by row. Batch k of B rows is rows [k·B/V, (k+1)·B/V) of
each stream, one stream after the other. W ranks share each batch, one after the other: so what a batch holds
depends on V, and never on W.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows lo … hi-1 of the epoch in batches of `batch_size`; of each batch, one rank's part of `parts`."""

    lo: int
    hi: int
    batch_size: int
    part: int = 0
    parts: int = 1

    def shares(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """(first, past the last, whether it ends there) of the part of each batch in rows start … stop-1.

        Parts of a batch differ by one row at most; of those without rows there is no word.
        """
        for first in range(start - (start - self.lo) % self.batch_size, stop, self.batch_size):
            rows = min(self.batch_size, self.hi - first)
            lo = first + rows * self.part // self.parts
            hi = first + rows * (self.part + 1) // self.parts
            if max(lo, start) < min(hi, stop):
                yield max(lo, start), min(hi, stop), hi <= stop


def stream_rows(rows: int, streams: int, *, grain: int = 1) -> list[tuple[int, int]]:
    """The rows [lo, hi) of the epoch in each stream: whole grains, and as evenly as these go."""
    grains = -(-rows // grain)
    ends = [min(rows, grains * v // streams * grain) for v in range(streams + 1)]
    return list(pairwise(ends))


def rank_streams(
    rows: int, batch_size: int, *, streams: int = 1, rank: int = 0, size: int = 1, grain: int = 1
) -> list[Stream]:
    """What `rank` of `size` reads: V/W whole streams, or a W/V-th of one stream's batches.

    ValueError where neither number divides the other, or `streams` not the batch size.
    """
    if batch_size % streams:
        raise ValueError(f"batch_size: {batch_size} rows cannot be taken evenly from {streams} streams")
    if max(streams, size) % min(streams, size):
        raise ValueError(f"streams: {streams} for {size} ranks: wanted one to be a multiple of the other")
    parts, whole = max(1, size // streams), max(1, streams // size)
    first = rank * streams // size
    mine = stream_rows(rows, streams, grain=grain)[first : first + whole]
    return [Stream(lo, hi, batch_size // streams, rank % parts, parts) for lo, hi in mine]


def batch_count(
    rows: int, batch_size: int, *, streams: int = 1, drop_last: bool = True, grain: int = 1
) -> int:
    """Batches of an epoch, the same number on every rank, without the remainder when `drop_last`.

    Computed, not negotiated: a rank that took one more step than its peers would wait for them for ever.
    """
    sizes = [hi - lo for lo, hi in stream_rows(rows, streams, grain=grain)]
    each = batch_size // streams
    return min(sizes) // each if drop_last else -(-max(sizes) // each)


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
