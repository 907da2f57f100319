"""The cost model: parts add up, and answer as one would expect where the answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tesserec.sharding.placement import KINDS, make_plan
from tesserec.sharding.plan import PlanError, ShardingPlan, table_wise
from tesserec.sharding.planner.datasheet import kernels_of
from tesserec.sharding.planner.distance import Distances
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.exchanges import Placed
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.memory import PARTS
from tesserec.sharding.planner.schedule import COLUMN, LANES, TO_LANES
from tesserec.sharding.planner.speeds import reuse
from tesserec.sharding.planner.topology import Cache, Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.workload import Dense, Feature, RowOptimizer, Table, Workload

CPU = Device(
    "cpu", (Tier("dram", 64e9, 10e9), Tier("ssd", 1e12, 1e9)), 1e11, threads=8, caches=(Cache(4e6, 1e11),)
)
GPU = Device("gpu", (Tier("hbm", 80e9, 3e12), Tier("dram", 256e9, 5e10)), 4e14)
INSIDE, NETWORK = Link(5e-5, 4e9), Link(1e-4, 1e9)
ONE_HOST = Topology("one host", {"cpu": CPU}, (Host(4, "cpu", INSIDE),))
TWO_HOSTS = Topology("two hosts", {"cpu": CPU}, (Host(2, "cpu", INSIDE, count=2),), NETWORK)
MIXED = Topology(
    "cpu and gpu", {"cpu": CPU, "gpu": GPU}, (Host(1, "cpu", INSIDE), Host(3, "gpu", INSIDE)), NETWORK
)


def table(name: str, rows: int, dim: int, length: float = 1.0, zipf: float = 0.0) -> Table:
    ids = Frequencies.zipf(rows, zipf) if zipf else Frequencies.uniform(rows)
    return Table(name, rows, dim, features=(Feature(name, Lengths.fixed(length), ids),))


WORKLOAD = Workload(
    (table("a", 100_000, 16, 3, 1.1), table("b", 1_000_000, 32), table("c", 5_000, 16, 20)),
    4096,
    dense=Dense(100_000, 2e5, activation_bytes=2e4, columns=13),
)


@pytest.mark.parametrize("topology", [ONE_HOST, TWO_HOSTS, MIXED], ids=lambda t: t.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_costs_what_its_pieces_cost(kind: str, topology: Topology) -> None:
    model = CostModel(WORKLOAD, topology)
    plan = make_plan(WORKLOAD.shapes(), 4, default=kind, hosts=topology.hosts_of_ranks)
    loads, held = model.base.copy(), model.base_bytes.copy()
    for one in WORKLOAD.tables:
        placed = Placed.of(one, plan, model.hosts)
        for rank in range(4):
            found = model.pieces(
                one, placed.rows, placed.cols, placed.counts, kind=model.kinds[rank], beside=placed.beside
            )
            mine = placed.which[placed.ranks == rank]
            loads[rank] += found.everyone.sum(0) + found.holder[mine].sum(0)
            held[rank] += found.everyone_bytes.sum(0) + found.holder_bytes[mine].sum(0)
    estimate = model.estimate(plan)
    np.testing.assert_allclose(estimate.step_seconds, model.step(loads), rtol=1e-9)
    np.testing.assert_allclose(list(estimate.memory.values()), held.T, rtol=1e-9)
    np.testing.assert_allclose(sum(b.seconds for b in estimate.path), estimate.step_seconds, rtol=1e-9)
    assert (loads >= -1e-12).all() and (held >= 0).all()


def test_lanes_and_columns_give_the_same_step() -> None:
    model = CostModel(WORKLOAD, TWO_HOSTS)
    loads = model.base + np.random.default_rng(0).random(model.base.shape)
    assert model.step(loads) == pytest.approx(model.step(loads @ TO_LANES))
    assert loads.shape[1] != len(LANES)


def test_a_step_waits_for_the_busiest_and_hides_what_it_can() -> None:
    model = CostModel(replace(WORKLOAD, tables=()), ONE_HOST)
    loads = np.zeros_like(model.base)
    loads[:, COLUMN["dense"]], loads[1, COLUMN["dense"]] = 0.010, 0.012
    assert model.step(loads) == pytest.approx(0.012)
    loads[0, COLUMN["route"]] = 0.002  # fits beside: rank 0 would wait for rank 1
    assert model.step(loads) == pytest.approx(0.012)
    loads[1, COLUMN["route"]] = 0.002  # does not: its cores are busy
    assert model.step(loads) == pytest.approx(0.014)
    loads[1, COLUMN["vectors_inside"]] = 0.001  # on a cpu a copy, and so work
    assert model.step(loads) == pytest.approx(0.015 + model.schedule.phase_seconds[1] * 0, rel=0.01)


@pytest.mark.parametrize("ordered", [True, False])
def test_distances_of_a_whole_table_are_those_of_speeds(ordered: bool) -> None:
    ids = Frequencies.zipf(100_000, 1.1, ordered)
    rows = np.array([[0.0, 100_000.0]])
    found = Distances(ids).of(rows[:, 0], rows[:, 1], np.array([68.0]), np.array([5e3]), 1e7)[0]
    np.testing.assert_allclose(found[0], reuse(ids, 68.0, 5e3, 1e7), atol=1e-9)


def test_distances_of_a_part_shrink_with_it() -> None:
    ids = Frequencies.zipf(100_000, 1.1, ordered=False)
    part = Distances(ids).of(np.zeros(1), np.array([25_000.0]), np.array([64.0]), np.array([5e3]), 0.0)[0]
    like = Distances(ids).of(np.zeros(1), np.array([100_000.0]), np.array([16.0]), np.array([5e3]), 0.0)[0]
    np.testing.assert_allclose(part, like, atol=1e-9)


def test_hot_rows_are_worth_replicating_where_they_are_hot() -> None:
    def gain(zipf: float) -> float:
        workload = replace(WORKLOAD, tables=(table("t", 1_000_000, 64, 10, zipf),), dense=Dense())
        model = CostModel(workload, TWO_HOSTS)
        steps = [
            model.estimate(make_plan(workload.shapes(), 4, default=kind)).step_seconds
            for kind in ("row_wise", "hot_cold:1000")
        ]
        return steps[0] / steps[1]

    assert gain(1.2) > 1.05 > gain(0.2)


def test_memory_counts_rows_state_and_tiers() -> None:
    workload = replace(WORKLOAD, optimizer=RowOptimizer.named("adam"))
    plan = make_plan(workload.shapes(), 4, default="table_wise")
    model = CostModel(workload, ONE_HOST)
    estimate = model.estimate(plan)
    assert list(estimate.memory) == list(PARTS)
    np.testing.assert_allclose(estimate.memory["rows"], plan.bytes_per_rank())
    np.testing.assert_allclose(estimate.memory["state"], 2 * np.array(plan.bytes_per_rank()))
    np.testing.assert_allclose(estimate.tier_bytes["dram"], estimate.rank_bytes)
    on_disk = model.estimate(replace(plan, tiers={"b": "ssd"}))
    assert on_disk.tier_bytes["ssd"].sum() == 3 * 4 * 32_000_000
    assert on_disk.step_seconds > estimate.step_seconds
    np.testing.assert_allclose(sum(on_disk.tier_bytes.values()), on_disk.rank_bytes)


def test_estimates_are_json_and_name_all_tables() -> None:
    estimate = CostModel(WORKLOAD, ONE_HOST).estimate(make_plan(WORKLOAD.shapes(), 4, default="grid_shard"))
    read = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
    assert read["step_seconds"] == estimate.step_seconds
    assert list(read["tables"]) == ["a", "b", "c"]
    assert np.shape(read["traffic"]) == (4, 4)
    assert 0 < read["tables"]["a"]["hits"] < 1
    np.testing.assert_allclose(sum(map(np.array, read["sent"].values())), np.sum(read["traffic"], 1))


def test_tables_sum_to_what_is_sent() -> None:
    for kind in ("row_wise", "column_wise", "hot_cold:1000", "data_parallel"):
        estimate = CostModel(WORKLOAD, TWO_HOSTS).estimate(make_plan(WORKLOAD.shapes(), 4, default=kind))
        sent = estimate.traffic.sum() - estimate.sent["reduction"].sum()
        np.testing.assert_allclose(sum(t.sent_bytes for t in estimate.tables.values()), sent, rtol=1e-6)


def test_one_rank_talks_to_nobody() -> None:
    alone = replace(ONE_HOST, hosts=(replace(ONE_HOST.hosts[0], ranks=1),))
    estimate = CostModel(WORKLOAD, alone).estimate(make_plan(WORKLOAD.shapes(), 1, default="table_wise"))
    assert not estimate.traffic.any()
    assert estimate.stages["input_dist"].max() < 1e-4 and not estimate.stages["reduction"].any()


def test_threads_are_woken_once_for_each_pool_that_is_worth_it() -> None:
    kernels = kernels_of(CPU, 1)
    found = []
    for fork in (0.0, 1e-3):
        measured = replace(kernels, single={**kernels.single, "fork": fork})
        device = replace(CPU, kernels=(measured,))
        model = CostModel(WORKLOAD, Topology("one", {"cpu": device}, (Host(1, "cpu", INSIDE),)))
        plan = make_plan(WORKLOAD.shapes(), 1)
        found.append((model.base, [model.pieces(t, *pieces_of(model, t, plan)) for t in WORKLOAD.tables]))
    (base, without), (forked, same) = found
    more = (forked - base).sum(0)
    assert more[COLUMN["lookup"]] == pytest.approx(1e-3)  # tables a and c are one pool, b is a single task
    for one, other in zip(without, same, strict=True):
        np.testing.assert_array_equal(one.holder, other.holder)


def pieces_of(model: CostModel, table: Table, plan: ShardingPlan) -> tuple[Any, Any, Any]:
    placed = Placed.of(table, plan, model.hosts)
    return placed.rows, placed.cols, placed.counts


def test_groups_of_replicas_plan_for_one_group() -> None:
    model = CostModel(replace(WORKLOAD, replica_groups=2), TWO_HOSTS)
    estimate = model.estimate(make_plan(WORKLOAD.shapes(), 2, default="row_wise"))
    assert model.ranks == 2 and estimate.samples_per_second == 4096 / estimate.step_seconds


def test_plans_for_others_are_refused() -> None:
    model = CostModel(WORKLOAD, ONE_HOST)
    with pytest.raises(PlanError, match="the plan is for 2 ranks, the topology has 4"):
        model.estimate(make_plan(WORKLOAD.shapes(), 2))
    with pytest.raises(PlanError, match="no shard of 'b', 'c'"):
        model.estimate(ShardingPlan(table_wise("a", (100_000, 16), 0), 4))
