"""Per-id weights that are learned: gradients, positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import Tensor
from tesserec.autograd.workers import num_threads, set_num_threads
from tesserec.embeddings import (
    Drop,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    JaggedError,
    KeyedJaggedTensor,
    Normal,
    PositionWeighted,
)
from tests import naive
from tests.embeddings.strategies import batches, limits, table_sets

quick = settings(max_examples=40, deadline=None)


def learned(kjt: KeyedJaggedTensor, seed: int = 0) -> KeyedJaggedTensor:
    """`kjt` with weights that have a gradient."""
    values = np.random.default_rng(seed).standard_normal(len(kjt.values)).astype(np.float32)
    return kjt.with_weights(Tensor(values, requires_grad=True))


def plain(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """`kjt` with its weights as an array."""
    return kjt.with_weights(weights_of(kjt).data)


def weights_of(kjt: KeyedJaggedTensor) -> Tensor:
    assert isinstance(kjt.weights, Tensor)
    return kjt.weights


@quick
@given(st.data())
def test_gradient_equals_oracle(data: Any) -> None:
    tables = data.draw(table_sets())
    kjt = learned(data.draw(batches(limits(tables), shared=True)))
    collection = EmbeddingBagCollection(tables, seed=3)
    out = collection(kjt)
    assert np.array_equal(out.values.data, collection(plain(kjt)).values.data)
    g = np.random.default_rng(1).standard_normal(out.values.shape).astype(np.float32)
    out.values.backward(g)
    wanted = np.zeros(len(kjt.values))
    readers = [(feature, table) for table in tables for feature in table.feature_names]
    for (feature, table), part in zip(readers, np.split(g, np.cumsum(out.lengths)[:-1], axis=1), strict=True):
        rows = collection.state_dict()[table.name].astype(np.float64)
        naive.weights_gradient(wanted, rows, plain(kjt), feature, part, table.pooling == "mean")
    np.testing.assert_allclose(weights_of(kjt).grad, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data_type", ["float32", "float64", "float16", "bfloat16"])
def test_gradient_for_rows_of_any_type(data_type: Any) -> None:
    table = EmbeddingBagConfig("t", 9, 5, ("x",), data_type=data_type, init=Normal(1))
    collection = EmbeddingBagCollection([table], seed=0)
    kjt = learned(KeyedJaggedTensor.from_dict({"x": [[3, 8], [], [1]]}))
    collection(kjt).values.sum().backward()
    ones = Tensor(np.ones(1, np.float32))
    rows = [collection(KeyedJaggedTensor.from_dict({"x": [[i]]})).values.data.sum() for i in (3, 8, 1)]
    np.testing.assert_allclose(weights_of(kjt).grad, rows * ones.data, rtol=1e-5)


def test_gradient_reaches_weights_through_every_view() -> None:
    kjt = learned(KeyedJaggedTensor.from_dict({"a": [[1, 2], [3]], "b": [[], [4]]}))
    shared = KeyedJaggedTensor.from_dict({"a": kjt["a"]}, {"a": [0, 1, 0]})
    views = [
        kjt.select(1, 2),
        kjt.permute([1, 0]),
        kjt.split([1, 1])[0],
        KeyedJaggedTensor.concat_batches([kjt, kjt.select(0, 1)]),
        shared.expand(),
    ]
    factor = [1.0, 10.0, 100.0, 1000.0, 10000.0]
    total = sum((weights_of(view).sum() * f for view, f in zip(views, factor, strict=True)), Tensor(0.0))
    total.backward()
    assert weights_of(kjt).grad.tolist() == [22110, 22110, 11111, 1011]
    assert kjt.to_arrow()["a.weights"].to_pylist()[1] == [weights_of(kjt).data[2]]


def test_weights_of_dropped_ids_get_no_gradient() -> None:
    table = EmbeddingBagConfig("t", 5, 3, ("x",), pooling="mean", unseen=Drop(), init=Normal(1))
    collection = EmbeddingBagCollection([table], seed=0)
    kjt = learned(KeyedJaggedTensor.from_dict({"x": [[9, 1, -1, 2], [7]]}))
    collection(kjt).values.sum().backward()
    rows = collection.state_dict()["t"].sum(axis=1)
    np.testing.assert_allclose(weights_of(kjt).grad, [0, rows[1] / 2, 0, rows[2] / 2, 0], rtol=1e-5)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    tables = [
        EmbeddingBagConfig("a", 400, 33, ("x", "y"), init=Normal(1)),
        EmbeddingBagConfig("b", 400, 16, ("x",), pooling="mean", init=Normal(1)),
    ]
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, (2, 3000))
    ids = rng.integers(0, 400, lengths.sum())
    before, results = num_threads(), []
    try:
        for threads in (1, 2, 4):
            set_num_threads(threads)
            kjt = learned(KeyedJaggedTensor.from_lengths(["x", "y"], ids, lengths))
            values = EmbeddingBagCollection(tables, seed=0)(kjt).values
            (values * values).sum().backward()
            results.append(weights_of(kjt).grad)
    finally:
        set_num_threads(before)
    assert all(np.array_equal(result, results[0]) for result in results)


def test_sequence_passes_weights_on() -> None:
    collection = EmbeddingCollection([EmbeddingBagConfig("t", 5, 3, ("x",), unseen=Drop())], seed=0)
    kjt = learned(KeyedJaggedTensor.from_dict({"x": [[1, 9, 2]]}))
    out: Any = collection(kjt)["x"]
    assert out.lengths.tolist() == [2] and out.weights.data.tolist() == weights_of(kjt).data[[0, 2]].tolist()


def test_weights_may_be_strided() -> None:
    kjt = KeyedJaggedTensor.from_dict({"x": [[1, 2], [3]]})
    matrix = Tensor(np.arange(6, dtype=np.float32).reshape(3, 2), requires_grad=True)
    collection = EmbeddingBagCollection([EmbeddingBagConfig("t", 5, 3, ("x",), init=Normal(1))], seed=0)
    rows, values = collection.state_dict()["t"], collection(kjt.with_weights(matrix[:, 1])).values
    np.testing.assert_allclose(values.data, [rows[1] + 3 * rows[2], 5 * rows[3]], rtol=1e-6)
    values.sum().backward()
    np.testing.assert_allclose(matrix.grad[:, 1], rows[1:4].sum(axis=1), rtol=1e-5)
    assert np.all(matrix.grad[:, 0] == 0)


@pytest.mark.parametrize("weights", [Tensor([1.0, 2.0]), Tensor(np.ones(1))], ids=["length", "type"])
def test_weights_that_do_not_fit_are_refused(weights: Tensor) -> None:
    with pytest.raises(
        JaggedError, match=r"wanted \(1,\): one per value|a Tensor of float64, wanted float32"
    ):
        KeyedJaggedTensor.from_dict({"x": [[1]]}).with_weights(weights)


def position_oracle(
    kjt: KeyedJaggedTensor, tables: dict[str, npt.NDArray[Any]]
) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
    """(weights, gradients of the tables for the gradient 0, 1, 2, … of the weights)."""
    weights = np.ones(len(kjt.values))
    grads = {feature: np.zeros(len(table)) for feature, table in tables.items()}
    for key, table in tables.items():
        for bag in range(len(kjt[key])):
            start = sum(kjt.num_bags[: kjt.keys.index(key)]) + bag
            for p, i in enumerate(range(kjt.offsets[start], kjt.offsets[start + 1])):
                weights[i] = table[min(p, len(table) - 1)]
                grads[key][min(p, len(table) - 1)] += i
    return weights * (1 if kjt.weights is None else kjt.weights), grads


@quick
@given(batches({"a": 5, "b": 7, "c": 3}, shared=True), st.integers(1, 9))
def test_positions_equal_oracle(kjt: KeyedJaggedTensor, length: int) -> None:
    module = PositionWeighted({"c": length, "a": 4}, clamp=True)
    assert list(module.state_dict()) == ["weights.c", "weights.a"]
    assert np.array_equal(weights_of(module(kjt)).data, position_oracle(kjt, {})[0])
    rng = np.random.default_rng(0)
    for table in module.parameters():
        table.data[:] = rng.standard_normal(table.shape)
    tables = {feature: table.data for feature, table in module.weights.items()}
    weights, grads = position_oracle(kjt, tables)
    np.testing.assert_allclose(weights_of(module(kjt)).data, weights, rtol=1e-6)
    weights_of(module(kjt.with_weights(None))).backward(np.arange(len(kjt.values), dtype=np.float32))
    for feature, table in module.weights.items():
        np.testing.assert_allclose(table.grad, grads[feature], rtol=1e-6)


def test_positions_are_learned_through_a_lookup() -> None:
    module, kjt = PositionWeighted({"x": 2}), KeyedJaggedTensor.from_dict({"x": [[1, 2], [3]]})
    table = EmbeddingBagConfig("t", 5, 3, ("x",), init=Normal(1))
    plain, processed = (EmbeddingBagCollection([table], seed=0, processor=p) for p in (None, module))
    assert list(processed.state_dict()) == ["t", "processor.weights.x"]
    rows = plain.state_dict()["t"].sum(axis=1)
    for values in (plain(module(kjt)).values, processed(kjt).values):
        module.zero_grad()
        values.sum().backward()
        np.testing.assert_allclose(module.weights["x"].grad, [rows[1] + rows[3], rows[2]], rtol=1e-5)


def test_bags_longer_than_the_positions_are_named() -> None:
    with pytest.raises(JaggedError, match="feature 'x', bag 1: 3 ids, but weights for 2 positions"):
        PositionWeighted({"x": 2})(KeyedJaggedTensor.from_dict({"x": [[1], [1, 2, 3]]}))
    with pytest.raises(KeyError, match="no key 'y'; it has"):
        PositionWeighted({"y": 2})(KeyedJaggedTensor.from_dict({"x": [[1]]}))
    with pytest.raises(JaggedError, match="max_length of feature 'x' is 0, wanted 1 or more"):
        PositionWeighted({"x": 0})
