"""Our planner beside TorchRec's `EmbeddingShardingPlanner`: both plans, each by both cost models.

    python -m benchmarks.planner_torchrec --peer-python /path/to/peer/.venv/bin/python

Nothing is trained. The cases (`benchmarks.planner_cases`) have 10 to 1,000 tables on 8 to 128 GPUs, whose
memory they fill to 40 or 85 %. Both planners get the same tables, the machine that TorchRec takes for
granted, and 85 % of its memory. TorchRec's runs with its own settings, and stops to propose after `LIMIT`
seconds; where that yields no plan, its other proposers have their turns (`dynamic`, `uniform`).

Ours may use what TorchRec has a word for, and nothing else: whole tables, equal columns, rows over the
ranks of a host or over all, replicas on all; no uneven rows, no hot rows, no rows over some ranks. It makes
a step short by our cost model, and keeps each device's work by TorchRec's estimators within 1.05 of the
busiest one's of TorchRec's plan: that is one more number of which pieces have some and ranks have room, a
`Cap` of the search, beside memory. `free`: what it finds without.

`by_ours`: ours / theirs, of a step's time by our cost model; `by_theirs`: of the busiest device's work by
TorchRec's estimators. Below 1, our plan is the better one. `fits`: in memory, by whose count.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np

from benchmarks.harness import Line, Report, Side, arguments
from benchmarks.planner_cases import MACHINE, PER_HOST, RESERVE, SAMPLES, Case, cases, ours, theirs
from tesserec.sharding.placement import Kind
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.constraints import Constraints, ParameterConstraints
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.infeasible import InfeasibleError
from tesserec.sharding.planner.options import ShardingOption
from tesserec.sharding.planner.partition import Cap, Numbers
from tesserec.sharding.planner.search import Budget, search

KINDS: tuple[Kind, ...] = (
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
)
PROPOSERS = ("default", "dynamic", "uniform")
LIMIT = 100  # seconds after which theirs proposes no more
BUDGET = Budget(100_000_000)  # of work: a slow core does it in 20 s
SLACK = 1.05
NO_LIMIT = 1e3  # seconds


def main() -> None:
    known = dict(cases())
    args = arguments(__doc__, cases=list(known))
    with Report("planner_torchrec") as report, ExitStack() as stack:
        peer = stack.enter_context(Side(args.peer_python, "benchmarks.peers.planner"))
        for name in args.cases:
            report.add({"case": name, **compare(known[name], peer)})
        for ratio in ("by_ours", "by_theirs"):
            report.summarise(ratio)


def compare(case: Case, peer: Side) -> Line:
    """Both planners on one case."""
    machine = {"machine": MACHINE, "ranks": case.ranks, "per_host": PER_HOST}
    peer("case", tables=case.tables, batch=SAMPLES, reserve=RESERVE, **machine)
    line, their_plan = planned_by(peer)
    court = Court(case, peer)
    if their_plan is None:
        seconds, plan = court.plan(NO_LIMIT)
        return line | {"ours_s": seconds} | told("ours", court.score(theirs(plan)))
    their = court.score(their_plan)
    seconds, plan = court.plan(NO_LIMIT)
    mine = free = court.score(theirs(plan))
    with suppress(InfeasibleError):  # then it counts as it is, whatever TorchRec makes of it
        seconds, plan = court.plan(SLACK * their.by_theirs)
        mine = court.score(theirs(plan))
    line |= {
        "ours_s": seconds,
        "by_ours": mine.by_ours / their.by_ours,
        "by_theirs": mine.by_theirs / their.by_theirs,
    }
    line |= {"free_by_ours": free.by_ours / their.by_ours, "free_by_theirs": free.by_theirs / their.by_theirs}
    rounded = {name: round(x, 3) if isinstance(x, float) else x for name, x in line.items()}
    return rounded | told("theirs", their) | told("ours", mine)


def planned_by(peer: Side) -> tuple[Line, Line | None]:
    """The first of TorchRec's proposers that yields a plan, and seconds of all that were tried; the plan."""
    seconds, errors = 0.0, []
    for proposer in PROPOSERS:
        found = peer("plan", proposer=proposer, limit=LIMIT)
        seconds += found["seconds"]
        if "plan" in found:
            return {"theirs_s": seconds, "theirs": proposer}, found["plan"]
        errors.append(f"{proposer}: {found['error']}")
    return {"theirs_s": seconds, "theirs": "; ".join(errors)}, None


@dataclass(frozen=True)
class Score:
    """Of a plan: seconds, and bytes of the fullest rank, by both models; how many tables are sharded how."""

    by_ours: float
    by_theirs: float
    bytes_by_ours: float
    bytes_by_theirs: float
    room: float
    kinds: dict[str, int]

    @property
    def fits(self) -> str:
        """By whose count."""
        mine, their = (size <= self.room for size in (self.bytes_by_ours, self.bytes_by_theirs))
        return {(True, True): "both", (True, False): "ours", (False, True): "theirs"}.get(
            (mine, their), "neither"
        )


def told(whose: str, score: Score) -> Line:
    """A score's part of a line."""
    milliseconds = {"ms": score.by_ours, "ms_theirs": score.by_theirs}
    line = {f"{whose}_{name}": round(1e3 * seconds, 3) for name, seconds in milliseconds.items()}
    return line | {f"{whose}_fits": score.fits, f"{whose}_kinds": score.kinds}


class Court:
    """A case with both cost models: what plans are worth, and our planner's plan."""

    def __init__(self, case: Case, peer: Side):
        self.case, self.peer = case, peer
        self.model = CostModel(case.workload, case.topology)
        self.room = float(case.topology.tier_bytes()[0])
        self._dims = {table.name: table.dim for table in self.model.workload.tables}
        self.costs = self._costs()

    def score(self, plan: Line) -> Score:
        """What both models say of a plan in TorchRec's words."""
        mine, their = self.model.estimate(ours(plan, self.case.ranks)), self.peer("score", plan=plan)
        kinds = Counter(table["kind"] for table in plan.values())
        held = float(mine.rank_bytes.max())
        return Score(mine.step_seconds, their["seconds"], held, their["bytes"], self.room, dict(kinds))

    def plan(self, limit: float) -> tuple[float, ShardingPlan]:
        """(seconds of planning, our plan); no device has more than `limit` seconds by TorchRec's count."""
        caps = (
            Cap("TorchRec's seconds", limit, self._seconds),
            Cap("TorchRec's bytes", self.room, self._bytes),
        )
        only = Constraints(default=ParameterConstraints(KINDS))
        workload, topology = self.case.workload, self.case.topology
        start = time.perf_counter()
        found = search(workload, topology, only, BUDGET, caps=caps, allow=lambda o: self._key(o) is not None)
        return time.perf_counter() - start, found.plan

    def _seconds(self, option: ShardingOption) -> tuple[Numbers, float]:
        """By TorchRec's count, of each piece, and of every rank besides."""
        seconds, _ = self._cost(option)
        return (np.empty(0), seconds) if option.everywhere else (np.full(len(option.pieces), seconds), 0.0)

    def _bytes(self, option: ShardingOption) -> tuple[Numbers, float]:
        """The same."""
        _, size = self._cost(option)
        if option.everywhere:
            return np.empty(0), size
        table = self.model.workload.by_name[option.table]
        top, bottom, left, right = option.pieces.T
        number = 4 * (1 + 1 / table.dim)  # with its part of row-wise Adagrad's
        return size - (table.rows - bottom + top) * (right - left) * number, 0.0

    def _cost(self, option: ShardingOption) -> tuple[float, float]:
        key = self._key(option)
        assert key is not None, "only allowed options are asked for"
        return self.costs[key]

    def _key(self, option: ShardingOption) -> tuple[str, str, int] | None:
        """Where `costs` has the pieces of an option; None where TorchRec has no word for it."""
        dim, count = self._dims[option.table], len(option.pieces)
        if option.kind == "data_parallel":
            return option.table, option.kind, dim
        heights, widths = (option.pieces[:, k + 1] - option.pieces[:, k] for k in (0, 2))
        if np.ptp(heights) > 1 or np.ptp(widths):
            return None
        kind = "row_wise" if option.kind == "table_row_wise" and count == self.case.ranks else option.kind
        key = (option.table, kind, int(widths[0]))
        return None if key not in self.costs or (kind == "row_wise" and count < self.case.ranks) else key

    def _costs(self) -> dict[tuple[str, str, int], tuple[float, float]]:
        """{(table, kind, columns): (seconds, bytes) of a shard with all rows, by TorchRec's estimators}."""
        whole = ("data_parallel", "table_wise", "row_wise", "table_row_wise")
        keys = [(name, kind, dim) for name, dim in self._dims.items() for kind in whole]
        for name, dim in self._dims.items():
            widths = [width for width in range(4, dim, 4) if dim % width == 0]
            keys += [(name, kind, w) for w in widths for kind in ("column_wise", "table_column_wise")]
        return dict(zip(keys, self.peer("costs", shards=keys), strict=True))


if __name__ == "__main__":
    main()
