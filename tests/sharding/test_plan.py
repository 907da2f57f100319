"""A plan tiles its tables, or says where it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.sharding.placement import KINDS, make_plan
from tesserec.sharding.plan import (
    PlanError,
    Shard,
    ShardingPlan,
    column_wise,
    data_parallel,
    grid_shard,
    hot_cold,
    intersection,
    row_wise,
    table_column_wise,
    table_row_wise,
    table_wise,
)
from tests.sharding.tilings import Tiling, tilings

HOSTS = (0, 0, 1, 1)
SHAPE = (10, 6)
TABLES = {"a.C1": (10, 6), "a.C2": (1_000_000, 16), "b.C3": (3, 1), "b.user": (300_000, 8)}

CONSTRUCTORS: dict[str, Callable[[], tuple[Shard, ...]]] = {
    "data_parallel": lambda: data_parallel("t", SHAPE, range(4)),
    "table_wise": lambda: table_wise("t", SHAPE, 2),
    "row_wise": lambda: row_wise("t", SHAPE, range(4)),
    "row_wise, uneven": lambda: row_wise("t", SHAPE, range(4), cuts=[1, 1, 8]),
    "column_wise": lambda: column_wise("t", SHAPE, [3, 1]),
    "column_wise, uneven": lambda: column_wise("t", SHAPE, [3, 1, 0], cuts=[1, 2]),
    "column_wise, more ranks than columns": lambda: column_wise("t", (10, 2), range(4)),
    "table_row_wise": lambda: table_row_wise("t", SHAPE, 1, HOSTS),
    "table_column_wise": lambda: table_column_wise("t", SHAPE, 1, HOSTS),
    "grid_shard": lambda: grid_shard("t", SHAPE, [[0, 1], [2, 3]]),
    "hot_cold": lambda: hot_cold("t", SHAPE, 3, range(4)),
    "hot_cold, spans": lambda: hot_cold("t", SHAPE, [(8, 9), (2, 4)], range(4)),
    "hot_cold, nothing cold": lambda: hot_cold("t", SHAPE, 10, range(4)),
}


def held_times(plan: ShardingPlan, table: str, shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How many distinct rectangles of the plan have each element."""
    count = np.zeros(shape, np.int64)
    for rows, cols in plan.rectangles(table):
        count[slice(*rows), slice(*cols)] += 1
    return count


def holders(plan: ShardingPlan) -> npt.NDArray[np.int64]:
    """The ranks that hold each element of table "t", as bits."""
    found = np.zeros((12, 6), np.int64)
    for (rows, cols), ranks in plan.rectangles("t").items():
        found[slice(*rows), slice(*cols)] = sum(1 << rank for rank in ranks)
    return found


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_constructor_tiles_the_table(name: str) -> None:
    shape = (10, 2) if "more ranks" in name else SHAPE
    plan = ShardingPlan(CONSTRUCTORS[name](), 4)
    plan.check({"t": shape})
    assert (held_times(plan, "t", shape) == 1).all()


def test_constructors_give_the_ranks_what_they_say() -> None:
    assert [s.rows for s in row_wise("t", (10, 6), range(4))] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert [(s.rows, s.rank) for s in table_row_wise("t", (4, 6), 1, HOSTS)] == [((0, 2), 2), ((2, 4), 3)]
    assert [(s.cols, s.rank) for s in table_column_wise("t", (4, 6), 0, HOSTS)] == [((0, 3), 0), ((3, 6), 1)]
    plan = ShardingPlan(hot_cold("t", (10, 6), [(2, 4)], range(2)), 2)
    held = {rows: ranks for (rows, _), ranks in plan.rectangles("t").items()}
    assert held == {(0, 2): [0], (2, 4): [0, 1], (4, 6): [0], (6, 10): [1]}
    assert plan.replicas(Shard("t", (2, 4), (0, 6), 1)) == [0, 1]


def test_order_does_not_depend_on_how_shards_are_listed() -> None:
    shards = (*row_wise("b", SHAPE, range(4)), *hot_cold("a", SHAPE, 2, range(4)))
    mixed = (shards[0], *reversed(shards[1:]))
    plan = ShardingPlan(mixed, 4)
    assert plan == ShardingPlan(shards, 4)
    assert list(plan.tables) == ["b", "a"]
    assert [s.rank for s in plan.of("b")] == [0, 1, 2, 3]
    assert sorted(map(str, plan.shards)) == sorted(str(s) for rank in range(4) for s in plan.on(rank))


@settings(max_examples=60, deadline=None)
@given(tilings())
def test_random_tilings_are_accepted_and_come_back_from_json(tiling: Tiling) -> None:
    plan = tiling.plan("t")
    plan.check({"t": tiling.shape})
    assert ShardingPlan.from_json(plan.to_json()) == plan


@settings(max_examples=60, deadline=None)
@given(tilings(), st.data())
def test_random_flaws_are_found(tiling: Tiling, data: st.DataObject) -> None:
    """A shard taken away leaves a gap, but for replicas; one that grows overlaps, or leaves the table."""
    plan = tiling.plan("t")
    shard = data.draw(st.sampled_from(plan.shards))
    others = tuple(s for s in plan.shards if s != shard)
    (top, bottom), (left, right) = shard.rectangle
    if len(plan.replicas(shard)) == 1:
        rows, cols = re.escape(f"[{top}, "), re.escape(f"[{left}, ")
        with pytest.raises(
            PlanError, match=f"'t': no rank holds rows {rows}.*columns {cols}|no shard of 't'"
        ):
            ShardingPlan(others, plan.num_ranks).check({"t": tiling.shape})
    grown = replace(shard, rows=(top, bottom + 1)), replace(shard, cols=(left, right + 1))
    with pytest.raises(PlanError, match=r"'t': .* (overlap in|is not inside the table|no rank holds)"):
        ShardingPlan((*others, data.draw(st.sampled_from(grown))), plan.num_ranks).check({"t": tiling.shape})


def test_errors_name_table_rectangles_ranks_and_cure() -> None:
    def refused(shards: tuple[Shard, ...]) -> str:
        with pytest.raises(PlanError) as error:
            ShardingPlan(shards, 2).check({"t": (8, 4)})
        return str(error.value)

    top, whole = Shard("t", (0, 4), (0, 4), 0), Shard("t", (0, 8), (0, 4), 0)
    assert refused((top, Shard("t", (3, 8), (0, 4), 1))) == (
        "table 't': rows [0, 4) × columns [0, 4) of rank 0 and rows [3, 8) × columns [0, 4) of rank 1 "
        "overlap in rows [3, 4) × columns [0, 4): cut them apart, or give both ranks the same rectangle, "
        "which is then a replica"
    )
    assert "no rank holds rows [4, 8) × columns [0, 4): add a shard that does" in refused((top,))
    assert "of rank 2: ranks are 0 to 1" in refused((replace(whole, rank=2),))
    assert "is not inside the table, which has 8 rows" in refused((replace(whole, rows=(0, 9)),))
    assert "is empty" in refused((whole, replace(whole, cols=(2, 2))))
    assert "twice on one rank" in refused((whole, whole))
    assert "no shard of 't'" in refused(())
    assert "the plan has 'u'; the model has 't'" in refused((whole, replace(whole, table="u")))
    with pytest.raises(PlanError, match=r"cuts \[5, 2\] of 8 rows over 3 ranks: wanted 2 rising numbers"):
        row_wise("t", (8, 4), range(3), cuts=[5, 2])
    with pytest.raises(PlanError, match="host 2: no rank is there"):
        table_row_wise("t", (8, 4), 2, HOSTS)


@settings(max_examples=40, deadline=None)
@given(tilings(shape=(12, 6)), tilings(shape=(12, 6)))
def test_diff_is_exactly_what_changes_hands(before: Tiling, after: Tiling) -> None:
    old, new = before.plan("t"), after.plan("t")
    changed = holders(old) != holders(new)
    moved = np.zeros((12, 6), bool)
    for move in old.diff(new):
        piece = moved[slice(*move.rows), slice(*move.cols)]
        assert not piece.any() and move.before != move.after
        piece[...] = True
    np.testing.assert_array_equal(moved, changed)


def test_diff_reads_well() -> None:
    old = ShardingPlan((*table_wise("C1", (10, 4), 0), *table_wise("C2", (5, 4), 1)), 2)
    new = ShardingPlan((*row_wise("C1", (10, 4), [0, 1]), *table_wise("C3", (5, 4), 1)), 2)
    assert [str(move) for move in old.diff(new)] == [
        "C1: rows [5, 10) × columns [0, 4): rank 0 → rank 1",
        "C2: rows [0, 5) × columns [0, 4): rank 1 → nobody",
        "C3: rows [0, 5) × columns [0, 4): nobody → rank 1",
    ]
    assert old.diff(old) == []


def test_files_hold_a_line_for_each_rectangle(tmp_path: Path) -> None:
    plan = make_plan(TABLES, 4, {"C2": "hot_cold:5000"}, hosts=HOSTS)
    plan.save(tmp_path / "plan.json")
    assert ShardingPlan.load(tmp_path / "plan.json") == plan
    text = (tmp_path / "plan.json").read_text()
    assert '   {"rows": [0, 5000], "cols": [0, 16], "ranks": [0, 1, 2, 3]},\n' in text
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a sharding plan"),
        ("[1]", "not a sharding plan"),
        ('{"format": "tesserec sharding plan", "version": 9}', "version 9, wanted"),
        ('{"format": "tesserec sharding plan", "version": 1, "num_ranks": 2}', "KeyError: 'tables'"),
    ],
)
def test_other_files_are_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=f"plan.json: .*{message}"):
        ShardingPlan.load(tmp_path / "plan.json")


def test_json_is_what_the_docs_say() -> None:
    plan = ShardingPlan(table_wise("t", (8, 4), 1), 2, {"t": "ssd"}, {"topology": "laptop"})
    shards = [{"rows": [0, 8], "cols": [0, 4], "ranks": [1]}]
    assert json.loads(plan.to_json()) == {
        "format": "tesserec sharding plan",
        "version": 2,
        "num_ranks": 2,
        "planner": {"topology": "laptop"},
        "tables": {"t": {"rows": 8, "cols": 4, "tier": "ssd", "shards": shards}},
    }
    read = ShardingPlan.from_json(plan.to_json())
    assert read == plan and read.tiers == {"t": "ssd"} and read.planner == {"topology": "laptop"}


def test_files_of_version_1_are_still_read() -> None:
    text = (
        '{"format": "tesserec sharding plan", "version": 1, "num_ranks": 2, '
        '"tables": {"t": [{"rows": [0, 8], "cols": [0, 4], "ranks": [0, 1]}]}}'
    )
    assert ShardingPlan.from_json(text) == ShardingPlan(data_parallel("t", (8, 4), range(2)), 2)


def test_tiers_are_of_tables_that_there_are() -> None:
    with pytest.raises(PlanError, match="tiers of 'u'; the model has 't'"):
        ShardingPlan(table_wise("t", (8, 4), 0), 1, {"u": "ssd"}).check({"t": (8, 4)})


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_plan(kind: str, num_ranks: int) -> None:
    plan = make_plan(TABLES, num_ranks, default=kind, hosts=HOSTS[:num_ranks])
    plan.check(TABLES)
    assert plan == make_plan(TABLES, num_ranks, default=kind, hosts=HOSTS[:num_ranks])
    assert list(plan.tables) == list(TABLES)


def test_auto_replicates_small_tables_cuts_large_ones_and_balances_the_rest() -> None:
    tables = {"small": (1000, 16), "huge": (9_000_000, 16)} | {f"t{i}": (100_000 + i, 16) for i in range(8)}
    plan = make_plan(tables, 4)
    assert plan.rectangles("small") == {((0, 1000), (0, 16)): [0, 1, 2, 3]}
    assert len(plan.of("huge")) == 4
    assert all(len(plan.of(f"t{i}")) == 1 for i in range(8))
    held = plan.bytes_per_rank()
    assert max(held) < 1.01 * min(held)
    assert plan.bytes_per_rank(dict.fromkeys(tables, 2)) == [size // 2 for size in held]


def test_kinds_are_chosen_by_name_own_name_and_pattern() -> None:
    kinds = {"a.*": "row_wise", "C2": "table_wise:3", "*": "column_wise", "b.C3": "data_parallel"}
    plan = make_plan(TABLES, 4, kinds)
    cut = {
        table: {(s.rows[1] - s.rows[0], s.cols[1] - s.cols[0]) for s in plan.of(table)} for table in TABLES
    }
    assert cut["a.C1"] == {(2, 6), (3, 6)} and cut["a.C2"] == {(250_000, 16)}
    assert cut["b.C3"] == {(3, 1)} and cut["b.user"] == {(300_000, 2)}
    assert [s.rank for s in make_plan(TABLES, 4, {"C2": "table_wise:3"}).of("a.C2")] == [3]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"C9": "row_wise"}, "'C9': no such table; the model has a.C1"),
        ({"C1": "rowwise"}, "'a.C1': sharding 'rowwise': wanted one of auto, data_parallel"),
        ({"C1": "row_wise:3"}, "'row_wise:3'"),
        ({"C1": "table_wise:4"}, "'a.C1': rank 4: ranks are 0 to 3"),
        ({"C1": "table_row_wise:7"}, "host 7: no rank is there"),
    ],
)
def test_wrong_kinds_are_named(kinds: dict[str, str], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        make_plan(TABLES, 4, kinds)


def test_intersections() -> None:
    assert intersection(((0, 4), (0, 4)), ((2, 9), (3, 5))) == ((2, 4), (3, 4))
    assert intersection(((0, 4), (0, 4)), ((4, 9), (0, 4))) is None
