"""What each rank does while a machine is calibrated.

    python -m mpi4py -m tesserec.train.calibrate_rank FOLDER

Rank 0 leaves what was found in FOLDER, as found.json, and says in `progress` how far it is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tesserec.autograd import num_threads, set_num_threads
from tesserec.embeddings.memory import available_memory
from tesserec.sharding.comm import Comm, world
from tesserec.sharding.launch import settle
from tesserec.sharding.planner import calibration, measure
from tesserec.sharding.planner.measure import Point
from tesserec.train.process_memory import process_bytes
from tesserec.train.reading_speed import reading, reading_prices
from tesserec.train.trial import trial

LEAST_MEMORY, MOST_MEMORY = 1 << 26, 1 << 30  # bytes of rows that a rank touches
SHARE = 4  # of the memory that is free, 1 / so much; the states take half as much again
MESSAGE_ROUNDS, MESSAGE_CALLS = 5, 12


class Told:
    """Says in a file how far it is."""

    def __init__(self, folder: Path, comm: Comm):
        self.path, self.comm, self.total, self.done = folder / "progress", comm, 0, 0

    def times(
        self, points: Mapping[Point, Any], rounds: int = measure.ROUNDS, calls: int = measure.CALLS
    ) -> dict[Point, float]:
        """What `measure.timed` finds."""
        running = measure.timed(points, self.comm, rounds, calls)
        while True:
            try:
                next(running)
            except StopIteration as end:
                found: dict[Point, float] = end.value
                return found
            self.done += 1
            if self.comm.rank == 0 and self.done % 20 == 0:
                self.path.write_text(f"{self.done} {max(self.total, self.done)}")


def main(folder: Path) -> None:
    """Measure, on all ranks at the same time."""
    comm = world()
    resident, told = process_bytes(comm), Told(folder, comm)
    messages, found = [_messages(told, comm)], list[dict[str, Any]]()
    room = (available_memory() or 1 << 33) // (SHARE * comm.size)
    memory = measure.Memory(max(LEAST_MEMORY, min(MOST_MEMORY, 1 << (room.bit_length() - 1))))
    threads = (1, num_threads()) if comm.size == 1 and num_threads() > 1 else (num_threads(),)
    with tempfile.TemporaryDirectory() as data:
        for n in threads:
            set_num_threads(n)
            points = calibration.points(memory) | reading(Path(data) / str(n))
            told.total = told.total or len(points) * measure.ROUNDS * len(threads)
            times = told.times(points)
            made = calibration.kernels(times, comm.size, n)
            prices = {**made.single, **reading_prices(times)}
            found.append(dataclasses.asdict(dataclasses.replace(made, single=prices)))
    messages.append(_messages(told, comm))
    del points, memory
    trial(folder, comm)
    if comm.rank == 0:
        fastest = {size: min(each[size] for each in messages) for size in messages[0]}
        text = json.dumps({"kernels": found, "messages": fastest, "process_bytes": resident})
        (folder / "found.json").write_text(text)
    comm.barrier()


def _messages(told: Told, comm: Comm) -> dict[int, float]:
    """{bytes: seconds of an all_to_all in which each rank sends so many}; nothing where there is one.

    To be measured twice, some time apart: other processes hit messages harder than kernels.
    """
    sizes = calibration.MESSAGES if comm.size > 1 else ()
    calls = {(size,): measure.Collective("all_to_all", size, comm) for size in sizes}
    times = told.times(calls, MESSAGE_ROUNDS, MESSAGE_CALLS)
    return {size * (comm.size - 1): times[size,] for size in sizes}


if __name__ == "__main__":
    settle()
    try:
        main(Path(sys.argv[1]))
    except KeyboardInterrupt:
        os._exit(130)
