"""Tables that have a place already: an option of its own for each, and a price for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import Rectangle, Shard, ShardingPlan
from tesserec.sharding.planner.candidates import Weigher
from tesserec.sharding.planner.constraints import ParameterConstraints
from tesserec.sharding.planner.describe import placement_of
from tesserec.sharding.planner.exchanges import Placed
from tesserec.sharding.planner.options import ShardingOption
from tesserec.sharding.planner.partition import Candidate, Space
from tesserec.sharding.planner.workload import Table

_MOVED = 1e4  # steps, that moving all bytes counts: any move is worse than any step
_LACKING = 1e2  # times what moving a byte counts, for a byte too much


def add_standing(weigher: Weigher, candidates: Sequence[Candidate], plan: ShardingPlan) -> list[Candidate]:
    """The candidates, with where `plan` has a table as the first of its options.

    Rows that a table has gained since come to its last pieces. A table that has other columns now, or is on
    ranks that there are no more, has to move.
    """
    tables = weigher.model.workload.by_name
    return [_with_standing(weigher, tables[candidate.table], candidate, plan) for candidate in candidates]


def prefer_standing(space: Space) -> None:
    """Let bytes that move cost more than any seconds, and bytes that do not fit more than these."""
    problem, k = space.problem, space.rules.num_columns
    price = _MOVED * space.busy / max(float(space.bytes_in_all.sum()), 1.0)
    for t in range(space.num_tables):
        mine = space.options_of(t)
        if space.options[mine.start].home is None:
            continue
        first, last = space.first_piece[mine.start : mine.start + 2]
        problem.pieces["leave"][first:last] = price * space.own[0, space.load_of[first:last], k:].sum(axis=1)
        problem.options["price"][mine.start + 1 : mine.stop] += price * space.bytes_in_all[mine.start]
    problem.rule["penalty"] = max(float(problem.rule["penalty"][0]), _LACKING * price)


def standing_option(weigher: Weigher, table: Table, plan: ShardingPlan) -> ShardingOption | None:
    """A table as it is in the plan; None where it is not, or cannot stay."""
    ranks = weigher.model.ranks
    if table.name not in plan.tables or plan.shapes[table.name][1] != table.dim:
        return None
    held = _grown(plan.rectangles(table.name), plan.shapes[table.name][0], table.rows)
    if not held or max(max(holders) for holders in held.values()) >= ranks:
        return None
    every = tuple(rectangle for rectangle, holders in held.items() if len(holders) == ranks)
    single = [
        (rectangle, rank) for rectangle, holders in held.items() for rank in holders if len(holders) < ranks
    ]
    spans = np.array([(*rows, *cols) for (rows, cols), _ in single], np.int64).reshape(-1, 4)
    grown = ShardingPlan(tuple(_shards(table.name, held)), ranks)
    placed = Placed.of(table, grown, weigher.model.hosts)
    mine = np.flatnonzero(placed.counts[placed.which] < ranks)
    return ShardingOption(
        table.name,
        placement_of(held, table.shape, weigher.model.hosts.tolist()).kind,
        plan.tiers.get(table.name, weigher.tiers[0]),
        spans,
        np.full(len(single), -1),
        every if ranks > 1 else (),
        tuple(rank for _, rank in single),
        placed.counts[placed.which][mine],
        placed.beside[placed.which][mine],
    )


def _with_standing(weigher: Weigher, table: Table, candidate: Candidate, plan: ShardingPlan) -> Candidate:
    option = standing_option(weigher, table, plan)
    if option is None or not _may_stay(option, weigher.asked[table.name], candidate.ranks, weigher.tiers):
        return candidate
    loads = weigher.loads(table, [option])
    return replace(candidate, options=[option, *candidate.options], loads=[*loads, *candidate.loads])


def _may_stay(
    option: ShardingOption,
    asked: ParameterConstraints,
    allowed: npt.NDArray[np.bool_],
    tiers: Sequence[str],
) -> bool:
    """Whether the constraints of the table let it be as it is. `max_bytes` is for other options only."""
    home = list(option.home or ())
    width = (option.pieces[:, 3] - option.pieces[:, 2]).min(initial=asked.min_width or 0)
    copies = len(allowed) if option.everywhere else 1
    pieces = len(np.unique(option.pieces, axis=0)) + len(option.everywhere)
    return bool(
        option.tier in (asked.tiers or tiers)
        and option.kind in (asked.kinds or (option.kind,))
        and allowed[home].all()
        and (allowed.all() or not option.everywhere)
        and width >= (asked.min_width or 0)
        and pieces <= (asked.max_pieces or pieces)
        and copies <= (asked.max_replicas or copies)
    )


def _grown(held: dict[Rectangle, list[int]], before: int, rows: int) -> dict[Rectangle, list[int]]:
    """With the last spans of rows longer, or cut, so that there are `rows`."""
    found: dict[Rectangle, list[int]] = {}
    for ((lo, hi), cols), ranks in held.items():
        if lo < rows:
            found[(lo, rows if hi == before else min(hi, rows)), cols] = ranks
    return found


def _shards(table: str, held: dict[Rectangle, list[int]]) -> list[Shard]:
    return [Shard(table, rows, cols, rank) for (rows, cols), ranks in held.items() for rank in ranks]
