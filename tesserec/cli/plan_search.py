"""The search for a plan as a command runs it: a bar under its budget, and Ctrl-C for the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from tesserec.cli.console import console, progress_bar
from tesserec.sharding.launch import handling_signals

if TYPE_CHECKING:
    from tesserec.sharding.plan import ShardingPlan
    from tesserec.sharding.planner.estimate import Estimate
    from tesserec.sharding.planner.search import Found, Progress
    from tesserec.sharding.planner.topology import Topology
    from tesserec.sharding.planner.whatif import Planner
    from tesserec.sharding.planner.workload import Workload
    from tesserec.train.plan_case import Case


def searched(case: Case, seconds: float, fix: ShardingPlan | None = None) -> Found:
    """The best plan found in about so many seconds. InfeasibleError, ConstraintsError."""
    from tesserec.sharding.planner.search import Budget, search

    with progress_bar("search", 100, "%") as update, _noticing_signals() as asked:
        some = False  # whether there is a plan to take

        def progress(now: Progress) -> None:
            nonlocal some
            some = math.isfinite(now.seconds)
            best = "" if math.isinf(now.seconds) else f"step {1e3 * now.seconds:,.3g} ms, by {now.proposer}"
            update(round(100 * now.work / now.of), best)

        update(0, "the first search of a new machine compiles kernels")
        _compile_kernels()
        return search(
            case.workload,
            case.topology,
            case.constraints,
            Budget.of(seconds),
            fix=fix,
            progress=progress,
            should_stop=lambda: some and asked(),
        )


def planner(case: Case, seconds: float) -> Planner:
    """Who makes plans for other workloads and topologies, each in about so many seconds."""
    from tesserec.sharding.planner.search import Budget, search

    def make(workload: Workload, topology: Topology) -> Estimate:
        return search(workload, topology, case.constraints, Budget.of(seconds)).estimate

    return make


def _compile_kernels() -> None:
    """The least search that there is: the budget is not for compiling, nor for loading what was compiled."""
    from tesserec.sharding.planner.search import Budget, search
    from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
    from tesserec.sharding.planner.workload import TableEntry, WorkloadFile

    device = Device("gpu", (Tier("memory", 1e9, 1e9),), 1e9)
    topology = Topology("two", {"any": device}, (Host(2, "any", Link(1e-5, 1e9)),))
    search(WorkloadFile(2, [TableEntry("a", 9, 4)]).workload(), topology, None, Budget(1))


@contextmanager
def _noticing_signals() -> Iterator[Callable[[], bool]]:
    """Yields whether SIGINT or SIGTERM has come; the second one leaves at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise SystemExit(128 + number)
        seen.append(number)
        console.print("Taking the best plan so far. Once more to leave at once, without.")

    with handling_signals(note):
        yield lambda: bool(seen)
