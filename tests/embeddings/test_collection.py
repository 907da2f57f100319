"""Collections equal bag-by-bag sums over their tables, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import Tensor, no_grad
from tesserec.autograd.gradcheck import gradcheck
from tesserec.autograd.workers import num_threads, parallel_map, set_num_threads
from tesserec.embeddings import (
    Constant,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    InvalidIdError,
    KeyedJaggedTensor,
    KeyedTensor,
    Normal,
    TableError,
)
from tests import naive
from tests.embeddings.strategies import batches, limits, table_sets

Bag: Any = EmbeddingBagConfig  # to be given what a type checker would refuse
Plain: Any = EmbeddingConfig
Bags: Any = EmbeddingBagCollection
quick = settings(max_examples=60, deadline=None)


def readers(collection: EmbeddingBagCollection) -> list[tuple[str, EmbeddingBagConfig]]:
    """(feature, table) of each output key."""
    tables: Any = collection.table_set.tables
    return [(feature, table) for table in tables for feature in table.feature_names]


def bags_of(kjt: KeyedJaggedTensor, feature: str) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    samples = range(kjt.batch_size)
    return [(naive.bag(kjt, feature, b), naive.bag_weights(kjt, feature, b)) for b in samples]


@quick
@given(st.data())
def test_pooled_equals_oracle(data: Any) -> None:
    tables = data.draw(table_sets())
    kjt = data.draw(batches(limits(tables), shared=True))
    collection = EmbeddingBagCollection(tables, seed=3)
    state, out = collection.state_dict(), collection(kjt)
    vectors = out.to_dict()
    assert out.values.shape == (kjt.batch_size, sum(out.lengths)) and out.values.dtype == np.float32
    for (key, got), (feature, table) in zip(vectors.items(), readers(collection), strict=True):
        assert key in (feature, f"{feature}@{table.name}")
        rows, mean = state[table.name], table.pooling == "mean"
        wanted = np.array([naive.pooled(rows, *bag, mean) for bag in bags_of(kjt, feature)]).reshape(
            kjt.batch_size, table.embedding_dim
        )
        np.testing.assert_allclose(got.data, wanted, rtol=2e-5, atol=2e-5)


@quick
@given(st.data())
def test_gradient_equals_oracle(data: Any) -> None:
    tables = data.draw(table_sets())
    kjt = data.draw(batches(limits(tables), shared=True))
    collection = EmbeddingBagCollection(tables, seed=3)
    out = collection(kjt)
    g = np.random.default_rng(1).standard_normal(out.values.shape).astype(np.float32)
    out.values.backward(g)
    columns = np.cumsum([0, *out.lengths])
    for pool in collection.pools:
        grad = pool.grad
        wanted = np.zeros(pool.shape)
        touched: set[int] = set()
        for i, (feature, table) in enumerate(readers(collection)):
            for held in pool.tables:
                if held.config is table:
                    bags, part = bags_of(kjt, feature), g[:, columns[i] : columns[i + 1]]
                    shape = (table.num_embeddings, table.embedding_dim)
                    wanted[held.rows] += naive.pooled_gradient(shape, bags, part, table.pooling == "mean")
                    touched |= {held.first_row + int(i) for ids, _ in bags for i in ids}
        assert grad.rows.tolist() == sorted(touched) and grad.values.shape == (len(touched), pool.shape[1])
        np.testing.assert_allclose(grad.to_dense(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_gradient_matches_finite_differences(pooling: Any, weighted: bool) -> None:
    tables = [
        EmbeddingBagConfig("a", 4, 3, ("x", "y"), pooling=pooling, data_type="float64"),
        EmbeddingBagConfig("b", 3, 2, ("x",), pooling=pooling, data_type="float64"),
    ]
    collection = EmbeddingBagCollection(tables, seed=0)
    kjt = KeyedJaggedTensor.from_dict({"x": [[0, 2, 2], [], [1]], "y": [[3], [3, 0], [1]]})
    if weighted:
        weights = np.linspace(-1, 2, len(kjt.values), dtype=np.float32)
        kjt = KeyedJaggedTensor(kjt.keys, kjt.values, kjt.offsets, weights)

    def loss(*_: Tensor) -> Tensor:
        values: Tensor = collection(kjt).values
        return values * values * values

    gradcheck(loss, list(collection.parameters()))


def test_sequence_keeps_one_row_per_id() -> None:
    tables = [EmbeddingConfig("c", 5, 3, ("y",)), EmbeddingConfig("b", 6, 16, ("x",))]
    tables.append(EmbeddingConfig("a", 5, 3, ("x",)))
    collection = EmbeddingCollection(tables, seed=0)
    kjt = KeyedJaggedTensor.from_dict({"z": [[9], [9]], "y": [[4], []], "x": [[0, 2, 2], [1]]})
    out, state = collection(kjt), collection.state_dict()
    assert list(out) == ["y", "x@b", "x@a"]
    assert np.array_equal(out["x@a"].values.data, state["a"][[0, 2, 2, 1]])
    assert np.array_equal(out["y"].values.data, state["c"][[4]])
    assert np.array_equal(out["x@b"].values.data, state["b"][[0, 2, 2, 1]])
    assert out["x@b"].lengths.tolist() == [3, 1]
    (out["x@a"].values.sum() + out["y"].to_padded_dense(2).sum() * 3.0).backward()
    by_width = {pool.shape[1]: pool.grad for pool in collection.pools}
    assert by_width[3].to_dense()[:, 0].tolist() == [0, 0, 0, 0, 3, 1, 1, 2, 0, 0] and by_width[16] is None


def test_sequence_gradient_matches_finite_differences() -> None:
    collection = EmbeddingCollection([EmbeddingConfig("a", 4, 3, ("x", "y"), data_type="float64")], seed=0)
    kjt = KeyedJaggedTensor.from_dict({"x": [[0, 2, 2], [], [1]], "y": [[3], [3, 0], [1]]})

    def loss(*_: Tensor) -> Tensor:
        x, y = (bags.to_padded_dense(2) for bags in collection(kjt).values())
        product: Tensor = x * y
        return product

    gradcheck(loss, list(collection.parameters()))


@pytest.mark.parametrize("bad", [-1, 5, 2**62, -(2**63)])
@pytest.mark.parametrize("kind", [EmbeddingBagCollection, EmbeddingCollection])
def test_id_outside_its_table_is_named(kind: Any, bad: int) -> None:
    collection = kind(
        [EmbeddingBagConfig("first", 9, 2, ("x",)), EmbeddingBagConfig("items", 5, 3, ("y",))], seed=0
    )
    kjt = KeyedJaggedTensor.from_dict({"y": [[4], [], [0, bad]], "x": [[8], [8], [8]]})
    with pytest.raises(
        InvalidIdError,
        match=rf"feature 'y', table 'items', sample 2: id {bad} at position 1 of its bag, wanted",
    ):
        collection(kjt)


def test_missing_feature_is_named() -> None:
    collection = EmbeddingBagCollection([EmbeddingBagConfig("a", 4, 2, ("x",))], seed=0)
    with pytest.raises(KeyError, match="no key 'x'; it has"):
        collection(KeyedJaggedTensor.from_dense({"y": [0]}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bag("t", 0, 4, ("x",)), "table 't': num_embeddings is 0"),
        (lambda: Bag("t", 4, 0, ("x",)), "embedding_dim is 0"),
        (lambda: Bag("t", 4, 4, ()), "feature_names is"),
        (lambda: Bag("t", 4, 4, "x"), "feature_names is 'x'"),
        (lambda: Bag("t", 4, 4, ("x", "x")), "wanted distinct names"),
        (lambda: Bag("t", 4, 4, ("x",), pooling="max"), "pooling is 'max'"),
        (lambda: Plain("t", 4, 4, ("x",), data_type="int8"), "data_type is 'int8'"),
        (lambda: Plain("t", 4, 4, ("x",), init=0.1), "init is 0.1"),
        (lambda: EmbeddingBagCollection([], seed=0), "at least one table"),
        (lambda: Bags([Bag("t", 4, 4, ("x",))] * 2, seed=0), "'t' is given more than once"),
        (lambda: Bags([Plain("t", 4, 4, ("x",))], seed=0), "wanted an EmbeddingBagConfig"),
    ],
)
def test_impossible_tables_are_named(make: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        make()


def test_tables_of_several_data_types_are_looked_up_together() -> None:
    """Each table's rows are what they would be in a collection of its own."""
    types: Any = {"float32": (3, 0), "bfloat16": (3, 1), "float16": (5, 2)}
    tables = [Bag(name, 9, width, ("x",), data_type=name) for name, (width, _) in types.items()]
    kjt = KeyedJaggedTensor.from_dict({"x": [[1, 8, 8], [], [0]]})
    together = EmbeddingBagCollection(tables, seed=0)(kjt)
    for table in tables:
        alone = EmbeddingBagCollection([table], seed=0)(kjt)
        assert np.array_equal(together[f"x@{table.name}"].numpy(), alone["x"].numpy())


def test_float64_tables_stay_alone() -> None:
    tables = [
        EmbeddingBagConfig("a", 4, 4, ("x",)),
        EmbeddingBagConfig("b", 4, 4, ("y",), data_type="float64"),
    ]
    with pytest.raises(TableError, match="'a' float32, 'b' float64"):
        EmbeddingBagCollection(tables, seed=0)


def test_state_has_one_entry_per_table_and_loads() -> None:
    tables = [EmbeddingBagConfig(name, 4, width, (name,)) for name, width in (("a", 3), ("b", 5), ("c", 3))]
    one, other = EmbeddingBagCollection(tables, seed=0), EmbeddingBagCollection(tables, seed=1)
    assert list(one.state_dict()) == ["a", "b", "c"] and one.state_dict()["b"].shape == (4, 5)
    other.load_state_dict(one.state_dict())
    assert all(
        np.array_equal(p.data, q.data) for p, q in zip(one.parameters(), other.parameters(), strict=True)
    )
    assert all(np.shares_memory(one.state_dict()[n], p.data) for n, p in zip("ab", one.pools, strict=True))


def test_any_number_of_threads_and_slices_gives_the_same_bits() -> None:
    tables = [
        EmbeddingBagConfig("a", 1000, 16, ("x", "y"), init=Normal(1)),
        EmbeddingBagConfig("b", 300_000, 16, ("x",), pooling="mean", init=Normal(1)),
        EmbeddingBagConfig("c", 20, 3, ("z",), init=Normal(1)),
    ]
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 6, (3, 4000))
    values = np.concatenate(
        [rng.integers(0, n, m) for n, m in zip((1000, 900, 20), lengths.sum(axis=1), strict=True)]
    )
    kjt = KeyedJaggedTensor.from_lengths(["x", "y", "z"], values, lengths, rng.random(len(values)))
    results = []
    before = num_threads()
    try:
        for threads, size in ((1, 4000), (2, 4000), (4, 4000), (1, 1000), (2, 1000), (4, 512)):
            set_num_threads(threads)
            results.append(bits(EmbeddingBagCollection(tables, seed=0), kjt, size))
    finally:
        set_num_threads(before)
    for result in results[1:]:
        assert all(np.array_equal(got, want) for got, want in zip(result, results[0], strict=True))


def bits(collection: EmbeddingBagCollection, kjt: KeyedJaggedTensor, size: int) -> list[npt.NDArray[Any]]:
    """Output and gradients of a batch that is cut into slices of `size`."""

    def work(lo: int) -> Any:
        out = collection(kjt.select(lo, min(lo + size, kjt.batch_size))).values
        return (out * out).data, out, out.data

    parts: Any = parallel_map(work, range(0, kjt.batch_size, size))
    for g, out, _ in parts:
        out.backward(g)
    grads = [array for pool in collection.pools for array in (pool.grad.rows, pool.grad.values)]
    return [np.concatenate([values for _, _, values in parts]), *grads]


def test_no_grad_records_nothing() -> None:
    collection = EmbeddingBagCollection([EmbeddingBagConfig("a", 4, 2, ("x",))], seed=0)
    with no_grad():
        assert collection(KeyedJaggedTensor.from_dense({"x": [0, 1]})).values.node is None


def test_keyed_tensor_stacks_and_regroups() -> None:
    values = Tensor(np.arange(12.0, dtype=np.float32).reshape(2, 6), requires_grad=True)
    even, uneven = KeyedTensor(("a", "b"), (3, 3), values), KeyedTensor(("c", "d"), (4, 2), values)
    assert even.stack().shape == (2, 2, 3) and np.array_equal(even.stack().data[:, 1], even["b"].data)
    with pytest.raises(ValueError, match=r"one width, got \{'c': 4, 'd': 2\}"):
        uneven.stack()
    joined, single = KeyedTensor.regroup([even, uneven], [["d", "a"], ["b"]])
    assert np.array_equal(joined.data, np.concatenate([uneven["d"].data, even["a"].data], axis=1))
    single.sum().backward()
    assert values.grad.sum(axis=0).tolist() == [0, 0, 0, 2, 2, 2]
    with pytest.raises(KeyError, match="no key 'z'"):
        KeyedTensor.regroup([even], [["z"]])
    with pytest.raises(ValueError, match="wanted"):
        KeyedTensor(("a",), (3,), values)


def test_a_pool_is_no_dense_parameter() -> None:
    collection = EmbeddingBagCollection([EmbeddingBagConfig("a", 4, 2, ("x",), init=Constant(1))], seed=0)
    pool = collection.pools[0]
    loss = collection(KeyedJaggedTensor.from_dense({"x": [0, 1]})).values.sum() + (pool * pool).sum()
    with pytest.raises(TypeError, match="use a pool through its collection"):
        loss.backward()


@pytest.mark.parametrize("data", [np.zeros((3, 2)), np.zeros((2, 4)).T], ids=["rows", "order"])
def test_replaced_data_must_fit(data: Any) -> None:
    collection = EmbeddingBagCollection([EmbeddingBagConfig("a", 4, 2, ("x",))], seed=0)
    collection.pools[0].data = data
    with pytest.raises(RuntimeError, match="was replaced: wanted as many rows, C-contiguous"):
        collection(KeyedJaggedTensor.from_dense({"x": [3]}))
