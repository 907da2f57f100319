"""Ids outside their tables: each policy does what it says, and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import Module
from tesserec.autograd.workers import num_threads, parallel_map, set_num_threads
from tesserec.embeddings import (
    Clamp,
    Drop,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    Hash,
    InvalidIdError,
    KeyedJaggedTensor,
    TableError,
    unseen_ids,
)
from tesserec.embeddings.unseen import hashed, parse_unseen, unseen_text
from tests.embeddings.strategies import batches

Bag: Any = EmbeddingBagConfig  # to be given what a type checker would refuse
ROWS = 5
POLICIES: dict[str, Any] = {"clamp": Clamp(3), "hash": Hash(), "drop": Drop()}
quick = settings(max_examples=60, deadline=None)


def settled(bags: list[list[int]], policy: Any) -> list[list[int]]:
    """Oracle: bags of ids that the table has."""
    if policy == Drop():
        return [[i for i in bag if 0 <= i < ROWS] for bag in bags]
    row = {i: int(hashed(np.array([i]), ROWS)[0]) for bag in bags for i in bag}
    return [[i if 0 <= i < ROWS else 3 if policy == Clamp(3) else row[i] for i in bag] for bag in bags]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
@quick
@given(data=st.data())
def test_policy_equals_oracle(policy: Any, data: Any) -> None:
    kjt = data.draw(batches({"x": 8, "y": 9}))
    moved = KeyedJaggedTensor(kjt.keys, kjt.values - 2, kjt.offsets, kjt.weights)
    bags = {key: moved[key].to_lists() for key in ("x", "y")}
    want = KeyedJaggedTensor.from_dict({key: settled(lists, policy) for key, lists in bags.items()})
    results = []
    for batch, unseen in ((moved.with_weights(None), policy), (want, "error")):
        tables = [
            Bag("s", ROWS, 3, ("x", "y"), unseen=unseen),
            Bag("m", ROWS, 4, ("x",), pooling="mean", unseen=unseen),
        ]
        collection = EmbeddingBagCollection(tables, seed=0)
        values = collection(batch).values
        (values * values).sum().backward()
        results.append([values.data, *(pool.grad.to_dense() for pool in collection.pools)])
        expected = {
            key: sum(not 0 <= i < ROWS for bag in bags[key[0]] for i in bag) for key in ("x@m", "x@s", "y")
        }
        counts = {key: count for key, count in expected.items() if count and unseen != "error"}
        assert collection.unseen_ids() == counts
    for got, wanted in zip(*results, strict=True):
        assert np.array_equal(got, wanted)


def test_weights_stay_beside_their_ids() -> None:
    kjt = KeyedJaggedTensor.from_dict({"x": [[9, 1], [2, 8, 0]]}).with_weights([1, 2, 3, 4, 5])
    kept = KeyedJaggedTensor.from_dict({"x": [[1], [2, 0]]}).with_weights([2, 3, 5])
    collection = EmbeddingBagCollection([EmbeddingBagConfig("t", ROWS, 3, ("x",), unseen=Drop())], seed=0)
    assert np.array_equal(collection(kjt).values.data, collection(kept).values.data)


def test_shared_bags_have_policies_too() -> None:
    collection = EmbeddingBagCollection([EmbeddingBagConfig("t", ROWS, 3, ("x",), unseen=Drop())], seed=0)
    kjt = KeyedJaggedTensor.from_dict({"x": [[1, 9], [7], [8]]}, {"x": [0, 1, 0]})
    rows = collection.state_dict()["t"]
    assert np.array_equal(collection(kjt).values.data, [rows[1], np.zeros(3), rows[1]])
    assert collection.unseen_ids() == {"x": 2}  # 8 is of no sample


def test_sequence_follows_the_policy() -> None:
    kjt = KeyedJaggedTensor.from_dict({"x": [[9, 1], [7]]})
    kinds: Any = {
        name: EmbeddingCollection([Bag("t", ROWS, 3, ("x",), unseen=p)], seed=0)
        for name, p in POLICIES.items()
    }
    lengths = {name: collection(kjt)["x"].lengths.tolist() for name, collection in kinds.items()}
    assert lengths == {"clamp": [2, 1], "hash": [2, 1], "drop": [1, 0]}
    assert np.array_equal(kinds["clamp"](kjt)["x"].values.data, kinds["clamp"].state_dict()["t"][[3, 1, 3]])
    assert kinds["clamp"].unseen_ids() == {"x": 4}


def test_each_feature_has_its_policy_and_the_rest_are_errors() -> None:
    table = EmbeddingBagConfig("t", ROWS, 3, ("x", "y"), unseen={"x": Clamp(0)})
    collection = EmbeddingBagCollection([table], seed=0)
    collection(KeyedJaggedTensor.from_dict({"x": [[99]], "y": [[1]]}))
    with pytest.raises(InvalidIdError, match="feature 'y', table 't', sample 0: id 5 at position 0"):
        collection(KeyedJaggedTensor.from_dict({"x": [[99]], "y": [[5]]}))
    assert collection.unseen_ids() == {"x": 1}  # what failed is not counted


@pytest.mark.parametrize("integer", [np.int32, np.int64])
def test_extreme_ids_are_unseen(integer: Any) -> None:
    ends = np.iinfo(integer)
    collection = EmbeddingBagCollection([EmbeddingBagConfig("t", ROWS, 3, ("x",), unseen=Clamp(2))], seed=0)
    values = collection(
        KeyedJaggedTensor.from_dense({"x": np.array([ends.min, ends.max, -1], integer)})
    ).values
    assert np.array_equal(values.data, collection.state_dict()["t"][[2, 2, 2]])
    assert collection.unseen_ids() == {"x": 3}


def test_slices_count_together_and_counts_can_begin_anew() -> None:
    collection = EmbeddingBagCollection([EmbeddingBagConfig("t", ROWS, 3, ("x",), unseen=Hash())], seed=0)
    kjt = KeyedJaggedTensor.from_dense({"x": np.arange(2000) % 10})
    before = num_threads()
    set_num_threads(4)
    try:
        parallel_map(lambda lo: collection(kjt.select(lo, lo + 10)), range(0, 2000, 10))
    finally:
        set_num_threads(before)
    assert collection.unseen_ids(reset=True) == {"x": 1000} and collection.unseen_ids() == {}


def test_a_model_counts_an_id_once() -> None:
    class Two(Module):
        def __init__(self) -> None:
            config = EmbeddingBagConfig("t", ROWS, 3, ("x",), unseen=Hash())
            self.wide = EmbeddingBagCollection([config], seed=0)
            self.deep = [EmbeddingCollection([config], seed=0)]

    model = Two()
    for collection in (model.wide, *model.deep):
        collection(KeyedJaggedTensor.from_dense({"x": [1, 77]}))
    assert unseen_ids(model, reset=True) == {"x": 1} and unseen_ids(model) == {}


def test_hash_spreads_over_all_rows() -> None:
    counts = np.bincount(hashed(np.arange(-50_000, 50_000), 100), minlength=100)
    assert len(counts) == 100 and abs(counts - 1000).max() < 200
    assert hashed(np.array([2**62, -(2**63)]), 1).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        ("ignore", "unseen is 'ignore', wanted 'error', Clamp"),
        (Clamp(5), r"unseen is Clamp\(row=5\), wanted a row from 0 to 4"),
        (Clamp(-1), "wanted a row from 0 to 4"),
        ({"z": Drop()}, "wanted keys among x, y"),
        ({"x": None}, "unseen is None, wanted 'error'"),
    ],
)
def test_impossible_policies_are_named(unseen: Any, message: str) -> None:
    with pytest.raises(TableError, match=message):
        Bag("t", ROWS, 3, ("x", "y"), unseen=unseen)


@pytest.mark.parametrize("text", ["error", "hash", "drop", "clamp:0", "clamp:17"])
def test_a_policy_survives_its_text(text: str) -> None:
    assert unseen_text(parse_unseen(text)) == text


@pytest.mark.parametrize("text", ["", "clamp", "clamp:", "clamp:-1", "clamp:x", "hash:1", "dropped"])
def test_texts_that_name_no_policy_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted error, hash, drop or clamp:ROW"):
        parse_unseen(text)
