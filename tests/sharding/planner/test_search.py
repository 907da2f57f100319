"""The search: what it scores is what the model says, what it returns fits, and is nearly the optimum."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tesserec.sharding.plan import ShardingPlan, row_wise, table_wise
from tesserec.sharding.planner.alternatives import alternatives_of
from tesserec.sharding.planner.candidates import Weigher
from tesserec.sharding.planner.constraints import Constraints, ParameterConstraints
from tesserec.sharding.planner.estimate import CostModel, Estimate
from tesserec.sharding.planner.frequencies import Frequencies
from tesserec.sharding.planner.infeasible import InfeasibleError
from tesserec.sharding.planner.milp import optimum
from tesserec.sharding.planner.moves import bytes_of, moves, seconds_of
from tesserec.sharding.planner.options import ShardingOption
from tesserec.sharding.planner.partition import Cap, Draft, Space
from tesserec.sharding.planner.search import Budget, Progress, search
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload
from tests.sharding.planner.cases import topology, workload

LITTLE = Budget(300_000)


def fits(estimate: Estimate, machines: Topology) -> bool:
    held = estimate.tier_bytes.items()
    return all((used <= machines.tier_bytes(tier) * (1 + 1e-9)).all() for tier, used in held)


@pytest.mark.parametrize(("ranks", "hosts"), [(2, 1), (8, 2)])
def test_score_of_search_is_the_estimate(ranks: int, hosts: int) -> None:
    work, machines = workload(6, seed=ranks), topology(ranks, hosts)
    found = search(work, machines, budget=LITTLE)
    assert found.draft.seconds == pytest.approx(found.estimate.step_seconds, rel=1e-9)
    assert fits(found.estimate, machines)
    found.plan.check(work.shapes())
    assert found.bound_seconds is not None
    assert found.bound_seconds <= found.estimate.step_seconds


@pytest.mark.parametrize("hosts", [1, 2])
def test_any_options_score_as_estimated(hosts: int) -> None:
    """Not only good ones: whatever options are drawn, seconds and bytes are the model's."""
    work, machines = workload(4, seed=3), topology(4, hosts, disk=True)
    model = CostModel(work, machines)
    weigher = Weigher(model)
    space, random = Space(weigher.candidates(), weigher.rules()), np.random.default_rng(0)
    names, k = [table.name for table in work.tables], space.rules.num_columns
    for _ in range(25):
        draft = Draft(space)
        choice = random.integers(space.first_option[:-1], space.first_option[1:])
        assert draft.build(random.permutation(4), choice)
        estimate = model.estimate(draft.plan(names))
        assert draft.seconds == pytest.approx(estimate.step_seconds, rel=1e-9)
        held = draft.state.memory + draft.state.every[space.rules.kind_of, k:]
        for m, tier in enumerate(machines.tier_names):
            np.testing.assert_allclose(held[:, m], estimate.tier_bytes.get(tier, 0.0), rtol=1e-9, atol=1.0)


def test_moves_keep_the_score_exact() -> None:
    work, machines = workload(8, seed=1), topology(4)
    weigher = Weigher(CostModel(work, machines))
    space = Space(weigher.candidates(), weigher.rules())
    draft = Draft(space, seed=5)
    assert draft.build(np.arange(8), np.full(8, -1))
    draft.wander(2000, draft.cost, 0.0)
    draft.better_options(np.arange(8), 1 << 60)
    score, bytes_too_much = draft.seconds, draft.lacking
    draft.restore(draft.snapshot())
    assert draft.seconds == pytest.approx(score, rel=1e-9)
    assert draft.lacking == bytes_too_much
    before = draft.cost
    tried = draft.try_options(3)
    assert draft.cost == pytest.approx(before, rel=1e-12)
    assert np.nanmin(tried[:, 0]) > 0


@pytest.mark.parametrize("seed", range(3))
def test_within_two_percent_of_the_optimum(seed: int) -> None:
    found = search(workload(3, seed=seed), topology(2, gigabytes=0.2), budget=LITTLE)
    best = optimum(found.draft.space, found.draft.cost, seconds=20)
    assert best.is_proved
    assert found.draft.cost <= best.bound * 1.02
    if best.draft is not None:
        assert best.draft.seconds <= found.draft.cost * (1 + 1e-9)
        assert not best.draft.lacking


def test_same_inputs_same_plan() -> None:
    plans = [search(workload(7, seed=2), topology(4), budget=LITTLE).plan for _ in range(2)]
    assert plans[0] == plans[1]


def test_interrupted_search_has_the_best_so_far() -> None:
    seen: list[Progress] = []

    def enough() -> bool:
        return len(seen) > 3 and seen[-1].seconds < np.inf

    found = search(workload(7), topology(4), progress=seen.append, should_stop=enough)
    assert found.stopped == "interrupted"
    assert found.estimate.step_seconds <= seen[-1].seconds
    assert all(a.work <= b.work for a, b in pairwise(seen))


def test_memory_that_is_nearly_full_is_filled() -> None:
    work, machines = workload(20, seed=4, rows=1e6), topology(8)
    need = search(work, machines, budget=LITTLE).draft.state.memory[:, 0].sum()
    smallest = sum(t.rows * (t.dim + 1) * 4 for t in work.tables)
    tight = topology(8, gigabytes=max(smallest, 0.0) / 8 / 0.93 / 1e9)
    found = search(work, tight, budget=LITTLE)
    assert fits(found.estimate, tight)
    assert need > 0


def test_constraints_hold() -> None:
    asked = Constraints(
        {
            "t0": ParameterConstraints(kinds=("row_wise",), ranks=(1, 2)),
            "t1": ParameterConstraints(kinds=("column_wise",), min_width=32),
            "in.t2": ParameterConstraints(tiers=("ssd",), max_replicas=1),
        }
    )
    plan = search(workload(5), topology(4, disk=True), asked, LITTLE).plan
    assert {shard.rank for shard in plan.of("in.t0")} == {1, 2}
    assert {shard.cols for shard in plan.of("in.t1")} == {(0, 32), (32, 64)}
    assert plan.tiers["in.t2"] == "ssd"
    assert all(len(ranks) == 1 for ranks in plan.rectangles("in.t2").values())


def test_cap_is_kept() -> None:
    def amount(option: ShardingOption) -> tuple[np.ndarray, float]:
        return np.ones(len(option.pieces)), float(len(option.everywhere) > 0)

    found = search(workload(8), topology(4), budget=LITTLE, caps=[Cap("pieces", 2.0, amount)])
    held = [len(found.plan.on(rank)) for rank in range(4)]
    assert max(held) <= 2


def test_infeasible_names_table_and_ways_out_that_work() -> None:
    work = workload(4, rows=1e6)
    with pytest.raises(InfeasibleError, match="lacks") as refused:
        search(work, topology(2, gigabytes=0.08), budget=LITTLE)
    lack = refused.value.witness[0]
    assert lack["needs_bytes"] > lack["has_bytes"]
    assert set(lack["tables"]) <= set(work.shapes())
    ways = refused.value.ways_out()
    assert ways[-1]["option"].startswith("--ranks")
    assert all(way["step_seconds"] for way in ways)
    ranks = int(ways[-1]["option"].split()[1])
    more = topology(2, gigabytes=0.08).with_ranks(ranks)
    assert fits(search(work, more, budget=LITTLE).estimate, more)


def old_plan(work: Workload, machines: Topology) -> ShardingPlan:
    shards = [
        shard
        for k, table in enumerate(work.tables)
        for shard in (
            row_wise(table.name, table.shape, [1, 0])
            if k == 0
            else table_wise(table.name, table.shape, k % machines.num_ranks)
        )
    ]
    return ShardingPlan(tuple(shards), machines.num_ranks)


def test_fixed_tables_stay_while_they_fit() -> None:
    work, machines = workload(6), topology(2)
    before = replace(work, tables=work.tables[:4])
    old = old_plan(before, machines)
    found = search(work, machines, budget=LITTLE, fix=old)
    assert not moves(old, found.plan, work)
    assert all(found.plan.rectangles(name) == old.rectangles(name) for name in old.tables)


def test_rows_that_were_added_come_to_the_last_piece() -> None:
    work, machines = workload(3), topology(2)
    old = old_plan(work, machines)
    first = work.tables[0]
    (feature,) = first.features
    feature = replace(feature, frequencies=Frequencies.uniform(first.rows + 100))
    larger = replace(first, rows=first.rows + 100, features=(feature,))
    grown = replace(work, tables=(larger, *work.tables[1:]))
    found = search(grown, machines, budget=LITTLE, fix=old)
    spans = [rows for rows, _ in found.plan.rectangles(first.name)]
    assert spans == [(0, first.rows // 2), (first.rows // 2, first.rows + 100)]


def test_fewest_bytes_move_where_a_rank_is_too_full() -> None:
    work = workload(6, rows=1e6)
    sizes = {t.name: t.rows * (t.dim + 1) * 4.0 for t in work.tables}
    crowded = ShardingPlan(tuple(shard for t in work.tables for shard in table_wise(t.name, t.shape, 0)), 2)
    roomy = CostModel(work, topology(2)).estimate(crowded)
    most = float(roomy.tier_bytes["hbm"].max())
    machines = topology(2, gigabytes=(most - 0.5 * min(sizes.values())) / 1e9)
    found = search(work, machines, budget=LITTLE, fix=crowded)
    moved = moves(crowded, found.plan, work)
    assert fits(found.estimate, machines)
    assert 0 < bytes_of(moved) <= min(sizes.values())
    assert seconds_of(moved, machines) > 0


def test_alternatives_say_why_they_lost() -> None:
    work, machines = workload(5), topology(2)
    asked = Constraints({"t1": ParameterConstraints(kinds=("table_wise", "row_wise"))})
    found = search(work, machines, asked, LITTLE)
    for name in ("in.t0", "in.t1"):
        chosen, *others = found.alternatives(name)
        assert chosen["chosen"]
        assert chosen["step_seconds"] == pytest.approx(found.estimate.step_seconds)
        assert others
        assert all(one["why"] for one in others)
        later = alternatives_of(work, machines, asked, found.plan, [name])[name]
        assert later[0]["step_seconds"] == pytest.approx(found.estimate.step_seconds)
    assert any("forbidden by the constraint `kinds`" in one["why"] for one in found.alternatives("in.t1"))
