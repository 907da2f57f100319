"""A trial's prices make the estimate of it what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tesserec.sharding.comm import LocalComm
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.datasheet import kernels_of
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.train import trial as trials
from tesserec.train.measured import Measured


def test_prices_make_the_estimate_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuple((max(50, rows // 100), *rest) for rows, *rest in trials.FEATURES)
    monkeypatch.setattr(trials, "FEATURES", small)
    monkeypatch.setattr(trials, "BATCH", 512)
    monkeypatch.setattr(trials, "STEPS", 40)
    trials.trial(tmp_path, LocalComm())
    plain = Device("cpu", (Tier("dram", 8e9, 1e10),), 1e11)
    kernels = kernels_of(plain, 1)
    device = replace(plain, kernels=(kernels,))
    topology = Topology("here", {"cpu": device}, (Host(1, "cpu", Link(1e-5, 1e9)),))
    fitted = trials.in_step(kernels, tmp_path, topology)
    again = replace(topology, devices={"cpu": replace(device, kernels=(fitted,))})
    measured = Measured.read(tmp_path / "run" / "measured.json")
    plan = ShardingPlan.load(tmp_path / "plan.json")
    step = CostModel(trials._workload(tmp_path, 1), again).estimate(plan).step_seconds
    # the dense model is measured anew for every estimate
    assert step == pytest.approx(measured.stages["step"]["seconds"][0], rel=0.3)
    assert {"in_step_compute", "in_step_look_up", "in_step_update", "rest"} <= fitted.single.keys()
