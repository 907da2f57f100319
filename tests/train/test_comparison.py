"""Estimate beside measurement: like with like, words for what is far off, and factors that make up for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tesserec.cli import app
from tesserec.dataio.config import read_config
from tesserec.sharding.placement import make_plan
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.schedule import STAGES
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Dense, Feature, Table, Workload
from tesserec.train.comparison import at_work, compare, compared, factors, findings, highest
from tesserec.train.loop import Trainer
from tesserec.train.measured import Measured, MeasuredError
from tesserec.train.plan_case import topology_file
from tesserec.train.run import RunError

Train = Callable[..., Trainer]
LAPTOP = read_config(topology_file("laptop"), Topology)


def workload() -> Workload:
    features = (Feature("f", Lengths.fixed(4), Frequencies.uniform(10_000)),)
    table = Table("t", 10_000, 32, features=features)
    return Workload((table,), 4096, dense=Dense(1000, 1e4), reads_data=False)


def with_factors(factors: dict[str, float]) -> CostModel:
    devices = {name: replace(each, factors=factors) for name, each in LAPTOP.devices.items()}
    return CostModel(workload(), replace(LAPTOP, devices=devices))


def as_estimated(
    model: CostModel, plan: Any, times: float = 1.0, hosts: tuple[int, ...] = (0, 0)
) -> Measured:
    """What a run measures that takes `times` what is estimated."""
    estimate = model.estimate(plan)
    ranks = len(hosts)
    stages = {
        {"reduction": "reduce_dense"}.get(stage, stage): {
            "seconds": (times * seconds).tolist(),
            "busy_seconds": (times * seconds).tolist(),
            "waiting_seconds": [1.0] * ranks,
            "sent_bytes": [0.0] * ranks,
        }
        for stage, seconds in estimate.stages.items()
    }
    stages["step"] = {"seconds": [times * estimate.step_seconds] * ranks}
    rows, state = estimate.memory["rows"], estimate.memory["state"]
    memory = {
        "baseline": estimate.memory["reserve"],
        "rows": rows,
        "state": state,
        "peak": estimate.rank_bytes - 100,
        "untouched": np.full(ranks, 100.0),
    }
    kept = {name: array.tolist() for name, array in memory.items()}
    return Measured(ranks, list(hosts), 4, 4096, True, "x", 50, stages, {"t": {"ids_here": 16384.0}}, kept)


def test_a_run_as_estimated_is_off_nowhere() -> None:
    model = CostModel(workload(), LAPTOP)
    plan = make_plan(model.workload.shapes(), 2, default="row_wise")
    found = compare(model.workload, plan, model.estimate(plan), as_estimated(model, plan), "run")
    assert findings(found) == []
    assert found["step"]["estimated"] == found["step"]["measured"]
    for pairs in (*found["stages"].values(), *found["memory"].values()):
        for pair in pairs:
            assert pair["measured"] == pytest.approx(pair["estimated"])


def test_factors_make_the_estimate_as_measured() -> None:
    model = CostModel(workload(), LAPTOP)
    plan = make_plan(model.workload.shapes(), 2, default="row_wise")
    measured = as_estimated(model, plan, times=1.5)
    found = compare(model.workload, plan, model.estimate(plan), measured, "run")
    assert any("estimated 33 % too low" in line for line in findings(found))
    twice = with_factors(dict.fromkeys(STAGES, 2.0)).estimate(plan).stages
    fitted = factors(found, {stage: float(seconds.max()) for stage, seconds in twice.items()}, {})
    again = with_factors(fitted)
    after = compare(again.workload, plan, again.estimate(plan), measured, "run")
    for stage, pairs in after["stages"].items():
        pair = highest(pairs)
        if stage in fitted:
            assert pair["estimated"] == pytest.approx(pair["measured"], rel=1e-3)


def test_factors_are_on_top_of_those_of_before() -> None:
    model = CostModel(workload(), LAPTOP)
    plan = make_plan(model.workload.shapes(), 2, default="row_wise")
    found = compare(model.workload, plan, model.estimate(plan), as_estimated(model, plan, 2.0), "run")
    doubled = {stage: 2 * (highest(pairs)["estimated"] or 0) for stage, pairs in found["stages"].items()}
    fitted = factors(found, doubled, {"look_up": 3.0, "gone": 7.0})
    assert fitted["look_up"] == pytest.approx(6.0) and fitted["gone"] == 7.0


def test_waiting_counts_between_hosts_only() -> None:
    model = CostModel(workload(), LAPTOP)
    plan = make_plan(model.workload.shapes(), 2, default="row_wise")
    inside, between = (as_estimated(model, plan, hosts=hosts) for hosts in ((0, 0), (0, 1)))
    one, two = (at_work(found, "look_up") for found in (inside, between))
    assert one is not None and two is not None
    np.testing.assert_allclose(two - one, 1.0)


def test_ids_that_the_statistics_did_not_say_are_named() -> None:
    model = CostModel(workload(), LAPTOP)
    plan = make_plan(model.workload.shapes(), 2, default="row_wise")
    measured = replace(as_estimated(model, plan), tables={"t": {"ids_here": 4096.0}})
    found = compare(model.workload, plan, model.estimate(plan), measured, "run")
    assert any("ids or rows of t" in line and "--stats" in line for line in findings(found))


def tesserec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_a_run_is_compared_and_the_topology_refitted(train: Train, tmp_path: Path) -> None:
    run = train("run").run.path
    machine = tmp_path / "machine.yaml"
    machine.write_text("# mine\n" + topology_file("laptop").read_text())
    shown = tesserec("plan", "compare", run, "--topology", machine)
    assert shown.exit_code == 0, shown.output
    assert "look_up" in shown.stdout and "memory, total" in shown.stdout and "update" in shown.stdout
    done = tesserec("plan", "compare", run, "--refit", machine, "--report", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert machine.read_text().startswith("# mine\n")
    assert "<html" in (tmp_path / "page.html").read_text()
    (device,) = read_config(machine, Topology).devices.values()
    assert device.factors["update"] > 0
    document = json.loads(tesserec("plan", "compare", run, "--topology", machine, "--json").stdout)
    assert document["outcome"] == "compared"
    pair = highest(document["comparison"]["stages"]["compute"])
    assert pair["estimated"] == pytest.approx(pair["measured"], rel=0.1)


def test_a_run_of_several_ranks_is_compared_under_its_own_plan(tmp_path: Path, configure: Any) -> None:
    from tests.train.test_sharded import train_in_ranks

    trainer = train_in_ranks(configure("run", sharding={"default": "row_wise"}), 2)
    found = compared(trainer.run.path, topology="laptop")
    assert found.plan == trainer.learner.sharded.plan  # type: ignore[union-attr]
    assert found.comparison["memory"]["rows"][0]["estimated"] == pytest.approx(
        found.comparison["memory"]["rows"][0]["measured"]
    )


def test_what_cannot_be_compared_says_what_to_do(train: Train, tmp_path: Path) -> None:
    nothing = tesserec("plan", "compare", tmp_path)
    assert isinstance(nothing.exception, RunError) and "no training run here" in str(nothing.exception)
    run = train("run", train__max_steps=2).run.path
    short = tesserec("plan", "compare", run, "--topology", "laptop")
    assert isinstance(short.exception, MeasuredError) and "measured nothing" in str(short.exception)
    both = tesserec("plan", "compare", run, "--topology", "laptop", "--refit", tmp_path / "m.yaml")
    assert both.exit_code == 2 and "leave --topology out" in both.stderr
