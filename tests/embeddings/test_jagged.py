"""Jagged tensors: every way in, out and around keeps the bags."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import Tensor
from tesserec.autograd.gradcheck import gradcheck
from tesserec.embeddings import InvalidIdError, JaggedError, JaggedTensor, KeyedJaggedTensor
from tests import naive
from tests.embeddings.strategies import batches

SIZES = {"a": 5, "b": 7, "c": 3}
Kjt: Any = KeyedJaggedTensor  # to be given what a type checker would refuse
quick = settings(max_examples=40, deadline=None)


def lists(kjt: KeyedJaggedTensor) -> dict[str, list[list[int]]]:
    return {key: [naive.bag(kjt, key, b).tolist() for b in range(kjt.batch_size)] for key in kjt.keys}


def weights(kjt: KeyedJaggedTensor) -> dict[str, list[list[float]]]:
    return {key: [naive.bag_weights(kjt, key, b).tolist() for b in range(kjt.batch_size)] for key in kjt.keys}


def same(got: KeyedJaggedTensor, want: KeyedJaggedTensor) -> bool:
    return got.keys == want.keys and lists(got) == lists(want) and weights(got) == weights(want)


@quick
@given(batches(SIZES))
def test_dict_and_back(kjt: KeyedJaggedTensor) -> None:
    assert same(KeyedJaggedTensor.from_dict(kjt.to_dict()), kjt)
    if kjt.weights is None:
        assert same(KeyedJaggedTensor.from_dict(lists(kjt)), kjt)
    for key, bags in kjt.to_dict().items():
        assert bags.to_lists() == lists(kjt)[key] and len(bags) == kjt.batch_size
        assert bags.lengths.tolist() == [len(bag) for bag in lists(kjt)[key]]


@quick
@given(batches(SIZES), st.data())
def test_split_permute_concat(kjt: KeyedJaggedTensor, data: Any) -> None:
    cut = data.draw(st.integers(0, 4))
    head, tail = kjt.split([cut, 4 - cut])
    assert head.keys + tail.keys == kjt.keys
    if 0 < cut < 4:  # a part without keys has no batch size
        assert same(KeyedJaggedTensor.concat([head, tail]), kjt)
    order = data.draw(st.permutations(range(4)))
    permuted = kjt.permute(order)
    assert permuted.keys == tuple(kjt.keys[f] for f in order) and lists(permuted) == lists(kjt)
    assert weights(permuted) == weights(kjt)


@quick
@given(batches(SIZES), st.data())
def test_select_takes_samples_and_batches_join_again(kjt: KeyedJaggedTensor, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, kjt.batch_size), min_size=2, max_size=2)))
    bounds = [0, *cuts, kjt.batch_size]
    parts = [kjt.select(lo, hi) for lo, hi in pairwise(bounds)]
    for part, lo, hi in zip(parts, bounds[:-1], bounds[1:], strict=True):
        assert lists(part) == {key: bags[lo:hi] for key, bags in lists(kjt).items()}
    assert same(KeyedJaggedTensor.concat_batches(parts), kjt)


@quick
@given(batches(SIZES), st.data())
def test_arrow_round_trip_sliced_and_chunked(kjt: KeyedJaggedTensor, data: Any) -> None:
    weighted = kjt.weights is not None
    batch = kjt.to_arrow()
    assert same(KeyedJaggedTensor.from_arrow(batch, kjt.keys, weighted=weighted), kjt)
    lo = data.draw(st.integers(0, kjt.batch_size))
    sliced = KeyedJaggedTensor.from_arrow(batch.slice(lo), kjt.keys, weighted=weighted)
    assert same(sliced, kjt.select(lo, kjt.batch_size))
    table = pa.Table.from_batches([batch.slice(lo), batch.slice(0, lo)])
    joined = KeyedJaggedTensor.concat_batches([kjt.select(lo, kjt.batch_size), kjt.select(0, lo)])
    assert same(KeyedJaggedTensor.from_arrow(table, kjt.keys, weighted=weighted), joined)


@pytest.mark.parametrize("item", [pa.int8(), pa.int32(), pa.int64(), pa.uint16()], ids=str)
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list], ids=["list", "large_list"])
def test_arrow_integers_of_any_width(kind: Any, item: Any) -> None:
    column = pa.array([[1, 2], None, [], [3]], kind(item))
    kjt = KeyedJaggedTensor.from_arrow(pa.table({"a": column, "b": pa.array([4, 5, 6, 7], item)}), ["b", "a"])
    assert lists(kjt) == {"b": [[4], [5], [6], [7]], "a": [[1, 2], [], [], [3]]}
    assert kjt.values.dtype == (np.int32 if item == pa.int32() else np.int64)


def test_arrow_null_lists_that_own_values_and_fixed_size_lists() -> None:
    owning = pa.ListArray.from_arrays(
        [0, 2, 4, 5], pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False])
    )
    fixed = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    kjt = KeyedJaggedTensor.from_arrow(pa.record_batch({"a": owning, "b": fixed}), ["a", "b"])
    assert lists(kjt) == {"a": [[1, 2], [], [5]], "b": [[1, 2], [], [3, 4]]}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1], [], [2, None]]), r"feature 'a', sample 2: the id is null, wanted an integer"),
        (pa.array([1, None]), r"feature 'a', sample 1: the id is null"),
        (pa.array([1.5]), r"feature 'a' is a column of double, wanted integers"),
        (pa.array([["x"]]), r"feature 'a' is a column of string, wanted integers"),
        (pa.array([2**63], pa.uint64()), r"feature 'a': an id does not fit in int64"),
    ],
    ids=["null in list", "null", "float", "string", "uint64"],
)
def test_arrow_without_ids_is_refused(column: Any, message: str) -> None:
    with pytest.raises(InvalidIdError, match=message):
        KeyedJaggedTensor.from_arrow(pa.table({"a": column}), ["a"])


def test_dense_is_one_id_per_bag() -> None:
    kjt = KeyedJaggedTensor.from_dense({"a": np.array([3, 1], np.int32), "b": [0, 2]})
    assert lists(kjt) == {"a": [[3], [1]], "b": [[0], [2]]} and kjt.batch_size == 2
    assert KeyedJaggedTensor.from_dense({}).batch_size == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kjt(("a",), [1, 2], [0, 1]), "offsets run from 0 to 1, wanted from 0 to 2"),
        (lambda: Kjt(("a",), [1, 2], [0, 2, 1, 2]), "fall from 2 to 1 after bag 1"),
        (lambda: Kjt(("a",), [1, 2], [0.0, 2.0]), "offsets are float64"),
        (lambda: Kjt(("a", "b"), [1], [0, 1]), "1 bags are not a whole number of samples"),
        (lambda: Kjt(("a", "a"), [1, 2], [0, 1, 2]), "not distinct"),
        (lambda: Kjt(("a",), [[1]], [0, 1]), r"ids have shape \(1, 1\)"),
        (lambda: Kjt(("a",), [1], [0, 1], [1.0, 2.0]), r"weights have shape \(2,\)"),
        (lambda: KeyedJaggedTensor.from_dense({"a": [1], "b": [1, 2]}), "'b' has 2 samples, but 'a' has 1"),
        (lambda: KeyedJaggedTensor.from_lengths(["a"], [1], [-1, 2]), "fall from 0 to -1 after bag 0"),
        (
            lambda: KeyedJaggedTensor.from_dense({"a": [1, 2]}).select(1, 3),
            "samples 1 to 3, wanted 0 ≤ lo ≤ hi ≤ 2",
        ),
        (lambda: KeyedJaggedTensor.from_dense({"a": [1]}).split([2]), "wanted a sum of 1"),
        (lambda: KeyedJaggedTensor.from_dense({"a": [1]}).permute([1]), "wanted positions from 0 to 0"),
        (lambda: KeyedJaggedTensor.from_arrow(pa.table({"b": [1]}), ["a"]), "no column 'a'; have"),
    ],
)
def test_misfits_are_named(make: Any, message: str) -> None:
    with pytest.raises(JaggedError, match=message):
        make()


def test_ids_that_are_no_integers_are_refused() -> None:
    with pytest.raises(InvalidIdError, match=r"ids of feature 'a' are float64 .*1\.5.*, wanted integers"):
        KeyedJaggedTensor.from_dense({"a": [1.5]})
    with pytest.raises(InvalidIdError, match="ids are bool"):
        Kjt(("a",), [True], [0, 1])
    with pytest.raises(KeyError, match="no key 'z'; have"):
        KeyedJaggedTensor.from_dense({"a": [1]})["z"]


@quick
@given(batches(SIZES), st.one_of(st.none(), st.integers(0, 4)))
def test_padded_dense(kjt: KeyedJaggedTensor, length: int | None) -> None:
    bags = kjt["a"]
    longest = max((len(bag) for bag in bags.to_lists()), default=0) if length is None else length
    wanted = [(bag + [-1] * longest)[:longest] for bag in bags.to_lists()]
    assert bags.to_padded_dense(length, padding=-1).tolist() == wanted


def test_padded_dense_of_vectors_has_a_gradient() -> None:
    values = np.arange(10.0).reshape(5, 2)

    def padded(x: Tensor) -> Tensor:
        dense: Tensor = JaggedTensor(x, np.array([0, 3, 3, 5])).to_padded_dense(2)
        return dense * dense

    assert padded(Tensor(values)).shape == (3, 2, 2)
    gradcheck(padded, [values])


def test_views_share_memory() -> None:
    kjt = KeyedJaggedTensor.from_lengths(["a", "b"], np.arange(4), [1, 1, 1, 1])
    assert np.shares_memory(kjt["b"].values, kjt.values)
    assert np.shares_memory(kjt.split([1, 1])[1].values, kjt.values)
    assert kjt.select(0, 2) is kjt


def test_repr_shows_bags() -> None:
    kjt = KeyedJaggedTensor.from_dict({"user": [[7], [3]], "genres": [[], [2, 5]]})
    assert repr(kjt) == "KeyedJaggedTensor(2 keys × 2 samples, 4 ids\n  user: [7] [3]\n  genres: [] [2, 5])"
    assert repr(kjt["genres"]) == "JaggedTensor(2 bags, 2 values: [] [2, 5])"
