"""What if: the planned case is itself, the same plan is used where it can be, a new one is never worse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import PlanError, ShardingPlan
from tesserec.sharding.planner.document import About, add_plan, document_of, moves_part
from tesserec.sharding.planner.estimate import CostModel, Estimate
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.whatif import Change, Planned, fits
from tesserec.sharding.planner.workload import Dense, TableEntry, Workload

DEVICE = Device("gpu", (Tier("hbm", 1e8, 1e11),), 1e13)
TOPOLOGY = Topology("four", {"gpu": DEVICE}, (Host(4, "gpu", Link(1e-5, 1e9)),), network=Link(1e-5, 1e8))
ENTRIES = [TableEntry("big", 100_000, 32, zipf=1.1), TableEntry("small", 100, 8, length=3)]
WORKLOAD = Workload(
    tuple(table for entry in ENTRIES for table in entry.tables()),
    1024,
    dense=Dense(1000, 1e5, activation_bytes=100.0),
    reads_data=False,
)
PLAN = make_plan(WORKLOAD.shapes(), 4, default="row_wise")


def whole(workload: Workload, topology: Topology) -> Estimate:
    """Of the plan that has every table whole."""
    plan = make_plan(workload.shapes(), topology.num_ranks, default="table_wise")
    return CostModel(workload, topology).estimate(plan)


def nothing(workload: Workload, topology: Topology) -> Estimate:
    raise PlanError("nothing fits")


def planned(plan: ShardingPlan = PLAN) -> Planned:
    return Planned(WORKLOAD, TOPOLOGY, plan, whole)


def test_the_planned_case_is_the_plans_own() -> None:
    step = CostModel(WORKLOAD, TOPOLOGY).estimate(PLAN).step_seconds
    middle = [v for v in planned().sensitivity() if v["factor"] == 1]
    assert [v["what"] for v in middle] == ["batch", "ranks", "bandwidth"]
    assert all(v["step_seconds_same"] == v["step_seconds_new"] == pytest.approx(step) for v in middle)


def test_a_new_plan_is_never_slower_than_the_same() -> None:
    found = [v for v in planned().sensitivity() if v["step_seconds_same"] and v["step_seconds_new"]]
    assert len(found) >= 5
    assert all((v["step_seconds_new"] or 0) <= (v["step_seconds_same"] or 0) for v in found)


def test_more_work_takes_longer_and_faster_links_less() -> None:
    found = {(v["what"], v["factor"]): v["step_seconds_same"] or 0 for v in planned().sensitivity()}
    assert found["batch", 0.5] < found["batch", 1.0] < found["batch", 2.0]
    assert found["bandwidth", 0.5] > found["bandwidth", 1.0] > found["bandwidth", 2.0]


@pytest.mark.parametrize(
    ("change", "note"),
    [(Change(batch=1026), "4 ranks cannot share"), (Change(ranks=2), "the plan is for 4 ranks")],
)
def test_what_cannot_be_says_why(change: Change, note: str) -> None:
    found = planned().vary(change)
    assert found["step_seconds_same"] is None and note in found["note"]


def test_where_nothing_fits_there_is_no_new_plan() -> None:
    found = replace(planned(), make=nothing).vary(Change(batch=2048))
    assert found["step_seconds_new"] is None and found["note"] == "nothing fits"


def test_a_plan_that_is_too_large_does_not_fit() -> None:
    estimate = CostModel(WORKLOAD, TOPOLOGY).estimate(PLAN)
    assert fits(estimate, TOPOLOGY, {}) and not fits(estimate, TOPOLOGY, {"hbm": 1e5})
    small = replace(TOPOLOGY, devices={"gpu": replace(DEVICE, tiers=(Tier("hbm", 1e5, 1e11),))})
    assert not fits(estimate, small, {})


def test_the_document_has_what_the_estimate_has() -> None:
    about = About("w.yaml", "w.yaml", "four.yaml", "as given", "2026-01-01", "0", ("a note",))
    document, estimate = document_of(about, WORKLOAD, TOPOLOGY), CostModel(WORKLOAD, TOPOLOGY).estimate(PLAN)
    add_plan(document, PLAN, estimate)
    assert document["step"]["seconds"] == estimate.step_seconds
    assert sum(map(sum, document["ranks"]["memory"].values())) == pytest.approx(estimate.rank_bytes.sum())
    big, _ = document["tables"]
    assert (big["name"], big["kind"], big["num_pieces"]) == ("big", "row_wise", 4)
    assert [piece["ranks"] for piece in big["pieces"]] == [[0], [1], [2], [3]]
    rows, share = big["curve"]["rows"], big["curve"]["share"]
    assert rows[0] == share[0] == 0 and share[-1] == pytest.approx(1) and share == sorted(share)
    assert document["notes"] == ["a note"]


def test_moves_are_those_that_travel() -> None:
    after = make_plan(WORKLOAD.shapes(), 4, {"small": "data_parallel"}, default="row_wise")
    part = moves_part("old.json", PLAN, after, WORKLOAD, TOPOLOGY)
    assert part["num_moves"] == 4 and {move["table"] for move in part["moves"]} == {"small"}
    assert part["bytes"] == 3 * (100 * 8 * 4 + 100 * 4)  # rows, and a number of state for each
    assert part["seconds"] > 0
