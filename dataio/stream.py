"""Parquet to shuffled training batches: row groups decode on threads, kernels gather their rows into batches.

A chain of generators per stream: pieces of row groups → decoded buffers → batches and parts of batches →
whole batches; then the batches of a rank's streams side by side.
What is read when is decided beforehand, by the arithmetic of `tesserec.dataio.order`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.dataio.ahead import ahead
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import Dataset, DatasetInfo
from tesserec.dataio.gather import DecodedBuffer
from tesserec.dataio.order import (
    BufferPlan,
    Piece,
    Stream,
    batch_count,
    buffers_from,
    cut_pieces,
    fill_buffers,
    group_order,
    rank_streams,
    row_order,
)
from tesserec.dataio.reuse import Reuse
from tesserec.dataio.row_groups import DecodedRows, RowGroup, column_types, find_row_groups

BUFFER_ROWS = 262_144  # four row groups as `prepare` writes them; an id column of it fits a core's cache


def num_batches(
    dataset: Dataset, split: str, batch_size: int, *, drop_last: bool = True, streams: int = 1
) -> int:
    """Batches of one epoch, the same on every rank, whatever the number of ranks."""
    return batch_count(dataset.split(split).rows, batch_size, streams=streams, drop_last=drop_last)


def read_batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    skip: int = 0,
    drop_last: bool = True,
    prefetch: int = 2,
    rank: int = 0,
    size: int = 1,
    streams: int = 1,
    grain: int = 1,
    keep: bool = False,
    unseen: Collection[str] = (),
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Batch]:
    """One epoch of this rank's part of each batch of `batch_size` rows.

    The batches are a function of (seed, epoch, streams); the parts of rank 0, 1, … one after the other are
    the batch. Each rank decodes its streams: with as many streams as ranks nothing is decoded twice, with one
    stream every rank decodes all.

    shuffle:   else each stream comes in file order.
    skip:      batches passed over, mostly without reading them: (epoch, skip) resumes a run where it stopped.
    drop_last: leave out the rows after the last whole batch. Else the last batch is shorter, and a rank's
               part of it may be empty: all take the same number of steps.
    prefetch:  batches made ahead on a thread; 0: no threads at all.
    streams:   contiguous parts of the epoch that a batch takes evenly from. A divisor or multiple of `size`.
    grain:     streams begin at multiples of it.
    keep:      carry the `keep` columns along as `batch.kept`.
    unseen:    sparse features whose ids may be outside their tables: whoever looks them up has a policy.
    around:    entered while a batch is made, or rows are decoded, on the thread that does.

    A batch stays valid as long as it, or a view of its arrays, is held. The batches of one buffer share
    memory, which is used again when all are gone. Besides those, two to three buffers of BUFFER_ROWS rows
    (without `shuffle`: of one row group) are in memory for each of the rank's streams. Threads end when the
    iterator is exhausted, closed or dropped.
    Raises DataError: at once when the files do not fit their description, and on the way for what only
    decoding shows: a null, a float that is not finite, an id outside its table.
    """
    _check_arguments(batch_size=batch_size, seed=seed, epoch=epoch, skip=skip, rank=rank, size=size)
    groups = find_row_groups(dataset, split, keep=keep)
    sizes = [group.rows for group in groups]
    mine = rank_streams(sum(sizes), batch_size, streams=streams, rank=rank, size=size, grain=grain)
    steps = batch_count(sum(sizes), batch_size, streams=streams, drop_last=drop_last, grain=grain) - skip
    if steps <= 0:
        return iter(())
    order = group_order(len(groups), seed=seed, epoch=epoch) if shuffle else range(len(groups))
    watched = around if prefetch else nullcontext
    reader = _Reader(dataset.info, groups, (seed, epoch) if shuffle else None, keep, unseen, watched)
    batches = _side_by_side([reader.batches(stream, order, skip, steps, prefetch > 0) for stream in mine])
    return _prefetch(batches, prefetch, around) if prefetch else batches


def _check_arguments(*, batch_size: int, seed: int, epoch: int, skip: int, rank: int, size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: wanted at least 1, got {batch_size}")
    if min(seed, epoch, skip) < 0:
        raise ValueError(f"seed, epoch, skip: wanted 0 or more, got {seed}, {epoch}, {skip}")
    if not 0 <= rank < size:
        raise ValueError(f"rank: wanted 0 ≤ rank < size, got rank {rank} of size {size}")


@dataclass(frozen=True, slots=True)
class _Reader:
    """How streams become batches. seed: (seed, epoch), or None for file order."""

    info: DatasetInfo
    groups: Sequence[RowGroup]
    seed: tuple[int, int] | None
    keep: bool
    unseen: Collection[str]
    around: Callable[[], AbstractContextManager[Any]]

    def batches(
        self,
        stream: Stream,
        order: Sequence[int] | npt.NDArray[np.int64],
        skip: int,
        steps: int,
        threads: bool,
    ) -> Generator[Batch, None, None]:
        """`steps` batches of a stream after the first `skip`; order: of the row groups."""
        sizes = [group.rows for group in self.groups]
        pieces = cut_pieces(sizes, order, stream.lo, stream.hi) or [Piece(0, 0, 0)]
        plans = fill_buffers(pieces, stream.lo, BUFFER_ROWS if self.seed else 1)
        first = min(stream.lo + skip * stream.batch_size, stream.hi)
        buffers = self.load(buffers_from(plans, first), threads=threads)
        return _join(self.gather(buffers, stream, first), steps)

    def load(
        self, plans: Sequence[BufferPlan], *, threads: bool
    ) -> Generator[tuple[BufferPlan, list[DecodedRows]], None, None]:
        """Each buffer with its rows in memory, while the next one is being decoded."""
        reads = [partial(self.read, piece) for plan in plans for piece in plan.pieces]
        depth = max(len(plan.pieces) for plan in plans)
        workers = min(4, os.cpu_count() or 1)
        decoded = ahead(reads, workers=workers, depth=depth) if threads else (task() for task in reads)
        with closing(decoded):
            for plan in plans:
                yield plan, list(islice(decoded, len(plan.pieces)))

    def read(self, piece: Piece) -> DecodedRows:
        keep = self.info.keep if self.keep else ()
        with self.around():
            return self.groups[piece.group].read(piece.lo, piece.hi, column_types(self.info), keep)

    def gather(
        self, buffers: Generator[tuple[BufferPlan, list[DecodedRows]], None, None], stream: Stream, first: int
    ) -> Generator[tuple[Batch, bool], None, None]:
        """The batches of each buffer from row `first` on; one that spans buffers comes in parts.

        With each whether it ends there. A buffer without rows for us gives an empty part.
        """
        memory = Reuse()
        with closing(buffers):
            for plan, pieces in buffers:
                order = row_order(plan, self.seed)
                start, stop = max(first, plan.start), plan.start + plan.rows
                shares = list(stream.shares(start, stop)) or [(start, start, False)]
                rows = np.concatenate([order[lo - plan.start : hi - plan.start] for lo, hi, _ in shares])
                cuts = np.cumsum([0, *(hi - lo for lo, hi, _ in shares)])
                buffer = DecodedBuffer(pieces, rows, cuts, memory, self.unseen)
                ends = [ends for _, _, ends in shares]
                yield from zip(buffer.batches(self.info, keep=self.keep), ends, strict=True)


def _join(parts: Generator[tuple[Batch, bool], None, None], steps: int) -> Generator[Batch, None, None]:
    """`steps` batches from their parts, empty ones after the last that has rows."""
    held: list[Batch] = []
    with closing(parts):
        for part, ends in parts:
            if part.batch_size:
                held.append(part)
            if ends:
                yield Batch.concat(held)
                held, steps = [], steps - 1
                if steps == 0:
                    return
        for _ in range(steps):
            yield part.select(0, 0)


def _side_by_side(streams: Sequence[Generator[Batch, None, None]]) -> Generator[Batch, None, None]:
    """The batches of all streams, those of a step joined to one."""
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(closing(stream))
        for parts in zip(*streams, strict=True):
            yield Batch.concat([part for part in parts if part.batch_size] or parts[:1])


def _prefetch(
    batches: Generator[Batch, None, None], depth: int, around: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Batch]:
    """The batches, made at most `depth` ahead on one background thread."""

    def make() -> Batch | None:
        with around():
            return next(batches, None)

    with closing(batches), closing(ahead(repeat(make), workers=1, depth=depth)) as made:
        for batch in made:
            if batch is None:
                return
            yield batch
