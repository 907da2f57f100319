"""Bags that samples share equal the same bags repeated, and cost what they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd.workers import num_threads, parallel_map, set_num_threads
from tesserec.embeddings import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    InvalidIdError,
    JaggedError,
    JaggedTensor,
    KeyedJaggedTensor,
)
from tests.embeddings.strategies import batches
from tests.embeddings.test_jagged import SIZES, lists, same, weights

Kjt: Any = KeyedJaggedTensor  # to be given what a type checker would refuse
shared_batches = batches(SIZES, shared=True)
quick = settings(max_examples=40, deadline=None)


@quick
@given(shared_batches, st.data())
def test_every_way_around_keeps_the_samples(kjt: KeyedJaggedTensor, data: Any) -> None:
    assert same(kjt.expand(), kjt) and not kjt.expand().inverse
    assert same(kjt.compact(), kjt)
    assert same(KeyedJaggedTensor.from_dict(kjt.to_dict(), kjt.inverse), kjt)
    assert same(KeyedJaggedTensor.from_arrow(kjt.to_arrow(), kjt.keys, weighted=kjt.weights is not None), kjt)
    head, tail = kjt.split([2, 2])
    assert same(KeyedJaggedTensor.concat([head, tail]), kjt)
    permuted = kjt.permute(data.draw(st.permutations(range(4))))
    assert lists(permuted) == lists(kjt) and weights(permuted) == weights(kjt)


@quick
@given(shared_batches, st.data())
def test_select_keeps_only_the_bags_that_are_left(kjt: KeyedJaggedTensor, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, kjt.batch_size), min_size=2, max_size=2)))
    bounds = [0, *cuts, kjt.batch_size]
    parts = [kjt.select(lo, hi) for lo, hi in pairwise(bounds)]
    for part, lo, hi in zip(parts, bounds[:-1], bounds[1:], strict=True):
        assert lists(part) == {key: bags[lo:hi] for key, bags in lists(kjt).items()}
        if hi - lo < kjt.batch_size:
            assert all(len(part[key]) == len(set(kjt.inverse[key][lo:hi])) for key in kjt.inverse)
    assert same(KeyedJaggedTensor.concat_batches(parts), kjt)


TABLES = [
    EmbeddingBagConfig("users", 50, 16, ("user", "history"), pooling="mean"),
    EmbeddingBagConfig("items", 300, 5, ("item", "history")),
]


def many_candidates(users: int = 7, candidates: int = 30) -> KeyedJaggedTensor:
    """Each user once, for many items."""
    rng = np.random.default_rng(0)
    batch = users * candidates
    history = [rng.integers(0, 50, rng.integers(0, 9)).tolist() for _ in range(users)]
    bags: Any = {
        "user": rng.integers(0, 50, (users, 1)).tolist(),
        "item": rng.integers(0, 300, (batch, 1)).tolist(),
        "history": history,
    }
    of_sample = np.repeat(np.arange(users), candidates)
    return KeyedJaggedTensor.from_dict(bags, {"user": of_sample, "history": of_sample})


def test_gradients_equal_those_of_repeated_bags() -> None:
    kjt = many_candidates()
    results = []
    for batch in (kjt, kjt.expand()):
        collection = EmbeddingBagCollection(TABLES, seed=0)
        values = collection(batch).values
        (values * values * values).sum().backward()
        results.append([values.data, *(pool.grad.to_dense() for pool in collection.pools)])
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_shared_bag_is_one_entry_of_the_gradient() -> None:
    collection = EmbeddingBagCollection([EmbeddingBagConfig("t", 9, 2, ("x",))], seed=0)
    bags = KeyedJaggedTensor.from_dict({"x": [[1], [8, 2], [5]]}, {"x": [2, 1, 2, 1, 1]})
    collection(bags).values.sum().backward()
    grad: Any = collection.pools[0].grad
    assert grad.rows.tolist() == [2, 5, 8] and grad.values[:, 0].tolist() == [3, 2, 3]  # row 1: of no sample


def test_any_number_of_threads_gives_the_same_bits() -> None:
    kjt, before, results = many_candidates(), num_threads(), []
    try:
        for threads in (1, 2, 4):
            set_num_threads(threads)
            collection = EmbeddingBagCollection(TABLES, seed=0)
            slices = [kjt.select(lo, lo + 50) for lo in (0, 50, 100)]
            parts = [out.values for out in parallel_map(collection, slices)]
            for part in parts:
                (part * part).sum().backward()
            results.append([p.grad.values for p in collection.pools] + [part.data for part in parts])
    finally:
        set_num_threads(before)
    for result in results[1:]:
        assert all(np.array_equal(got, want) for got, want in zip(result, results[0], strict=True))


def test_sequences_are_repeated() -> None:
    collection = EmbeddingCollection([EmbeddingConfig("t", 50, 3, ("x",))], seed=0)
    kjt = KeyedJaggedTensor.from_dict({"x": [[7, 3], [9]]}, {"x": [1, 0, 1]})
    out = collection(kjt)["x"]
    assert out.lengths.tolist() == [1, 2, 1]
    assert np.array_equal(out.values.data, collection.state_dict()["t"][[9, 7, 3, 9]])


def test_invalid_id_names_the_shared_bag() -> None:
    collection = EmbeddingBagCollection(TABLES, seed=0)
    bags: Any = {"user": [[1], [50]], "item": [[1]] * 3, "history": [[]] * 3}
    with pytest.raises(
        InvalidIdError, match="feature 'user', table 'users', shared bag 1: id 50 at position 0"
    ):
        collection(KeyedJaggedTensor.from_dict(bags, {"user": [0, 1, 1]}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kjt.from_dict({"a": [[1], [2]]}, {"a": [0, 2]}), "'a' reaches from 0 to 2, wanted 0 to 1"),
        (lambda: Kjt.from_dict({"a": [[1], [2]]}, {"a": [0, -1]}), "'a' reaches from -1 to 0, wanted 0 to 1"),
        (lambda: Kjt.from_dict({"a": [[1]]}, {"a": [0.5]}), r"'a' is float64 \(1,\), wanted integers"),
        (lambda: Kjt.from_dict({"a": [[1]]}, {"b": [0]}), "inverse has 'b', which is no key; have .'a'"),
        (lambda: Kjt.from_dict({"a": [[1]], "b": [[1]]}, {"a": [0, 0]}), "'b' has 1 samples, but 'a' has 2"),
        (
            lambda: Kjt(("a",), [1], [0, 1], None, {"a": [0]}, (2,)),
            r"num_bags are \(2,\), wanted one for each",
        ),
        (lambda: Kjt(("a",), [1], [0, 1], None, {"a": [0]}), r"num_bags are \(\), wanted one for each of 1"),
    ],
)
def test_misfits_are_named(make: Any, message: str) -> None:
    with pytest.raises(JaggedError, match=message):
        make()


def test_take_repeats_and_leaves_out() -> None:
    bags = JaggedTensor.from_lists([[7, 8], [], [9]], [1.0, 2.0, 3.0])
    taken: Any = bags.take(np.array([2, 0, 1, 2]))
    assert taken.to_lists() == [[9], [7, 8], [], [9]] and taken.weights.tolist() == [3, 1, 2, 3]


def test_repr_counts_shared_bags() -> None:
    kjt = KeyedJaggedTensor.from_dict({"u": [[7]], "i": [[1], [2]]}, {"u": [0, 0]})
    assert repr(kjt) == "KeyedJaggedTensor(2 keys × 2 samples, 3 ids\n  u (1 shared bags): [7]\n  i: [1] [2])"
