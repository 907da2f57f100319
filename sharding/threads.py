"""A world whose ranks are threads of one process, for tests and demonstrations: no launcher, same results."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np

from tesserec.sharding.comm import Array, Comm, PeerError, copy

Value = TypeVar("Value")


def run_ranks(size: int, body: Callable[[Comm], Value], hosts: Sequence[int] | None = None) -> list[Value]:
    """[body(comm) of each rank], each rank on a thread. hosts: (size,) the host of each rank, all 0 if None.

    If ranks fail, the first failure is raised again; ranks that wait for one that failed get a PeerError.
    """
    job = _Job(size)
    room = _Room(job, tuple(range(size)))
    places = tuple(hosts) if hosts is not None else (0,) * size
    values: dict[int, Value] = {}

    def run(rank: int) -> None:
        try:
            values[rank] = contextvars.copy_context().run(body, ThreadComm(room, rank, places))
            job.leave(rank)
        except BaseException as error:
            job.leave(rank, error)

    threads = [
        threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if job.error is not None:
        raise job.error
    return [values[rank] for rank in range(size)]


class _Job:
    """Who of `size` ranks has left, and why. Its lock guards all rooms of the job."""

    def __init__(self, size: int):
        self.changed = threading.Condition()
        self.left: set[int] = set()
        self.error: BaseException | None = None

    def leave(self, rank: int, error: BaseException | None = None) -> None:
        with self.changed:
            self.left.add(rank)
            if error is not None and (self.error is None or isinstance(self.error, PeerError)):
                self.error = error
            self.changed.notify_all()


class _Room:
    """Where the ranks of one channel meet: `meet` shows each what all of them brought."""

    def __init__(self, job: _Job, members: tuple[int, ...]):
        self.job, self.members = job, members  # members: ranks in the job
        self.brought: dict[int, Any] = {}
        self.shown: dict[int, Any] = {}
        self.meetings = 0

    def meet(self, rank: int, thing: Any) -> list[Any]:
        """What each rank brought, in rank order. PeerError if one cannot come any more."""
        job = self.job
        with job.changed:
            meeting = self.meetings
            self.brought[rank] = thing
            if len(self.brought) == len(self.members):
                self.shown, self.brought, self.meetings = self.brought, {}, meeting + 1
                job.changed.notify_all()
            while self.meetings == meeting:
                self._give_up_if_alone(rank)
                job.changed.wait()
            return [self.shown[member] for member in range(len(self.members))]

    def _give_up_if_alone(self, rank: int) -> None:
        gone = [m for i, m in enumerate(self.members) if m in self.job.left and i not in self.brought]
        if gone or self.job.error is not None:
            raise PeerError(f"rank {rank} waits for rank {gone[0] if gone else '?'}, which has left")


class ThreadComm(Comm):
    """One rank of `run_ranks`."""

    def __init__(self, room: _Room, rank: int, hosts: tuple[int, ...]):
        self._room, self.rank, self.hosts = room, rank, hosts
        self.size = len(room.members)

    def barrier(self) -> None:
        self._meet("barrier", None)

    def duplicate(self) -> Comm:
        rooms = self._meet("duplicate", _Room(self._room.job, self._room.members))
        return ThreadComm(rooms[0], self.rank, self.hosts)

    def split(self, color: int) -> Comm:
        colors = self._meet("split", color)
        group = [rank for rank in range(self.size) if colors[rank] == color]
        members = tuple(self._room.members[rank] for rank in group)
        rooms = self._meet("split", _Room(self._room.job, members))
        hosts = [self.hosts[rank] for rank in group]
        numbers = list(dict.fromkeys(hosts))
        return ThreadComm(
            rooms[group[0]], group.index(self.rank), tuple(numbers.index(host) for host in hosts)
        )

    def abort(self, reason: str) -> NoReturn:
        raise RuntimeError(reason)

    def _exchange(self, call: str, sources: list[Array], targets: list[Array]) -> None:
        every = self._meet(call, sources)
        for rank, theirs in enumerate(every):
            self._take(call, rank, theirs[self.rank], targets[rank])
        self._meet(call, None)  # sources are free again

    def _gather(self, call: str, source: Array, targets: list[Array]) -> None:
        for rank, theirs in enumerate(self._meet(call, source)):
            self._take(call, rank, theirs, targets[rank])
        self._meet(call, None)

    def _broadcast(self, flat: Array, root: int) -> None:
        copy(self._meet("broadcast", flat)[root], flat)
        self._meet("broadcast", None)

    def _take(self, call: str, rank: int, theirs: Array, mine: Array) -> None:
        if theirs.dtype != mine.dtype or theirs.shape != mine.shape:
            self._fail(
                call, f"rank {rank} sent {theirs.dtype} {theirs.shape}, awaited {mine.dtype} {mine.shape}"
            )
        if rank != self.rank:
            np.copyto(mine, theirs)

    def _meet(self, call: str, thing: Any) -> list[Any]:
        every = self._room.meet(self.rank, (call, thing))
        calls = [name for name, _ in every]
        if len(set(calls)) > 1:
            self._fail(
                call, f"the ranks called {calls}: all ranks must make the same calls in the same order"
            )
        return [thing for _, thing in every]
