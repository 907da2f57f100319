"""Ranks that are MPI processes. The only file that knows MPI.

Every operation is non-blocking and waited for by polling, with any MPI 3 or later that mpi4py runs on.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tesserec.sharding.comm import Array, Comm, CommError, PeerError, cut
from tesserec.sharding.watchdog import pulse, show

Bytes = npt.NDArray[np.uint8]

# No message is longer: MPI before version 4 counts in 32 bits. Bytes.
LONGEST = 1 << 30
# Gathered arrays go through MPI's own collective up to here, which needs fewer messages, and directly above:
# bytes of all ranks.
SMALL = 16 << 10
# A thread that waits polls for AWAKE, and then sleeps between polls, longer and longer; it is awake again
# after a poll of more than WORKED, which has moved bytes. Seconds. Yielding instead of sleeping costs a
# scheduler's slice each time where ranks share cores with computing threads (all_to_all of 100 kB, 2 ranks
# with a computing thread each on 2 busy cores: mean 12 ms, and 3 ms with this).
AWAKE, WORKED = 1e-4, 5e-5
PAUSES = (10e-6, 300e-6)
# What a rank wrote last is passed on by its launcher, which ends with the job: seconds that takes at most.
HEARD = 0.2
POLLS = 4  # MPI may need several to notice a message that is there

CALLS = ("all_to_all", "all_gather", "reduce_scatter", "all_reduce")
DTYPES: dict[int, str] = {np.dtype(char).num: np.dtype(char).name for char in "?bhilqBHILQefdgFDG"}
TAG_BYTES = 8


def mpi_world(announced: int) -> MpiComm:
    """All ranks of the job, which must be as many as its launcher announced."""
    comm = MpiComm(_mpi().COMM_WORLD.Dup())
    if comm.size != announced:
        raise CommError(
            f"the launcher started {announced} ranks, but MPI knows of {comm.size}: start them with the "
            "mpiexec of the MPI that mpi4py runs on (srun: with --mpi=pmi2 or --mpi=pmix)"
        )
    return comm


class MpiComm(Comm):
    """The ranks of an mpi4py communicator, which this object has for itself from now on.

    Messages carry in their tag what call, which one, and what dtype they belong to, so that ranks that
    disagree get an error and not each other's bytes.
    """

    def __init__(self, mpi: Any):
        self._mpi = mpi
        self.rank, self.size = mpi.Get_rank(), mpi.Get_size()
        self.hosts = _hosts(mpi)
        self._calls = 0
        self._statuses: list[Any] = []
        # each rank begins with its right neighbour, so that not all of them begin with rank 0
        self._others = [(self.rank + step) % self.size for step in range(1, self.size)]

    def barrier(self) -> None:
        self._wait("barrier", [self._mpi.Ibarrier()])

    def duplicate(self) -> Comm:
        _need_threads()
        return MpiComm(self._mpi.Dup())

    def split(self, color: int) -> Comm:
        return MpiComm(self._mpi.Split(color, self.rank))

    def abort(self, reason: str) -> NoReturn:
        show(reason)
        time.sleep(HEARD)
        _mpi().COMM_WORLD.Abort(1)
        os._exit(1)  # not reached

    def leave(self, status: int) -> NoReturn:
        """As in any world. After Finalize, `python -m mpi4py` does not abort all because of a status."""
        self.barrier()
        _mpi().Finalize()
        raise SystemExit(status)

    def mailbox(self) -> Mailbox:
        """A channel for notes between single ranks. Collective."""
        _need_threads()
        return Mailbox(self._mpi.Dup())

    def _exchange(self, call: str, sources: list[Array], targets: list[Array]) -> None:
        tag = self._next_tag(call, targets[0].dtype)
        awaited = [(rank, part) for rank in self._others for part in _messages(targets[rank])]
        requests = [self._mpi.Irecv(part, rank) for rank, part in awaited]
        for rank in self._others:
            requests += [self._mpi.Isend(part, rank, tag) for part in _messages(sources[rank])]
        statuses = self._wait(call, requests)
        for (rank, part), status in zip(awaited, statuses, strict=False):
            if status.tag != tag or status.Get_count() != len(part):
                self._disagree(call, tag, rank, status.tag, (len(part), status.Get_count()))

    def _gather(self, call: str, source: Array, targets: list[Array]) -> None:
        """Small arrays by MPI's own gather; the tag goes before the bytes of each rank."""
        if sum(part.nbytes for part in targets) > SMALL:
            self._exchange(call, [source] * self.size, targets)
            return
        tag = self._next_tag(call, source.dtype)
        sizes = [TAG_BYTES + part.nbytes for part in targets]
        message, whole = np.empty(sizes[self.rank], np.uint8), np.empty(sum(sizes), np.uint8)
        message[:TAG_BYTES].view(np.int64)[0] = tag
        message[TAG_BYTES:] = source.view(np.uint8)
        self._wait(call, [self._mpi.Iallgatherv(message, [whole, sizes])])
        for rank, part in enumerate(cut(whole, sizes)):
            got = int.from_bytes(part[:TAG_BYTES].tobytes(), sys.byteorder)
            if got != tag:
                self._disagree(call, tag, rank, got, (len(part), len(part)))
            targets[rank].view(np.uint8)[...] = part[TAG_BYTES:]

    def _broadcast(self, flat: Array, root: int) -> None:
        self._wait("broadcast", [self._mpi.Ibcast(part, root) for part in _messages(flat)])

    def _wait(self, call: str, requests: list[Any]) -> list[Any]:
        """The statuses of `requests`, when all are done."""
        MPI = _mpi()
        while len(self._statuses) < len(requests):
            self._statuses.append(MPI.Status())
        statuses = self._statuses[: len(requests)]
        try:
            with pulse.waiting(call):
                _poll(requests, statuses)
        except MPI.Exception as error:
            raise PeerError(f"rank {self.rank}: {call}: MPI says: {error}") from error
        return statuses

    def _next_tag(self, call: str, dtype: np.dtype[Any]) -> int:
        """What a message belongs to, in the 15 bits that every MPI's tags have."""
        self._calls += 1
        return CALLS.index(call) << 13 | self._calls % 256 << 5 | dtype.num % 32

    def _disagree(self, call: str, tag: int, rank: int, got: int, lengths: tuple[int, int]) -> NoReturn:
        self._fail(
            call,
            f"awaited {_tag_text(tag)}, {lengths[0]} bytes; rank {rank} sent {_tag_text(got)}, {lengths[1]} "
            "bytes: all ranks must make the same calls in the same order, with one dtype",
        )


class Mailbox:
    """Notes, small Python values, between single ranks, posted and taken without waiting."""

    def __init__(self, mpi: Any):
        self._mpi = mpi
        self._posted: dict[int, Any] = {}

    def post(self, rank: int, note: Any) -> None:
        """Send `note` to `rank`; it is dropped where the one before has not left yet."""
        before = self._posted.get(rank)
        if before is None or before.test()[0]:
            self._posted[rank] = self._mpi.isend(note, rank)

    def take(self) -> list[tuple[int, Any]]:
        """(rank, note) of all that have come since, those of a rank in their order."""
        taken, status, misses = [], _mpi().Status(), 0
        while misses < POLLS:
            message = self._mpi.improbe(status=status)
            if message is None:
                misses += 1
            else:
                taken.append((status.source, message.recv()))
        return taken

    def flush(self) -> None:
        """Wait until all that was posted has left."""
        for request in self._posted.values():
            request.wait()
        self._posted.clear()


def _poll(requests: list[Any], statuses: list[Any]) -> None:
    """Come back when all requests are done.

    Neither spins against ranks that share its core, nor keeps the interpreter from other threads.
    """
    test, pause, begun = _mpi().Request.Testall, PAUSES[0], time.perf_counter()
    before = begun
    while not test(requests, statuses):
        now = time.perf_counter()
        if now - before > WORKED:
            pause, begun = PAUSES[0], now
        elif now - begun > AWAKE:
            time.sleep(pause)
            pause = min(1.2 * pause, PAUSES[1])
            now = time.perf_counter()
        before = now


def _tag_text(tag: int) -> str:
    return f"{CALLS[tag >> 13 & 3]} (call {tag >> 5 & 255}) of {DTYPES.get(tag & 31, 'bytes')}"


def _messages(part: Array) -> list[Bytes]:
    """The bytes of `part` as messages of at most LONGEST; none if there are none."""
    flat = part.view(np.uint8)
    return [flat[start : start + LONGEST] for start in range(0, len(flat), LONGEST)]


def _hosts(mpi: Any) -> tuple[int, ...]:
    """Hosts are what shares memory according to MPI; numbered in the order of their first ranks."""
    inside = mpi.Split_type(_mpi().COMM_TYPE_SHARED)
    first = inside.bcast(mpi.Get_rank())
    inside.Free()
    firsts = mpi.allgather(first)
    return tuple(sorted(set(firsts)).index(first) for first in firsts)


def _need_threads() -> None:
    MPI = _mpi()
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise CommError("this MPI has no MPI_THREAD_MULTIPLE: channels for other threads need it")


@functools.cache
def _mpi() -> Any:
    from mpi4py import MPI

    return MPI
