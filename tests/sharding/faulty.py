"""A program in whose tenth step one rank goes wrong: mpiexec … faulty.py KIND RANK TIMEOUT [FOLDER]."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tesserec.sharding.comm import Comm, world
from tesserec.sharding.launch import settle
from tesserec.sharding.watchdog import patience, progress, watch

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "crash": signal.SIGSEGV}


def go_wrong(kind: str) -> None:
    """What the rank does in its tenth step."""
    if kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])
    elif kind == "raise":
        raise ValueError("id 12 of feature 'country' is beyond the table")
    elif kind == "exit":
        sys.exit(3)
    elif kind == "exit0":
        sys.exit(0)
    elif kind == "quit":
        os._exit(7)
    elif kind == "loop":
        while True:
            pass
    elif kind == "barrier":
        world().barrier()
    elif kind == "slow":
        for _ in range(4):
            time.sleep(1)
            progress()
    elif kind == "patient":
        with patience("compiling"):
            time.sleep(4)


def steps(comm: Comm, kind: str, faulty: int) -> None:
    array = np.ones(100_000)
    for step in range(20):
        if step == 10 and comm.rank == faulty:
            print(f"now {time.time()}", flush=True)
            go_wrong(kind)
        comm.all_reduce(array)


def stop_at_a_signal(comm: Comm, folder: Path) -> int:
    """Work until any rank got a signal, and end in good order: -> its number."""
    seen: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: seen.append(number))
    (folder / f"rank {comm.rank} is up").touch()
    while True:
        last = np.array(max(seen, default=0))
        if comm.all_reduce(last, "max"):
            return int(last)
        time.sleep(0.01)


if __name__ == "__main__":
    settle()
    if sys.argv[1] == "signals":
        with watch(world()):
            got = stop_at_a_signal(world(), Path(sys.argv[4]))
        print(f"saved after {got}\n", end="", flush=True)  # in one piece: ranks share the pipe
        world().leave(128 + got)
    with watch(world(), timeout=float(sys.argv[3])):
        steps(world(), sys.argv[1], int(sys.argv[2]))
    sys.stdout.write("fine\n")  # in one piece: the ranks share a pipe
    sys.stdout.flush()
