"""Groups of replicas train apart and are averaged: only touched rows travel, and all groups end up equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesserec.autograd import SGD, Module, Tensor, gradients
from tesserec.autograd.losses import bce_with_logits
from tesserec.autograd.tensor import accumulate
from tesserec.embeddings import (
    ROW_OPTIMIZERS,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Pool,
    RowOptimizer,
    planning,
)
from tesserec.sharding import replicas
from tesserec.sharding.comm import Comm
from tesserec.sharding.model import ShardedModel, shard, table_shapes
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import even_cut
from tesserec.sharding.replicas import Groups, Replicas, touched_rows
from tesserec.sharding.threads import run_ranks

BATCH, ROWS = 16, {"a": 40, "b": 7}


class Scores(Module):
    """Σ of all pooled vectors, times a dense weight."""

    def __init__(self, data_type: Any = "float32"):
        tables = [
            EmbeddingBagConfig(name, rows, 4, (name,), data_type=data_type) for name, rows in ROWS.items()
        ]
        self.vectors = EmbeddingBagCollection(tables, seed=5)
        self.weight = Tensor(np.ones(8, np.float32), requires_grad=True)

    def forward(self, kjt: Any) -> Tensor:
        total: Tensor = (self.vectors(kjt).values * self.weight).sum(axis=1)
        return total


def global_batch(step: int) -> tuple[KeyedJaggedTensor, Any]:
    rng = np.random.default_rng(step)
    lengths = rng.integers(0, 4, (2, BATCH))
    ids = [rng.integers(0, rows, n) for rows, n in zip(ROWS.values(), lengths.sum(axis=1), strict=True)]
    kjt = KeyedJaggedTensor.from_lengths(tuple(ROWS), np.concatenate(ids), lengths)
    return kjt, rng.integers(0, 2, BATCH).astype(np.float32)


def optimizers(model: Module, name: str = "sgd") -> list[Any]:
    named = list(model.named_parameters())
    pools = [(name, p) for name, p in named if isinstance(p, Pool)]
    return [
        SGD([(name, p) for name, p in named if not isinstance(p, Pool)], lr=0.1),
        ROW_OPTIMIZERS[name](pools, lr=0.5),
    ]


def learn(model: Module, step: int, lo: int, hi: int, scale: float = 1.0) -> None:
    """Add the gradients of samples lo … hi-1 of a batch, as part of the whole batch's mean loss."""
    kjt, labels = global_batch(step)
    loss = bce_with_logits(model(kjt.select(lo, hi)), labels[lo:hi], reduction="sum")
    accumulate(gradients(loss, np.float32(scale / BATCH)))


def replicated(comm: Comm, groups: int, sync_every: int, data_type: Any = "float32") -> ShardedModel:
    with planning():
        model = Scores(data_type)
    plan = make_plan(table_shapes(model), comm.size // groups, default="row_wise")
    return shard(model, plan, comm, replicas=Replicas(groups, sync_every))


def tables(model: ShardedModel) -> dict[Any, Any]:
    """{(table, rows, columns): what this rank has}."""
    return {
        (held.table, held.rows, held.cols): array.copy()
        for collection in model.collections.values()
        for held, array in collection.rectangles()
    }


def test_groups_averaged_in_every_step_are_one_model() -> None:
    """With SGD the mean of the groups' steps is the step of the mean gradient."""
    want = Scores()
    made = optimizers(want)
    for step in range(3):
        learn(want, step, 0, BATCH)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()

    def body(comm: Comm) -> None:
        model = replicated(comm, 2, 1)
        made = optimizers(model)
        for step in range(3):
            learn(model, step, *even_cut(BATCH, comm.size)[comm.rank])
            model.step(made)
        for (table, rows, cols), array in tables(model).items():
            whole = want.vectors.local_state()[table]
            np.testing.assert_allclose(array, whole[slice(*rows), slice(*cols)], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dict(model.named_parameters())["weight"].data, want.weight.data, rtol=1e-5)

    run_ranks(4, body)


@pytest.mark.parametrize("data_type", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad", "adam"])
def test_groups_train_apart_between_and_are_the_mean_of_themselves_then(
    name: str, data_type: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group is a model of its own that sees its half of every batch, but for the dense parameters."""
    monkeypatch.setattr(replicas, "AT_ONCE", 3)
    tolerance: dict[str, Any]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if data_type == "float32" else {"rtol": 2e-2, "atol": 2e-3}

    def body(comm: Comm) -> None:
        model = replicated(comm, 2, 2, data_type)
        made: list[Any] = optimizers(model, name)
        rows: RowOptimizer = made[1]
        for step in range(3):
            learn(model, step, *even_cut(BATCH, comm.size)[comm.rank])
            model.step(made)
            held = comm.gather_objects(tables(model))
            apart = any(np.any(array != held[1][key]) for key, array in held[0].items())
            assert apart == ((step + 1) % 2 != 0)
        before = comm.gather_objects((values_of(rows), state_of(rows)))
        model.synchronize(made)
        for what, got in enumerate((values_of(rows), state_of(rows))):
            for key, array in got.items():
                mean = (before[0][what][key] + before[1][what][key]) / 2
                np.testing.assert_allclose(array, mean, **tolerance)
        held = comm.gather_objects((tables(model), state_of(rows)))
        for one, other in zip(*held, strict=True):
            for key, array in one.items():
                np.testing.assert_array_equal(array, other[key])

    run_ranks(2, body)


def values_of(optimizer: RowOptimizer) -> dict[Any, Any]:
    return {name: pool.values(slice(None)) for name, pool in optimizer.pools.items()}


def state_of(optimizer: RowOptimizer) -> dict[Any, Any]:
    return {(n, s): a.copy() for n, slots in optimizer.state.items() for s, a in slots.items()}


def test_only_touched_rows_travel() -> None:
    def body(comm: Comm) -> tuple[int, int]:
        model = replicated(comm, 2, 1)
        made = optimizers(model)
        learn(model, 0, *even_cut(BATCH, comm.size)[comm.rank])
        rows = [touched_rows(p.grad) for p in model.parameters() if isinstance(p, Pool)]
        before = model.groups.peers.bytes_sent
        model.step(made)
        return sum(map(len, rows)), model.groups.peers.bytes_sent - before

    for touched, sent in run_ranks(2, body):
        union = min(sum(ROWS.values()), 2 * touched)
        assert sent <= 8 * touched + union * 16 + 64 * 2


def test_touched_rows_are_those_of_the_gradient() -> None:
    model = Scores()
    learn(model, 0, 0, BATCH)
    for pool in model.vectors.pools:
        np.testing.assert_array_equal(touched_rows(pool.grad), pool.grad.rows)


def test_groups_are_of_one_size() -> None:
    def body(comm: Comm) -> None:
        with pytest.raises(ValueError, match="3 ranks are not 2 groups of one size"):
            Groups(comm, Replicas(2))

    run_ranks(3, body)
    with pytest.raises(ValueError, match="sync_every is 0"):
        Replicas(2, 0)
