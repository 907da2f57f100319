"""The document about a plan (`planner.result`), from what was read (`Case`), found, and asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime

from tesserec import __version__
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.alternatives import alternatives_of
from tesserec.sharding.planner.document import About, add_plan, document_of, moves_part
from tesserec.sharding.planner.estimate import Estimate
from tesserec.sharding.planner.infeasible import InfeasibleError
from tesserec.sharding.planner.result import Document, Infeasible, Lack, MovesPart, Outcome, TablePart
from tesserec.sharding.planner.search import Found
from tesserec.sharding.planner.whatif import Planned, Planner
from tesserec.train.plan_case import Case

_AUTO = "auto (no plan)"
_SOON = 50_000  # pieces, at most, of which the estimate is there at once
_EXPLAINED = 200  # tables whose alternatives are in the document: those that take most of a step


def new_document(case: Case, outcome: Outcome = "planned") -> Document:
    """What is known before there is a plan."""
    about = About(
        case.title,
        case.sources.source,
        case.topology_source,
        case.statistics,
        datetime.now(UTC).isoformat(timespec="seconds"),
        __version__,
        case.notes,
    )
    document = document_of(about, case.workload, case.topology, outcome)
    for tier in document["topology"]["tiers"]:
        tier["limit_bytes"] = case.limit(tier["name"])[: case.costs.ranks].tolist()
    return document


def document_of_plan(case: Case, plan: ShardingPlan) -> Document:
    """What `plan` does; nothing of how it was found."""
    document = new_document(case)
    add_plan(document, plan, case.estimate(plan))
    return document


def document_of_found(case: Case, found: Found) -> Document:
    """What the search has found, and what else there was."""
    document = new_document(case)
    add_plan(document, found.plan, found.estimate)
    document["search"] = found.search_part()
    if len(case.shapes) * case.costs.ranks <= _SOON:
        document["search"]["best_of"][_AUTO] = _auto(case)
    tables = sorted(document["tables"], key=lambda table: -table.get("seconds", 0.0))
    for table in tables[:_EXPLAINED]:
        table["alternatives"] = found.alternatives(table["name"])
    return document


def _auto(case: Case) -> float | None:
    """Seconds of a step without a plan, as `sharding.default: auto` has it; None where that does not fit."""
    plan = make_plan(case.shapes, case.costs.ranks, hosts=case.topology.hosts_of_ranks[: case.costs.ranks])
    estimate = case.estimate(plan)
    return None if _short(case, estimate) else estimate.step_seconds


def explained(case: Case, plan: ShardingPlan, name: str) -> TablePart:
    """One table: what `plan` does with it, what that costs, and what else there was."""
    table = next(each for each in document_of_plan(case, plan)["tables"] if each["name"] == name)
    found = alternatives_of(case.workload, case.topology, case.constraints, plan, [name])
    table["alternatives"] = found[name]
    return table


def infeasible_document(case: Case, error: InfeasibleError) -> Document:
    """Why nothing fits, and what would help."""
    document = new_document(case, "infeasible")
    document["infeasible"] = Infeasible(message=str(error), witness=error.witness, ways_out=error.ways_out())
    return document


def add_future(document: Document, case: Case, plan: ShardingPlan, make: Planner, seconds: float) -> None:
    """What if batch, ranks or links were other; as much of it as can be found in so many seconds."""
    until = time.monotonic() + seconds
    document["sensitivity"] = []
    planned = Planned(case.workload, case.topology, plan, make, case.constraints.rank_bytes)
    for variation in planned.sensitivity():
        document["sensitivity"].append(variation)
        if time.monotonic() > until:
            document["notes"].append("not all of what if could be answered in time: a larger --budget does")
            return


def moves_between(case: Case, name: str, before: ShardingPlan, after: ShardingPlan) -> MovesPart:
    """What moves from the plan `before`, of the file `name`, to the plan `after`."""
    step = case.estimate(before).step_seconds if can_be_used(case, before) else None
    return moves_part(name, before, after, case.workload, case.topology, step)


def can_be_used(case: Case, plan: ShardingPlan) -> bool:
    """Whether the plan is for the tables and ranks of the case; a plan from before growth is not."""
    return plan.num_ranks == case.costs.ranks and plan.shapes == case.shapes and not lacks_of(case, plan)


def lacks_of(case: Case, plan: ShardingPlan) -> list[Lack]:
    """The ranks that would have more in a tier than it holds, the worst first. Empty where the plan fits."""
    short = _short(case, case.estimate(plan))
    sizes, lacks = _sizes(plan, {rank for _, rank in short}), []
    for (tier, rank), (needs, has) in short.items():
        held = [t for t, _ in sizes[rank].most_common() if plan.tiers.get(t, tier) == tier]
        where = f"tier {tier} of rank {rank}"
        lacks.append(Lack(where=where, needs_bytes=needs, has_bytes=has, tables=held))
    return sorted(lacks, key=lambda lack: lack["has_bytes"] - lack["needs_bytes"])


def _short(case: Case, estimate: Estimate) -> dict[tuple[str, int], tuple[float, float]]:
    """{(tier, rank): (bytes it needs, bytes it has)} where that is too little."""
    return {
        (tier, rank): (float(used[rank]), float(limit))
        for tier, used in estimate.tier_bytes.items()
        for rank, limit in enumerate(case.limit(tier)[: len(used)])
        if used[rank] > limit * (1 + 1e-9)
    }


def _sizes(plan: ShardingPlan, ranks: Collection[int]) -> dict[int, Counter[str]]:
    """{rank: elements of each table there}, of these ranks."""
    sizes = {rank: Counter[str]() for rank in ranks}
    for shard in plan.shards if ranks else ():
        if shard.rank in sizes:
            sizes[shard.rank][shard.table] += shard.size
    return sizes
