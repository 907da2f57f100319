"""Calibration, given the times of a machine whose formulas are known; and that all points can be timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tesserec.autograd import num_threads, set_num_threads
from tesserec.cli import plan_calibrate
from tesserec.dataio.config import read_config
from tesserec.sharding.comm import world
from tesserec.sharding.planner import calibration, measure
from tesserec.sharding.planner.calibration import fitted
from tesserec.sharding.planner.grids import Kernels
from tesserec.sharding.planner.measure import STAGES, Memory, Point
from tesserec.sharding.planner.row_times import lines_of
from tesserec.sharding.planner.speeds import Speeds, at_distance, radix_passes
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.workload import RowOptimizer
from tesserec.train import calibrate
from tesserec.train.reading_speed import reading, reading_prices

NS = 1e-9
STATES = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2, "adam": 4}


@pytest.fixture(scope="module")
def points() -> dict[Point, Any]:
    return calibration.points(Memory(1 << 26))


FORK = 100e-6


def truth(point: Point, threads: int = 1) -> float:
    """Seconds of a machine without caches, whose costs are round numbers, and no less with more threads."""
    kind, *at = point
    if kind == "nothing":
        return 50e-6
    if kind in ("lookup", "short", "hot", "output", "fork"):
        return 50e-6 + lookup_truth(kind, at, threads)
    if kind == "sort":
        rows, ids, length = at
        return float(40e-6 + NS * (ids * (1 + radix_passes(rows)) + 2 * ids / length))
    if kind in ("gradient", "update", "rule", "half", "two"):
        return 50e-6 + update_truth(kind, at)
    if kind == "stage":
        stage, tables, batch, length, width = at
        k = STAGES.index(stage)
        return float(1e-4 * (k + 1) + 2e-6 * tables + NS * tables * batch * length * (30 + width * k))
    if kind in ("even", "skewed"):
        return 2e-4 if kind == "skewed" else 1e-4
    return 1e-3


def lookup_truth(kind: str, at: list[Any], threads: int) -> float:
    more = calibration.more(threads)
    fork = FORK * (threads > 1)
    if kind == "output":
        narrow = calibration.NARROW_BAGS * more
        return float(NS * 2.5 * ((at[0] >> 8) if at[0] else narrow) + fork * (not 0 < at[0] < 1 << 21))
    data_type, width = (at[0], at[1]) if kind == "lookup" else ("float32", at[0] if at else 32)
    ids = calibration.HOT_BAGS * more * 16 if kind == "hot" else calibration.lookup_bags(width, threads) * 16
    if kind == "fork":
        width, ids = calibration.FORKED, calibration.lookup_bags(calibration.FORKED, 1) * 16
    return fork + NS * ids * (2 + 0.5 * float(lines_of(width * calibration.TYPES[data_type])))


def update_truth(kind: str, at: list[Any]) -> float:
    width = 48 if kind == "two" else next(a for a in at if isinstance(a, int))
    lines = width / 16
    if kind == "gradient":
        return NS * lines * float(np.prod(calibration.gradient_bags(width, at[1])))
    if kind == "two" and at[0] == "gradient":
        return NS * lines * float(np.prod(calibration.gradient_bags(48, calibration.AT_ONCE)))
    rows = at[2] // (4 * width) if kind == "update" else max(8192, (1 << 22) // (4 * width))
    rows = (1 << 22) // (4 * 48) if kind == "two" else rows
    bags = calibration.gradient_bags(48, calibration.AT_ONCE)[0] if kind == "two" else calibration.UPDATED
    ids = bags * (calibration.UPDATED // bags)
    states = STATES[at[0]] if kind == "rule" else 0
    return NS * (lines * ids + 5 * lines * (1 + states) * calibration.drawn(rows, ids))


@pytest.fixture(scope="module")
def speeds(points: dict[Point, Any]) -> Speeds:
    made = calibration.kernels({point: truth(point) for point in points}, 1, 1)
    return Speeds(Device("cpu", (Tier("dram", 8e9, 1e10),), 1e11, kernels=(with_reading(made),)))


def with_reading(made: Kernels) -> Kernels:
    return replace(
        made, single={**made.single, "read": 0.0, "read_row": 0.0, "read_id": 0.0, "read_column": 0.0}
    )


@pytest.mark.parametrize("width", [16, 48, 64, 128, 192])
@pytest.mark.parametrize("distance", [2.0**15, 2.0**22, 2.0**30])
def test_rows_come_back(speeds: Speeds, width: int, distance: float) -> None:
    expected = NS * (2 + 0.5 * width / 16)
    assert float(speeds.row(width, 4, at_distance(distance))) == pytest.approx(expected, rel=0.15)
    expected = NS * (2 + 0.5 * float(lines_of(width * 2)))
    assert float(speeds.row(width, 2, at_distance(distance))) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("seed", range(20))
def test_no_price_is_negative_where_others_work(points: dict[Point, Any], seed: int) -> None:
    late = np.random.default_rng(seed).exponential(2.0, len(points))  # what a busy machine adds
    times = {p: truth(p, 2) * (1 + more) for p, more in zip(points, late, strict=True)}
    made = calibration.kernels(times, 1, 2)
    curves = [*made.gradient.values(), *made.update.values(), made.output]
    curves += [curve for widths in made.lookup.values() for curve in widths.values()]
    prices = [p for widths in made.cached.values() for p in widths.values()] + list(made.single.values())
    assert min(prices + [seconds for curve in curves for seconds in curve.seconds]) >= 0


def test_waking_threads_is_paid_once(points: dict[Point, Any]) -> None:
    made = [
        with_reading(calibration.kernels({p: truth(p, threads) for p in points}, 1, threads))
        for threads in (1, 2)
    ]
    assert made[0].single["fork"] == 0 and made[1].single["fork"] == pytest.approx(FORK, rel=0.02)
    one, two = (made[k].cached["float32"] for k in range(2))
    assert two == pytest.approx(one, rel=0.05)
    device = Device("cpu", (Tier("dram", 8e9, 1e10),), 1e11, threads=2, kernels=tuple(made))
    speeds, near = Speeds(device), at_distance(2.0**15)
    alone = Speeds(replace(device, threads=1))
    task = 4096, 256, 64, 4, near
    assert float(speeds.lookup(*task)) == float(alone.lookup(*task))
    several = np.array([16384, 65536]), 1024, 64, 4, near
    assert speeds.lookup(*several) - alone.lookup(*several) == pytest.approx(FORK, rel=0.1)
    part = speeds.lookup(*task, started=True)
    assert float(part) == pytest.approx(float(alone.lookup(*task)) - 50e-6, rel=0.05)
    assert float(speeds.start_lookup(1e6)) == pytest.approx(50e-6 + FORK, rel=0.02)


@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad", "adagrad", "adam"])
@pytest.mark.parametrize("width", [16, 32, 128])
def test_updates_come_back(speeds: Speeds, name: str, width: int) -> None:
    found = speeds.update(
        20_000, 10_000, width, 4, RowOptimizer.named(name), at_distance(1e7), table_rows=1 << 20
    )
    lines = width / 16
    sort = 40e-6 + NS * 20_000 * (1 + 2 + 2)
    expected = sort + 50e-6 + NS * (20_000 * lines + 10_000 * 5 * lines * (1 + STATES[name]))
    assert float(found) == pytest.approx(expected, rel=0.15)


def test_prices_are_fitted_and_never_negative() -> None:
    terms = [(1.0, 10.0, 100.0), (1.0, 20.0, 50.0), (1.0, 5.0, 300.0), (1.0, 80.0, 20.0)]
    prices = (3.0, 0.0, 0.25)
    taken = [float(np.dot(term, prices)) for term in terms]
    assert fitted(("a", "b", "c"), terms, taken) == pytest.approx({"a": 3.0, "b": 0.0, "c": 0.25}, abs=1e-9)
    odd = fitted(("a", "b"), [(1.0, 1.0), (1.0, 2.0), (1.0, 4.0)], [5.0, 4.0, 2.0])
    assert odd["b"] == 0 and odd["a"] > 0


def test_every_point_can_be_timed(points: dict[Point, Any], tmp_path: Path) -> None:
    kinds: dict[Any, Point] = {}
    for point in points:
        kinds.setdefault(point[:2] if point[0] in ("stage", "rule", "two", "codec") else point[0], point)
    some = {point: points[point] for point in kinds.values()} | reading(tmp_path)
    running = measure.timed(some, rounds=1)
    seen = list[Point]()
    try:
        while True:
            seen.append(next(running))
    except StopIteration as end:
        times = end.value
    assert seen == list(some) and set(times) == set(some)
    assert all(0 < seconds < 10 for seconds in times.values())
    assert set(reading_prices(times)) == {"read", "read_row", "read_id", "read_column"}


@pytest.mark.ranks(2)
def test_ranks_time_the_same_points_together() -> None:
    comm = world()
    calls = {
        (size,): measure.Collective(call, size, comm)
        for call, size in (("all_to_all", 64), ("all_reduce", 80))
    }
    running = measure.timed(calls, comm, rounds=1)
    try:
        while True:
            next(running)
    except StopIteration as end:
        assert len(set(comm.gather_objects(tuple(end.value.values())))) == 1


def test_a_sort_has_a_table_for_each_thread() -> None:
    before, memory = num_threads(), Memory(1 << 22)
    try:
        set_num_threads(2)
        sort = measure.Sort(memory, 1000, 16, "float32", 100, 2)
        assert len(sort.gradient().entries.ranges) == 2
    finally:
        set_num_threads(before)


def made_up() -> Topology:
    device = Device("cpu", (Tier("dram", 8e9, 1e10),), 1e11, threads=2)
    return Topology("here", {"cpu": device}, (Host(2, "cpu", Link(2e-5, 4e9)),), measured={"seconds": 3})


def run(tmp_path: Path, *argv: str) -> Any:
    app = typer.Typer()
    app.command()(plan_calibrate.calibrate)
    app.command()(plan_calibrate.topology)
    return CliRunner().invoke(app, list(argv))


def test_what_was_measured_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "calibrate", lambda ranks, progress: made_up())
    path = tmp_path / "new" / "machine.yaml"
    result = run(tmp_path, "calibrate", "-o", str(path), "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["path"] == str(path)
    assert read_config(path, Topology) == made_up()
    assert path.read_text().startswith("# What `tesserec plan calibrate` measured")
    assert "8 GB" in run(tmp_path, "calibrate", "-o", str(path)).output


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (calibrate.CalibrationError("ranks died"), 2)]
)
def test_nothing_is_written_where_measuring_did_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def fails(ranks: int, progress: Any) -> Topology:
        progress(1, 2, "x")
        raise error

    monkeypatch.setattr(calibrate, "calibrate", fails)
    path = tmp_path / "machine.yaml"
    path.write_text("before")
    result = run(tmp_path, "calibrate", "-o", str(path))
    assert result.exit_code == status and "nothing was written" in result.output
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_presets_are_printed_to_start_from(tmp_path: Path) -> None:
    assert "h100x8" in run(tmp_path, "topology").stdout.split()
    text = run(tmp_path, "topology", "h100x8").stdout
    (tmp_path / "mine.yaml").write_text(text)
    assert read_config(tmp_path / "mine.yaml", Topology).num_ranks == 8
