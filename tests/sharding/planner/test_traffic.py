"""What the model says is sent, is sent: beside real steps of real ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import ShardingPlan, data_parallel, hot_cold, table_wise
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.workload import Feature, RowOptimizer, Table, Workload
from tests.sharding.planner.real_steps import sent_bytes

TABLES = (
    Table("a", 20_000, 16, features=(Feature("a", Lengths.fixed(3), Frequencies.zipf(20_000, 1.1)),)),
    Table("b", 70_000, 32, features=(Feature("b", Lengths.fixed(1), Frequencies.uniform(70_000)),)),
    Table(
        "c",
        5_000,
        8,
        mean=True,
        features=(
            Feature("c1", Lengths.poisson(4), Frequencies.zipf(5_000, 1.2)),
            Feature("c2", Lengths.fixed(2), Frequencies.uniform(5_000)),
        ),
    ),
)
WORKLOAD = Workload(TABLES, 2048, optimizer=RowOptimizer.named("rowwise_adagrad"))


def topology(ranks: int) -> Topology:
    cpu = Device("cpu", (Tier("dram", 64e9, 10e9),), 100e9, threads=ranks)
    return Topology("test", {"cpu": cpu}, (Host(ranks, "cpu", Link(5e-5, 4e9)),))


def check(workload: Workload, plan: ShardingPlan) -> None:
    """All within what chance allows: 1.5 % of all ranks together, 4 % of each."""
    measured = sent_bytes(workload, plan)
    sent = CostModel(workload, topology(plan.num_ranks)).estimate(plan).sent
    sent["grads"] = sent["gradients"] + sent["replicas"]
    for name, real in measured.items():
        np.testing.assert_allclose(sent[name].sum(), real.sum(), rtol=0.015, err_msg=name)
        np.testing.assert_allclose(sent[name], real, rtol=0.04, err_msg=name)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "kind", ["row_wise", "table_wise", "column_wise", "grid_shard", "hot_cold:500", "data_parallel"]
)
def test_bytes_are_those_of_real_steps(kind: str, ranks: int) -> None:
    check(WORKLOAD, make_plan(WORKLOAD.shapes(), ranks, default=kind))


@pytest.mark.parametrize("change", [{"forward": "int8", "backward": "fp16"}, {"bitwise": True}])
@pytest.mark.parametrize("kind", ["row_wise", "hot_cold:500"])
def test_bytes_of_codecs_and_of_equal_bits(kind: str, change: dict[str, Any]) -> None:
    workload = replace(WORKLOAD, **change)
    check(workload, make_plan(workload.shapes(), 2, default=kind))


def test_bytes_where_some_ranks_hold_copies() -> None:
    shapes = WORKLOAD.shapes()
    shards = (
        *data_parallel("a", shapes["a"], [1, 2]),
        *table_wise("b", shapes["b"], 3),
        *hot_cold("c", shapes["c"], 300, [0, 1, 2]),
    )
    measured = sent_bytes(WORKLOAD, plan := ShardingPlan(shards, 4))
    sent = CostModel(WORKLOAD, topology(4)).estimate(plan).sent
    np.testing.assert_allclose(sent["vectors"].sum(), measured["vectors"].sum(), rtol=0.015)
    np.testing.assert_allclose(sent["ids"].sum(), measured["ids"].sum(), rtol=0.015)
    told = measured["grads"].sum() - measured["vectors"].sum()
    np.testing.assert_allclose(sent["replicas"].sum(), told, rtol=0.02)
