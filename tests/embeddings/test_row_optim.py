"""Row optimizers equal their formula row by row, touch nothing else, and resume exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesserec.autograd import Tensor
from tesserec.autograd.module import StateError
from tesserec.autograd.workers import num_threads, set_num_threads
from tesserec.embeddings import (
    ROW_OPTIMIZERS,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Normal,
    Pool,
    RowAdagrad,
    RowSGD,
)
from tests import naive

MAKE: Any = ROW_OPTIMIZERS
OPTIONS = {"lr": 0.05, "weight_decay": 0.02}
EPS = {"sgd": 0.0, "adagrad": 1e-10, "rowwise_adagrad": 1e-10, "adam": 1e-8}
every_optimizer = pytest.mark.parametrize("name", list(ROW_OPTIMIZERS))


def collection_of(width: int, rows: tuple[int, int] = (9, 200)) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig("a", rows[0], width, ("x", "y"), init=Normal(1)),
        EmbeddingBagConfig("b", rows[1], width, ("z",), init=Normal(1)),
    ]
    return EmbeddingBagCollection(tables, seed=0)


def batch_of(collection: EmbeddingBagCollection, seed: int, size: int = 20) -> KeyedJaggedTensor:
    """Many duplicate ids."""
    rng = np.random.default_rng(seed)
    a, b = (table.num_embeddings for table in collection.table_set.tables)
    ids = {"x": rng.integers(0, a, size), "y": rng.integers(0, a, size), "z": rng.integers(0, b, size)}
    return KeyedJaggedTensor.from_dense(ids)


def train(collection: EmbeddingBagCollection, optimizer: Any, seeds: range, size: int = 20) -> None:
    for seed in seeds:
        values = collection(batch_of(collection, seed, size)).values
        (values * values * values).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@every_optimizer
@pytest.mark.parametrize("width", [1, 3, 16, 33])
def test_steps_equal_oracle(name: str, width: int) -> None:
    collection = collection_of(width)
    pool: Any = collection.pools[0]
    optimizer = MAKE[name](collection.named_parameters(), **OPTIONS)
    wanted = pool.data.astype(np.float64)
    states: list[dict[str, Any]] = [
        {slot: np.zeros(width) for slot in ("total", "mean", "square")} for _ in wanted
    ]
    for step in range(1, 6):
        values = collection(batch_of(collection, step)).values
        (values * values * values).sum().backward()
        grad = pool.grad.to_dense().astype(np.float64)
        for r in pool.grad.rows:
            naive.row_update(name, wanted[r], grad[r], states[r], step, OPTIONS | {"eps": EPS[name]})
        before = pool.data.copy()
        optimizer.step()
        untouched = np.setdiff1d(np.arange(len(before)), pool.grad.rows)
        assert np.array_equal(pool.data[untouched], before[untouched])
        np.testing.assert_allclose(pool.data, wanted, rtol=2e-4, atol=2e-5)
        optimizer.zero_grad()
        pool.data[...] = wanted.astype(np.float32)  # no drift: each step is compared on its own


@every_optimizer
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    results, before = [], num_threads()
    try:
        for threads in (1, 2, 4):
            set_num_threads(threads)
            collection = collection_of(16, (3000, 50_000))
            optimizer = MAKE[name](collection.named_parameters(), lr=0.1)
            train(collection, optimizer, range(3), 20_000)
            results.append(collection.pools[0].data)
    finally:
        set_num_threads(before)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


@every_optimizer
def test_resumes_exactly(name: str) -> None:
    straight, broken = collection_of(3), collection_of(3)
    make = MAKE[name]
    train(straight, make(straight.named_parameters(), **OPTIONS), range(6))
    first = make(broken.named_parameters(), **OPTIONS)
    train(broken, first, range(3))
    second = make(broken.named_parameters(), **OPTIONS)
    second.load_state_dict({key: np.array(value) for key, value in first.state_dict().items()})
    train(broken, second, range(3, 6))
    assert np.array_equal(straight.pools[0].data, broken.pools[0].data)


def test_state_can_be_cut_by_table() -> None:
    collection = collection_of(3)
    pool: Any = collection.pools[0]
    optimizer = RowAdagrad([("pool", pool)], lr=0.1, initial=0.5)
    state = optimizer.state_dict()
    assert list(state) == ["steps", "total.pool"]
    assert [len(state["total.pool"][table.rows]) for table in pool.tables] == [9, 200]
    assert (state["total.pool"] == 0.5).all()
    with pytest.raises(StateError, match=r"missing 'total\.pool'"):
        optimizer.load_state_dict({"steps": 1})


def test_adagrad_is_gentler_on_frequent_rows() -> None:
    collection = collection_of(3)
    pool: Any = collection.pools[0]
    assert isinstance(pool, Pool)
    optimizer = RowAdagrad([("pool", pool)], lr=1.0)
    moves = []
    for _ in range(2):
        before = pool.data[0].copy()
        collection(KeyedJaggedTensor.from_dense({"x": [0], "y": [1], "z": [0]})).values.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moves.append(np.abs(pool.data[0] - before))
    np.testing.assert_allclose(moves[0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(moves[1], 0.5**0.5, rtol=1e-5)


def test_only_pools_are_taken_and_pools_without_gradient_left_alone() -> None:
    with pytest.raises(TypeError, match="'w' is no Pool"):
        MAKE["sgd"]([("w", Tensor([1.0], requires_grad=True))], lr=0.1)
    collection = collection_of(3)
    before = collection.pools[0].data.copy()
    RowSGD([("pool", collection.pools[0])], lr=0.1).step()
    assert np.array_equal(collection.pools[0].data, before)
