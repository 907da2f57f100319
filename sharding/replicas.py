"""Replica groups (2D parallelism): each has all tables, and trains them apart.

The ranks of a group share the tables out by one plan. Every few steps the groups average what they hold: rows
of tables and of their optimizer state. Only rows travel that some group has touched since the last time; the
others are equal. Ids and vectors never leave a group, which may be a host, or a few with fast links. Dense
gradients are summed over all ranks in every step. After TorchRec's `DMPCollection` (Zhang et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.kernels.rows import store_rows
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import RowOptimizer
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.sharding import timeline
from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.slabs import Slabs

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

AT_ONCE = 1 << 16  # rows that are averaged together: bounds the memory that it takes


@dataclass(frozen=True, slots=True)
class Replicas:
    """groups: of consecutive ranks, of one size; each holds the whole plan. sync_every: steps."""

    groups: int
    sync_every: int = 1

    def __post_init__(self) -> None:
        for name in ("groups", "sync_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Replicas: {name} is {getattr(self, name)}, wanted 1 or more")


class Groups:
    """The ranks of `comm` in groups. group: the channel of this rank's; number: which one that is.

    peers: a channel between the ranks that have this rank's place in each group, and hold the same rows.
    """

    def __init__(self, comm: Comm, replicas: Replicas):
        """Collective. ValueError unless all groups are of one size."""
        size, rest = divmod(comm.size, replicas.groups)
        if rest or not size:
            raise ValueError(f"{comm.size} ranks are not {replicas.groups} groups of one size")
        self.count, self.sync_every = replicas.groups, replicas.sync_every
        self.number = comm.rank // size
        self.group, self.peers = comm, cast(Comm, LocalComm())
        if self.count > 1:
            self.group, self.peers = comm.split(self.number), comm.split(comm.rank % size)
        self._touched: dict[Pool, npt.NDArray[np.bool_]] = {}

    def scaled(self, slabs: Slabs) -> Slabs:
        """The gradient that a group's tables learn from: as if its part of the batch were all of it."""
        if self.count == 1:
            return slabs
        return Slabs([(first, part * part.dtype.type(self.count)) for first, part in slabs.parts])

    def note(self, optimizer: RowOptimizer) -> None:
        """Remember the rows that a step of `optimizer` is about to change."""
        for pool in optimizer.pools.values() if self.count > 1 else ():
            if pool.grad is not None:
                self._mask(pool)[touched_rows(pool.grad)] = True

    def average(self, optimizer: RowOptimizer, *, now: bool = False) -> None:
        """Average rows and their state over the groups if it is time, or `now`. Collective."""
        if self.count > 1 and (now or optimizer.steps % self.sync_every == 0):
            with timeline.span("average_groups"):
                for name, pool in optimizer.pools.items():
                    self._average(pool, list(optimizer.state[name].values()))

    def _mask(self, pool: Pool) -> npt.NDArray[np.bool_]:
        """(R,) the rows that were touched since the last time."""
        if pool not in self._touched:
            self._touched[pool] = np.zeros(len(pool), np.bool_)
        return self._touched[pool]

    def _average(self, pool: Pool, state: list[Array]) -> None:
        mask = self._mask(pool)
        everyones, _ = self.peers.all_gather(np.flatnonzero(mask))
        mask[everyones] = True
        rows = np.flatnonzero(mask)
        mask[rows] = False
        for lo in range(0, len(rows), AT_ONCE):
            self._average_rows(pool, state, rows[lo : lo + AT_ONCE])

    def _average_rows(self, pool: Pool, state: list[Array], rows: Rows) -> None:
        values, stack = pool.values(rows), np.empty((len(rows), pool.shape[1]), pool.stored.dtype)
        held = [values, *(array[rows] for array in state)]
        mean = self.peers.all_reduce(np.concatenate([array.reshape(-1) for array in held])) / self.count
        parts = np.split(mean, np.cumsum([array.size for array in held])[:-1])
        store_rows(parts[0].reshape(values.shape), stack)
        pool.stored[rows] = stack
        for array, part in zip(state, parts[1:], strict=True):
            array[rows] = part.reshape(len(rows), *array.shape[1:])


def touched_rows(grad: RowGrad) -> Rows:
    """(U,) the rows that `grad` names, without summing it; row optimizers sort its ids likewise."""
    ids, ranges = (grad.entries.sorted >> np.uint64(32)).astype(np.int64), grad.entries.ranges
    firsts = np.repeat(ranges["first_row"], ranges["stop"] - ranges["start"])
    rows: Rows = ids + firsts
    return np.compress(np.diff(rows, prepend=-1) != 0, rows)
