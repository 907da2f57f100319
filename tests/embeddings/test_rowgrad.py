"""RowGrad: parts add up to one batch, and its arithmetic is that of the dense gradient."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd.exact import total_of
from tesserec.autograd.optim import clip_grad_norm, clip_grad_value
from tesserec.autograd.tensor import gradients
from tesserec.embeddings import (
    Constant,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    RowGrad,
)
from tests.embeddings.strategies import batches, limits, table_sets

quick = settings(max_examples=40, deadline=None)


def gradient_of(collection: EmbeddingBagCollection, kjt: KeyedJaggedTensor, g: Any) -> list[RowGrad]:
    found = gradients(collection(kjt).values, g)
    return [found[pool] for pool in collection.pools]


@quick
@given(st.data())
def test_parts_have_the_bits_of_one_batch(data: Any) -> None:
    tables = data.draw(table_sets())
    kjt = data.draw(batches(limits(tables)))
    collection = EmbeddingBagCollection(tables, seed=0)
    shape = (kjt.batch_size, sum(collection.lengths))
    g = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole = gradient_of(collection, kjt, g)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, kjt.batch_size), max_size=3))), kjt.batch_size]
    parts = [gradient_of(collection, kjt.select(lo, hi), g[lo:hi]) for lo, hi in pairwise(cuts)]
    for pool, want in enumerate(whole):
        got = parts[0][pool]
        for part in parts[1:]:
            got = got + part[pool]
        assert np.array_equal(got.rows, want.rows) and np.array_equal(got.values, want.values)
        assert np.all(np.diff(want.rows) > 0)


@quick
@given(st.data())
def test_arithmetic_is_that_of_the_dense_gradient(data: Any) -> None:
    tables = data.draw(table_sets())
    sizes = limits(tables)
    collection = EmbeddingBagCollection(tables, seed=0)
    found = []
    for seed in range(2):
        kjt = data.draw(batches(sizes))
        shape = (kjt.batch_size, sum(collection.lengths))
        found.append(gradient_of(collection, kjt, np.random.default_rng(seed).random(shape, np.float32)))
    for a, b in zip(*found, strict=True):
        dense = a.to_dense()
        assert total_of(a.squares()) == pytest.approx(np.square(dense, dtype=np.float64).sum())
        assert np.array_equal(a.scale(0.5).to_dense(), dense * np.float32(0.5))
        assert np.array_equal(a.clip(-0.1, 0.2).to_dense(), dense.clip(-0.1, 0.2))
        total = (a.scale(0.5) + b).to_dense()
        np.testing.assert_allclose(total, dense * np.float32(0.5) + b.to_dense(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(a.scale(2.0).rows, a.rows) and np.asarray(a).shape == a.shape


def test_rows_and_values_come_back() -> None:
    bounds, rows = np.array([0, 3, 3000, 3004]), np.array([1, 3, 7, 2999, 3003])
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    grad = RowGrad.from_rows(bounds, rows, values)
    assert np.array_equal(grad.rows, rows) and np.array_equal(grad.values, values)
    assert grad.shape == (3004, 2) and "5 ids in 1 parts" in repr(grad)


def test_clipping_counts_rows_after_their_sum() -> None:
    tables = [EmbeddingBagConfig("a", 4, 2, ("x",), init=Constant(0))]
    collection = EmbeddingBagCollection(tables, seed=0)
    pool = collection.pools[0]
    kjt = KeyedJaggedTensor.from_dense({"x": [1, 1, 3]})
    collection(kjt).values.sum().backward()
    assert clip_grad_norm([pool], 1.0) == pytest.approx(np.sqrt(10))
    assert total_of(pool.grad.squares()) == pytest.approx(1.0)
    clip_grad_value([pool], 0.5)
    np.testing.assert_allclose(pool.grad.values, [[0.5, 0.5], [0.1**0.5, 0.1**0.5]], rtol=1e-6)


def test_gradients_may_be_strided_and_the_batch_large() -> None:
    tables = [EmbeddingBagConfig("a", 5_000_000, 4, ("x",)), EmbeddingBagConfig("b", 2, 4, ("y",))]
    collection = EmbeddingBagCollection(tables, seed=0)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5_000_000, 30_000)
    kjt = KeyedJaggedTensor.from_dense({"x": ids, "y": ids % 2})
    wide = rng.random((30_000, 20)).astype(np.float32)
    for g in (wide[:, 3:11], wide[:, ::2][:, :8], np.asfortranarray(wide[:, :8])):
        (grad,) = gradient_of(collection, kjt, g)
        rows, place = np.unique(ids, return_inverse=True)
        wanted = np.zeros((len(rows), 4))
        np.add.at(wanted, place, g[:, :4].astype(np.float64))
        assert np.array_equal(grad.rows[:-2], rows) and grad.rows[-2:].tolist() == [5_000_000, 5_000_001]
        np.testing.assert_allclose(grad.values[:-2], wanted, rtol=1e-5)
