"""Row optimizers give the same bits whatever columns of a table are where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.embeddings import ROW_OPTIMIZERS, EmbeddingConfig, Normal, Origin, Pool, RowGrad
from tesserec.sharding.columns import SplitRows
from tesserec.sharding.comm import Comm
from tesserec.sharding.plan import ShardingPlan, column_wise, data_parallel, grid_shard, row_wise
from tesserec.sharding.threads import run_ranks
from tests.sharding.tilings import tilings

MAKE: Any = ROW_OPTIMIZERS
SHAPES = {"a": (30, 40), "b": (50, 40), "c": (20, 7)}
WORLD = 4
PLAN = ShardingPlan(
    (
        *column_wise("x.a", SHAPES["a"], [2, 0, 1], cuts=[3, 20]),
        *grid_shard("x.b", SHAPES["b"], [[0, 1], [2, 2], [1, 0]]),
        *grid_shard("x.b", SHAPES["b"], [[3, 3], [3, 3], [3, 3]]),  # rank 3 has all, in pieces
        *row_wise("x.c", SHAPES["c"], [0, 1, 2]),
    ),
    WORLD,
)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "l2": {"weight_decay": 0.1, "decay": "l2"},
    "decoupled": {"weight_decay": 0.1, "decay": "decoupled"},
    "max_norm": {"max_norm": 1.5, "clip": 0.5, "table_lr": {"a": 0.3}},
}
every_optimizer = pytest.mark.parametrize("name", list(ROW_OPTIMIZERS))


def configs(shapes: Any, data_type: Any = "float32") -> dict[str, EmbeddingConfig]:
    return {
        name: EmbeddingConfig(name, rows, width, (name,), data_type=data_type, init=Normal(0.5))
        for name, (rows, width) in shapes.items()
    }


def gradient(config: EmbeddingConfig, step: int) -> tuple[Any, Any]:
    """(touched rows, their gradients) of a whole table."""
    rng = np.random.default_rng([step, config.num_embeddings])
    rows = np.flatnonzero(rng.random(config.num_embeddings) < 0.5)
    return rows, rng.standard_normal((len(rows), config.embedding_dim)).astype(config.compute_dtype)


def pools_of(origins: Sequence[Origin]) -> list[Pool]:
    """Rectangles in pools, as a collection would have them."""
    kinds = groupby(sorted(origins, key=lambda o: o.cols[1] - o.cols[0]), lambda o: o.cols[1] - o.cols[0])
    groups = [list(group) for _, group in kinds]
    return [Pool([origin.config for origin in group], seed=3, origins=group) for group in groups]


def set_gradient(pool: Pool, step: int) -> None:
    """What a rank gets for its rectangles of the tables."""
    found = []
    for table in pool.tables:
        origin = table.origin
        rows, values = gradient(origin.table, step)
        here = (rows >= origin.rows[0]) & (rows < origin.rows[1])
        found.append((rows[here] - origin.rows[0] + table.first_row, values[here][:, slice(*origin.cols)]))
    rows, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    pool.grad = RowGrad.from_rows(pool.bounds, rows, values)


def train(pools: Sequence[Pool], make: Any, step: Any) -> Any:
    """The optimizer after three steps."""
    optimizer = make([(f"pool{i}", pool) for i, pool in enumerate(pools)])
    for number in range(3):
        for pool in pools:
            set_gradient(pool, number)
        step(optimizer)
        optimizer.zero_grad()
    return optimizer


def check(plan: ShardingPlan, tables: dict[str, EmbeddingConfig], make: Any) -> None:
    """Three steps on the ranks of `plan` leave in each rectangle what an unsharded table has there."""
    whole = {name: pools_of([Origin.whole(config)])[0] for name, config in tables.items()}
    wanted = {name: train([pool], make, lambda o: o.step()).state["pool0"] for name, pool in whole.items()}

    def body(comm: Comm) -> None:
        shards = [(tables[s.table.removeprefix("x.")], s) for s in plan.on(comm.rank)]
        pools = pools_of([Origin(config, shard.rows, shard.cols) for config, shard in shards])
        optimizer = train(pools, make, SplitRows(comm, plan, dict.fromkeys(pools, "x.")).step)
        for i, pool in enumerate(pools):
            for table in pool.tables:
                name, rows, cols = table.origin.table.name, *map(slice, *zip(*_spans(table), strict=True))
                assert np.array_equal(pool.data[table.rows], whole[name].data[rows, cols]), (name, rows, cols)
                for slot, array in optimizer.state[f"pool{i}"].items():
                    part = wanted[name][slot][rows]
                    assert np.array_equal(array[table.rows], part if part.ndim == 1 else part[:, cols]), slot

    run_ranks(plan.num_ranks, body)


def _spans(table: Any) -> tuple[Any, Any]:
    return table.origin.rows, table.origin.cols


@every_optimizer
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_split_tables_have_the_bits_of_whole_ones(name: str, setting: str) -> None:
    options = {"lr": 0.05} | SETTINGS[setting]
    check(PLAN, configs(SHAPES), lambda pools: MAKE[name](pools, **options))


@pytest.mark.parametrize("data_type", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad", "partial_rowwise_lamb", "lars_sgd"])
def test_so_they_do_in_every_type(name: str, data_type: Any) -> None:
    check(PLAN, configs(SHAPES, data_type), lambda pools: MAKE[name](pools, lr=0.05, weight_decay=0.1))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_tiling_has_the_bits_of_the_whole_table(data: Any) -> None:
    tiling = data.draw(tilings(num_ranks=3))
    check(tiling.plan("x.t"), configs({"t": tiling.shape}), lambda pools: MAKE["lamb"](pools, lr=0.05))


@pytest.mark.parametrize("name", ["adam", "rowwise_adagrad"])
def test_only_numbers_that_a_formula_looks_at_travel(name: str) -> None:
    tables = configs(SHAPES)
    plan = ShardingPlan(tuple(s for t in SHAPES for s in data_parallel("x." + t, SHAPES[t], [0, 1])), 2)
    split = ShardingPlan((*column_wise("x.a", SHAPES["a"], [0, 1]), *plan.of("x.b"), *plan.of("x.c")), 2)

    def sent(plan: ShardingPlan) -> Any:
        def body(comm: Comm) -> int:
            shards = [(tables[s.table.removeprefix("x.")], s) for s in plan.on(comm.rank)]
            pools = pools_of([Origin(config, shard.rows, shard.cols) for config, shard in shards])
            steps = SplitRows(comm, plan, dict.fromkeys(pools, "x."))
            train(pools, lambda pools: MAKE[name](pools, lr=0.1), steps.step)
            return comm.bytes_sent

        return run_ranks(2, body)

    touched = sum(len(gradient(tables["a"], step)[0]) for step in range(3))
    assert sent(plan) == [0, 0]
    assert sent(split) == ([0, 0] if name == "adam" else [touched * 20 * 4 + 3 * 8] * 2)


def test_a_learning_rate_for_no_table_is_an_error_on_all_ranks() -> None:
    def body(comm: Comm) -> None:
        tables = configs(SHAPES)
        pools = pools_of(
            [Origin(tables["a"], s.rows, s.cols) for s in PLAN.on(comm.rank) if s.table == "x.a"]
        )
        optimizer = MAKE["sgd"]([(str(i), p) for i, p in enumerate(pools)], lr=0.1, table_lr={"c": 1, "d": 1})
        with pytest.raises(ValueError, match=r"table_lr: no table 'd'; have x\.a, x\.b, x\.c"):
            SplitRows(comm, PLAN, dict.fromkeys(pools, "x.")).step(optimizer)

    run_ranks(WORLD, body)


def test_ranks_that_disagree_are_told() -> None:
    tables = configs({"a": SHAPES["a"]})
    plan = ShardingPlan(column_wise("x.a", SHAPES["a"], [0, 1]), 2)

    def body(comm: Comm) -> None:
        [shard] = plan.on(comm.rank)
        pools = pools_of([Origin(tables["a"], shard.rows, shard.cols)])
        set_gradient(pools[0], comm.rank)
        SplitRows(comm, plan, dict.fromkeys(pools, "x.")).step(MAKE["lamb"]([("pool", pools[0])], lr=0.1))

    with pytest.raises(RuntimeError, match="all ranks must step with the gradient of the same batch"):
        run_ranks(2, body)
