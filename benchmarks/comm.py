"""Our collectives beside MPI's own, between the ranks of this machine.

    python -m benchmarks.comm --ranks 2

all_to_all: `bytes` go from each rank to each other. `ours` is Comm.all_to_all with known sizes; `alltoallv`
and `ialltoallv` MPI's, the second polled with Test; `window` a shared-memory window of the host: each rank
writes its bytes, raises a flag, and reads its share of the others', without checks: what a window could win.
all_reduce: the sum of float32 arrays of so many bytes; `ours` in the fixed tree, `allreduce` MPI's. `busy`:
each rank also has a thread that computes without a pause. Microseconds, medians; the variants take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from benchmarks.harness import Report
from tesserec.sharding.comm import world
from tesserec.sharding.launch import in_ranks, launch
from tesserec.sharding.mpi import AWAKE, PAUSES

Bytes = npt.NDArray[np.uint8]
SIZES = (64, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
FLAG = 64  # bytes: a cache line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    if not in_ranks():
        raise SystemExit(launch(args.ranks, sys.argv[1:], ["-m", "benchmarks.comm"]))
    lines = [measure(busy, call, size) for busy in (False, True) for call in CALLS for size in SIZES]
    if world().rank == 0:
        with Report("comm") as report:
            for line in lines:
                report.add(line)


def measure(busy: bool, call: str, size: int) -> dict[str, Any]:
    """One line: the median microseconds of each variant of `call`."""
    variants = CALLS[call](size)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with computing(busy):
        for _ in range(20 if busy or size > 10_000 else 200):
            for name, run in variants.items():
                MPI.COMM_WORLD.Barrier()
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    microseconds = {name: round(statistics.median(taken) * 1e6, 1) for name, taken in seconds.items()}
    return {"call": call, "ranks": world().size, "busy": busy, "bytes": size, **microseconds}


@contextmanager
def computing(busy: bool) -> Iterator[None]:
    """Meanwhile another thread of this rank computes, if `busy`."""
    done, numbers = threading.Event(), np.ones(100_000)

    def compute() -> None:
        while not done.is_set():
            np.sqrt(numbers, out=numbers)

    thread = threading.Thread(target=compute)
    if busy:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if busy:
            thread.join()


def all_to_all(size: int) -> dict[str, Callable[[], Any]]:
    comm, mpi = world(), MPI.COMM_WORLD
    send, out = np.ones(size * comm.size, np.uint8), np.zeros(size * comm.size, np.uint8)
    counts = [size] * comm.size
    ends = [send, counts, MPI.BYTE], [out, counts, MPI.BYTE]
    window = Window(size)
    return {
        "ours": lambda: comm.all_to_all(send, counts, counts, out),
        "alltoallv": lambda: mpi.Alltoallv(*ends),
        "ialltoallv": lambda: poll(mpi.Ialltoallv(*ends)),
        "window": lambda: window.all_to_all(send, out),
    }


def all_reduce(size: int) -> dict[str, Callable[[], Any]]:
    array, total = np.zeros(size // 4, np.float32), np.zeros(size // 4, np.float32)
    return {
        "ours": lambda: world().all_reduce(array),
        "allreduce": lambda: MPI.COMM_WORLD.Allreduce(array, total),
    }


CALLS = {"all_to_all": all_to_all, "all_reduce": all_reduce}


def poll(request: Any) -> None:
    while not request.Test():
        pass


class Window:
    """Memory that all ranks see: of each rank, what it sends, and how many times it has written and read."""

    def __init__(self, size: int):
        self.rank, self.ranks, self.size, self.turn = world().rank, world().size, size, 0
        window = MPI.Win.Allocate_shared(2 * FLAG + size * self.ranks, comm=MPI.COMM_WORLD)
        parts = [np.asarray(window.Shared_query(rank)[0], np.uint8) for rank in range(self.ranks)]
        self.flags = [part[: 2 * FLAG].view(np.int64) for part in parts]
        self.sent = [part[2 * FLAG :].reshape(self.ranks, -1) for part in parts]
        parts[self.rank][:] = 0
        MPI.COMM_WORLD.Barrier()

    def all_to_all(self, send: Bytes, out: Bytes) -> None:
        self.turn += 1
        self.sent[self.rank][:] = send.reshape(self.ranks, -1)
        self.flags[self.rank][0] = self.turn
        for rank in range(self.ranks):
            self._await(rank, 0)
            out.reshape(self.ranks, -1)[rank] = self.sent[rank][self.rank]
        self.flags[self.rank][FLAG // 8] = self.turn
        for rank in range(self.ranks):  # the next turn writes
            self._await(rank, FLAG // 8)

    def _await(self, rank: int, flag: int) -> None:
        asleep = time.perf_counter() + AWAKE
        while self.flags[rank][flag] < self.turn:
            if time.perf_counter() > asleep:
                time.sleep(PAUSES[0])


if __name__ == "__main__":
    main()
