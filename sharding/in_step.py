"""Batches in step: ranks whose data ends at different times stop, or go on, together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from tesserec.sharding.comm import Comm, PeerError

Batch = TypeVar("Batch")


def lockstep(comm: Comm, batches: Iterable[Batch], *, empty: Batch | None = None) -> Iterator[Batch]:
    """This rank's batches, as many on every rank: until the first rank has no more. Collective at each.

    empty: what a rank that has no more gets instead, until the last one has no more. An error of one rank's
    iterator is raised there, and as PeerError on the others. `comm` is used between batches, by the thread
    that asks for them.
    """
    source = iter(batches)
    while True:
        batch, error = _next(source)
        flags = comm.all_reduce(
            np.array([batch is None, batch is not None, error is not None], np.int64), "max"
        )
        some_ended, some_go_on, some_failed = flags.tolist()
        if error is not None:
            raise error
        if some_failed:
            raise PeerError(f"rank {comm.rank}: stops, because reading batches failed on another rank")
        if not some_go_on or (some_ended and empty is None):
            return
        yield batch if batch is not None else empty  # type: ignore[misc]


def _next(source: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """(the next batch, if there is one; what went wrong)."""
    try:
        return next(source, None), None
    except Exception as error:
        return None, error
