"""What ranks tell each other besides tensors: Python values and errors, to and from rank 0."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from tesserec.sharding.comm import Comm

T = TypeVar("T")


def to_first_rank(comm: Comm, value: T) -> list[T]:
    """The values of all ranks, in rank order, on rank 0, whose own is not copied; [] on the others.

    Collective. Values may be large: nothing but rank 0 has to hold them all.
    """
    if comm.size == 1:
        return [value]
    sent = b"" if comm.rank == 0 else pickle.dumps(value, protocol=5)
    counts = [len(sent), *[0] * (comm.size - 1)]
    received, sizes = comm.all_to_all(np.frombuffer(sent, np.uint8), counts)
    if comm.rank:
        return []
    ends = np.cumsum(sizes)
    return [value, *(pickle.loads(part.data) for part in np.split(received, ends)[1 : comm.size])]


def all_numbers(comm: Comm, mine: Sequence[float]) -> list[list[float]]:
    """The numbers of each rank, in rank order; each has as many. Collective."""
    found, _ = comm.all_gather(np.array(mine, np.float64), [len(mine)] * comm.size)
    numbers: list[list[float]] = found.reshape(comm.size, -1).tolist()
    return numbers


def on_first_rank(comm: Comm, call: Callable[[], T]) -> T:
    """What `call()` returns on rank 0, on all ranks; what it raises there, all raise. Collective."""
    result: T | None = None
    error: Exception | None = None
    if comm.rank == 0:
        try:
            result = call()
        except Exception as raised:
            error = raised
    found, failed = from_first_rank(comm, (result, error))
    if failed is not None:
        raise failed
    return found  # type: ignore[return-value]  # there is a result where there is no error


def from_first_rank(comm: Comm, value: T) -> T:
    """Rank 0's small value, on all ranks. Collective."""
    values: list[Any] = comm.gather_objects(value if comm.rank == 0 else None)
    found: T = values[0]
    return found
