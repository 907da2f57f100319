"""Our side of `planner_steps`: a training run as `tesserec train` makes it, that works only in its turns.

    mpiexec -n RANKS python -m mpi4py -m benchmarks.ours.planned CONFIG [KEY=VALUE …]

Rank 0 hands every request on to the others, and answers. Between turns the run stands in `should_stop`, which
the loop asks after every step.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness import Line
from benchmarks.ours.sharded import handed_on
from tesserec.dataio.config import read_config
from tesserec.sharding.comm import Comm, LocalComm, world
from tesserec.sharding.launch import in_ranks
from tesserec.train.config import TrainConfig
from tesserec.train.loop import Trainer
from tesserec.train.measured import WARM

LEAD = 3  # steps of a turn that are not counted: batches for the first ones were read while nothing went on


class Turns:
    """Whether a run should stop: never, but it pauses when the steps of a turn are done."""

    def __init__(self, comm: Comm, asked: Iterator[Line]):
        self.comm, self.asked = comm, asked
        self.answers = open(os.devnull, "w") if comm.rank else os.fdopen(os.dup(1), "w")  # noqa: SIM115
        os.dup2(2, 1)
        self.trainer: Trainer
        self.stack = ExitStack()
        self.times: list[float] = []
        self.wanted = WARM  # before the first turn, in which kernels are compiled
        self.in_turn = False

    def __call__(self) -> bool:
        self.times.append(time.perf_counter())
        if len(self.times) > self.wanted:
            self._next_turn()
        return False

    def _next_turn(self) -> None:
        """Answer, and wait for the next turn, with the clocks of the run standing still."""
        with self.trainer.measuring.paused():
            if self.in_turn:
                took = [b - a for a, b in zip(self.times[LEAD:-1], self.times[LEAD + 1 :], strict=True)]
                self._answer({"seconds": sum(took) / len(took), "median": statistics.median(took)})
            for request in self.asked:
                if request["method"] == "steps":
                    self.times, self.wanted = [time.perf_counter()], LEAD + int(request["steps"])
                    self.in_turn = True
                    return
                self._answer(self._measured())
        raise SystemExit

    def _answer(self, line: Line) -> None:
        print(json.dumps(line), file=self.answers, flush=True)

    def _measured(self) -> Line:
        """What the run has measured of itself."""
        run = self.trainer.run
        self.trainer.measuring.save(run)
        found: Line = {} if self.comm.rank else json.loads(run.measured.read_text())
        return found


def main() -> None:
    comm = world() if in_ranks() else LocalComm()
    turns = Turns(comm, handed_on(comm.duplicate()))
    config = read_config(sys.argv[1], TrainConfig, sys.argv[2:]).anchored(Path("unnamed"))
    turns.trainer = Trainer(config, comm=comm, overwrite=True, should_stop=turns)
    turns.trainer.fit()


if __name__ == "__main__":
    main()
