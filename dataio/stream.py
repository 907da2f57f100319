"""Parquet to shuffled training batches: row groups decode on threads, kernels gather their rows into batches.

A chain of generators: pieces of row groups → decoded buffers → batches and parts of batches → whole batches.
What is read when is decided beforehand, by the arithmetic of `tesserec.dataio.order`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat

from tesserec.dataio.ahead import ahead
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import DataError, Dataset, DatasetInfo
from tesserec.dataio.gather import DecodedBuffer
from tesserec.dataio.order import (
    BufferPlan,
    Piece,
    batch_count,
    batch_cuts,
    buffers_from,
    cut_pieces,
    fill_buffers,
    group_order,
    rank_part,
    row_order,
)
from tesserec.dataio.reuse import Reuse
from tesserec.dataio.row_groups import DecodedRows, RowGroup, column_types, find_row_groups

BUFFER_ROWS = 262_144  # four row groups as `prepare` writes them; an id column of it fits a core's cache


def num_batches(
    dataset: Dataset, split: str, batch_size: int, *, drop_last: bool = True, size: int = 1
) -> int:
    """Batches of one epoch, the same on each of `size` ranks."""
    return batch_count(dataset.split(split).rows, batch_size, size=size, drop_last=drop_last)


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
    keep: bool = False,
    unseen: Collection[str] = (),
) -> Iterator[Batch]:
    """One epoch of this rank's batches of `batch_size` rows, in an order that is a function of (seed, epoch).

    shuffle:   else rows come in file order, one contiguous part per rank.
    skip:      batches passed over, mostly without reading them: (epoch, skip) resumes a run where it stopped.
    drop_last: leave out the rows after the last whole batch. Else the last batch is shorter; with several
               ranks it may be empty, so that all take the same number of steps.
    prefetch:  batches made ahead on a thread; 0: no threads at all.
    keep:      carry the `keep` columns along as `batch.kept`.
    unseen:    sparse features whose ids may be outside their tables: whoever looks them up has a policy.

    A batch stays valid as long as it, or a view of its arrays, is held. The batches of one buffer share
    memory, which is used again when all are gone. Besides those, two to three buffers of BUFFER_ROWS rows
    (without `shuffle`: of one row group) are in memory. Threads end when the iterator is exhausted, closed or
    dropped.
    Raises DataError: at once when the files do not fit their description, and on the way for what only
    decoding shows: a null, a float that is not finite, an id outside its table.
    """
    _check_arguments(batch_size=batch_size, seed=seed, epoch=epoch, skip=skip, rank=rank, size=size)
    groups = find_row_groups(dataset, split, keep=keep)
    sizes = [group.rows for group in groups]
    steps = batch_count(sum(sizes), batch_size, size=size, drop_last=drop_last) - skip
    if steps <= 0:
        return iter(())
    if sum(sizes) < size:
        raise DataError(f"{dataset.path}: split {split!r} has {sum(sizes)} rows, fewer than the {size} ranks")
    order = group_order(len(groups), seed=seed, epoch=epoch) if shuffle else range(len(groups))
    lo, hi = rank_part(sum(sizes), rank=rank, size=size)
    first = min(lo + skip * batch_size, hi)
    plans = fill_buffers(cut_pieces(sizes, order, lo, hi), lo, BUFFER_ROWS if shuffle else 1)
    reader = _Reader(dataset.info, groups, batch_size, (seed, epoch) if shuffle else None, keep, unseen)
    buffers = reader.load(buffers_from(plans, first), threads=prefetch > 0)
    batches = _join(reader.gather(buffers, first), batch_size, steps)
    return _prefetch(batches, prefetch) if prefetch else batches


def _check_arguments(*, batch_size: int, seed: int, epoch: int, skip: int, rank: int, size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: wanted at least 1, got {batch_size}")
    if min(seed, epoch, skip) < 0:
        raise ValueError(f"seed, epoch, skip: wanted 0 or more, got {seed}, {epoch}, {skip}")
    if not 0 <= rank < size:
        raise ValueError(f"rank: wanted 0 ≤ rank < size, got rank {rank} of size {size}")


@dataclass(frozen=True, slots=True)
class _Reader:
    """How planned buffers become batches. seed: (seed, epoch), or None for file order."""

    info: DatasetInfo
    groups: Sequence[RowGroup]
    batch_size: int
    seed: tuple[int, int] | None
    keep: bool
    unseen: Collection[str]

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
        return self.groups[piece.group].read(piece.lo, piece.hi, column_types(self.info), keep)

    def gather(
        self, buffers: Generator[tuple[BufferPlan, list[DecodedRows]], None, None], first: int
    ) -> Generator[Batch, None, None]:
        """The batches of each buffer from row `first` on; a batch that spans buffers comes in parts."""
        held, memory = 0, Reuse()
        with closing(buffers):
            for plan, pieces in buffers:
                order = row_order(plan, self.seed)[max(first - plan.start, 0) :]
                cuts = batch_cuts(held, len(order), self.batch_size)
                buffer = DecodedBuffer(pieces, order, cuts, memory, self.unseen)
                held = (held + len(order)) % self.batch_size
                yield from buffer.batches(self.info, keep=self.keep)


def _join(parts: Generator[Batch, None, None], batch_size: int, steps: int) -> Generator[Batch, None, None]:
    """`steps` batches of `batch_size` rows from parts that end where a batch does; the last may lack rows."""
    held: list[Batch] = []
    with closing(parts):
        for part in parts:
            held.append(part)
            if sum(part.batch_size for part in held) == batch_size:
                yield Batch.concat(held)
                held, steps = [], steps - 1
                if steps == 0:
                    return
        yield Batch.concat(held) if held else part.select(0, 0)


def _prefetch(batches: Generator[Batch, None, None], depth: int) -> Iterator[Batch]:
    """The batches, made at most `depth` ahead on one background thread."""
    tasks = repeat(partial(next, batches, None))
    with closing(batches), closing(ahead(tasks, workers=1, depth=depth)) as made:
        for batch in made:
            if batch is None:
                return
            yield batch
