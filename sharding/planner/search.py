"""The search for a plan: proposals, then moves that make the best of them better, until the budget is spent.

A budget is an amount of work (ranks looked at for a piece), so the same inputs give the same plan on any
machine. The clock only cuts: then the plan is the best so far, and `Found.stopped` says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.alternatives import alternatives_in
from tesserec.sharding.planner.candidates import Allow, Weigher
from tesserec.sharding.planner.constraints import Constraints
from tesserec.sharding.planner.estimate import CostModel, Estimate
from tesserec.sharding.planner.infeasible import InfeasibleError, WaysOut, check_possible, not_found
from tesserec.sharding.planner.partition import Cap, Draft, Snapshot, Space
from tesserec.sharding.planner.propose import Proposal, proposals, relaxed
from tesserec.sharding.planner.result import Alternative, SearchPart
from tesserec.sharding.planner.standing import add_standing, prefer_standing
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload

Stopped = Literal["done", "budget", "interrupted"]

_WORK_A_SECOND = 2_500_000  # that a slow core does
_AT_ONCE = 500_000  # work between two looks at the clock
_POLISHED = 4  # proposals that are made better before one of them is chosen
# of the cost, how much worse a plan may become at first: one for each round
_SLACKS = (0.02, 0.1, 0.3, 0.005, 0.05)
_CHUNKS = 8  # of a round
_PATIENCE = 12  # rounds without anything better, after which it is done
_ENOUGH = 1e-6  # of the cost: what counts as better


@dataclass(frozen=True)
class Budget:
    """work: ranks looked at; seconds: after which the clock cuts, if at all."""

    work: int = 10 * _WORK_A_SECOND
    seconds: float | None = None

    @classmethod
    def of(cls, seconds: float) -> Budget:
        """As much work as a slow core does in so many seconds, and no longer than that."""
        return cls(max(1, round(seconds * _WORK_A_SECOND)), seconds)


_A_LITTLE = Budget(2_000_000)  # for ways out: whether anything fits, and about how fast


@dataclass(frozen=True)
class Progress:
    """seconds: of a step of the best plan so far, inf before there is one; work: done, `of` the budget."""

    seconds: float
    work: int
    of: int
    proposer: str


@dataclass(frozen=True, eq=False)
class Found:
    """The best plan. seconds: that the search took; tried: plans looked at; proposer: who had the idea.

    best_of: {proposer: step seconds of its best plan, None if none fits}. bound_seconds: no plan is faster.
    """

    plan: ShardingPlan
    estimate: Estimate
    seconds: float
    tried: int
    proposer: str
    stopped: Stopped
    best_of: dict[str, float | None]
    bound_seconds: float | None
    weigher: Weigher = field(repr=False)
    draft: Draft = field(repr=False)

    def alternatives(self, table: str) -> list[Alternative]:
        """What else may be done with a table, all else kept: the chosen option first, then the fastest."""
        return alternatives_in(self.weigher, self.draft, table)

    def search_part(self) -> SearchPart:
        """For the document."""
        return SearchPart(
            seconds=self.seconds,
            tried=self.tried,
            proposer=self.proposer,
            stopped=self.stopped,
            best_of=dict(self.best_of),
            bound_seconds=self.bound_seconds,
        )


def search(
    workload: Workload,
    topology: Topology,
    constraints: Constraints | None = None,
    budget: Budget | None = None,
    *,
    fix: ShardingPlan | None = None,
    caps: Sequence[Cap] = (),
    allow: Allow | None = None,
    progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Found:
    """The fastest plan that was found, of those that fit.

    Slower tiers are looked at only where the fastest has no room, or a constraint names them.

    fix: a plan whose tables stay where they are; if the others do not fit then, the fewest bytes move.
    caps: more that a rank can hold only so much of. allow: which options may be used. Ctrl-C ends the search
    with the best plan so far. ConstraintsError; InfeasibleError where no plan fits.
    """
    budget, report = budget or Budget(), _Reporter(progress, should_stop)

    def retry(workload: Workload, topology: Topology, constraints: Constraints) -> float:
        found = search(workload, topology, constraints, _A_LITTLE, caps=caps, allow=allow)
        return found.estimate.step_seconds

    def searched(asked: Constraints) -> Found:
        weigher = Weigher(costs, asked, caps, allow)
        return _Searching(weigher, _space(weigher, fix), budget, report).found()

    costs, asked = CostModel(workload, topology), constraints or Constraints()
    fastest, *slower = topology.tier_names
    if slower and asked.default.tiers is None:
        with suppress(InfeasibleError):
            return searched(replace(asked, default=replace(asked.default, tiers=(fastest,))))
    try:
        return searched(asked)
    except InfeasibleError as error:
        error.ways = WaysOut(workload, topology, asked, retry)
        raise


def _space(weigher: Weigher, fix: ShardingPlan | None) -> Space:
    candidates = weigher.candidates()
    if fix is not None:
        candidates = add_standing(weigher, candidates, fix)
    space = Space(candidates, weigher.rules())
    check_possible(weigher, space)
    if fix is not None:
        prefer_standing(space)
    return space


class _Stop(Exception):
    """The clock or the user says that it is enough."""

    def __init__(self, why: Stopped):
        self.why: Stopped = why


@dataclass(frozen=True)
class _Reporter:
    progress: Callable[[Progress], None] | None
    should_stop: Callable[[], bool] | None

    def __call__(self, progress: Progress) -> None:
        if self.progress is not None:
            self.progress(progress)
        if self.should_stop is not None and self.should_stop():
            raise _Stop("interrupted")


@dataclass(frozen=True, eq=False)
class _Best:
    """A plan that was found. lacking: bytes too much."""

    lacking: float
    cost: float
    seconds: float
    proposer: str
    snapshot: Snapshot

    @property
    def key(self) -> tuple[float, float]:
        return self.lacking, self.cost


class _Searching:
    """One search."""

    def __init__(self, weigher: Weigher, space: Space, budget: Budget, report: _Reporter):
        self.weigher, self.space, self.budget, self.report = weigher, space, budget, report
        self.draft, self.tried = Draft(space, seed=1), 0
        self.draft.warm_up()
        self.started = time.monotonic()
        self.best: _Best | None = None
        self.best_of: dict[str, float | None] = {}
        self.bound: float | None = None
        self.order = np.argsort(-space.weights, kind="stable")

    def found(self) -> Found:
        """The best plan. InfeasibleError."""
        stopped = self._run()
        best = self.best
        if best is None or best.lacking:
            if best is not None:
                self.draft.restore(best.snapshot)
            raise not_found(self.weigher, self.draft if best else None)
        self.draft.restore(best.snapshot)
        plan = self.draft.plan([table.name for table in self.weigher.model.workload.tables])
        estimate = self.weigher.model.estimate(plan)
        return Found(
            plan,
            estimate,
            time.monotonic() - self.started,
            self.tried,
            best.proposer,
            stopped,
            self.best_of,
            None if self.bound is None else min(self.bound, estimate.step_seconds),
            self.weigher,
            self.draft,
        )

    def _run(self) -> Stopped:
        try:
            self._propose()
            self._improve()
        except _Stop as stop:
            return stop.why
        except KeyboardInterrupt:
            if self.best is None or self.best.lacking:
                raise
            return "interrupted"
        return "done"

    def _propose(self) -> None:
        """Build all proposals, and polish the best."""
        relaxation = relaxed(self.space)
        self.bound = relaxation.seconds
        made = [best for proposal in proposals(self.space, relaxation) if (best := self._built(proposal))]
        for best in sorted(made, key=lambda one: one.key)[:_POLISHED]:
            self.draft.restore(best.snapshot)
            self._polish(best.proposer)

    def _built(self, proposal: Proposal) -> _Best | None:
        order = self.order if proposal.order is None else proposal.order
        placed = self.draft.build(order, proposal.choice, proposal.weight, proposal.pack)
        self.best_of.setdefault(proposal.name, None)
        best = self._keep(proposal.name) if placed else None
        self._tell()  # the clock does not cut before each has had its turn
        return best

    def _keep(self, proposer: str) -> _Best:
        """Remember the draft if it is the best; count it."""
        draft = self.draft
        self.tried += 1
        found = _Best(draft.lacking, draft.cost, draft.seconds, proposer, draft.snapshot())
        if not found.lacking:
            before = self.best_of.get(proposer)
            self.best_of[proposer] = found.seconds if before is None else min(before, found.seconds)
        if self.best is None or found.key < self.best.key:
            self.best = found
        return found

    def _polish(self, proposer: str) -> None:
        """Table by table the best option, until nothing changes."""
        while True:
            before, at = self.draft.cost, 0
            while at < len(self.order):
                at += self.draft.better_options(self.order[at:], self.draft.work + _AT_ONCE)
                self._look()
            if self.draft.cost > before * (1 - 1e-4):
                break
        self._keep(proposer)

    def _improve(self) -> None:
        """Rounds of random moves from the best plan, each with less and less slack, and polished."""
        idle = 0
        for slack in self._slacks():
            if self.best is None or idle >= _PATIENCE or self._is_optimal():
                return
            before = self.best.key
            self.draft.restore(self.best.snapshot)
            self._wander(slack * self.draft.cost)
            self._polish("local search")
            gained = self.best.lacking < before[0] or self.best.cost < before[1] * (1 - _ENOUGH)
            idle = 0 if gained else idle + 1

    def _slacks(self) -> Iterator[float]:
        while True:
            yield from _SLACKS

    def _wander(self, slack: float) -> None:
        moves = 64
        for chunk in range(_CHUNKS):
            high, low = (slack * (1 - k / _CHUNKS) for k in (chunk, chunk + 1))
            before = self.draft.work
            self.draft.wander(moves, high, low)
            each = max(1.0, (self.draft.work - before) / moves)
            moves = max(64, round(_AT_ONCE / _CHUNKS / each))
            self._look()

    def _is_optimal(self) -> bool:
        best = self.best
        return (
            best is not None
            and not best.lacking
            and self.bound is not None
            and best.cost <= self.bound * 1.0005
        )

    def _tell(self) -> None:
        """How far it is."""
        best, of = self.best, self.budget.work
        seconds = best.seconds if best is not None and not best.lacking else math.inf
        proposer = "" if best is None else best.proposer
        self.report(Progress(seconds, min(self.draft.work, of), of, proposer))

    def _look(self) -> None:
        """Tell how far it is; stop if the budget is spent."""
        self._tell()
        fits = self.best is not None and not self.best.lacking
        if not fits and self.draft.work < 4 * self.budget.work:
            return  # a plan that fits is looked for a while longer
        if self.budget.seconds is not None and time.monotonic() - self.started > self.budget.seconds:
            raise _Stop("budget")
        if self.draft.work >= self.budget.work:
            raise _Stop("done")
