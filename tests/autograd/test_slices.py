"""Gradients of slices are summed in the order of a tree, with the same bits for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import SGD, Adam, Tensor, num_threads, set_num_threads
from tesserec.autograd.slices import PIECE, add_slices, sum_of_slices


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = num_threads()
    yield
    set_num_threads(before)


def tree(terms: list[Any]) -> Any:
    """The sum of all that is not None: the first half's and the second half's."""
    if len(terms) == 1:
        return terms[0]
    first, second = tree(terms[: len(terms) // 2]), tree(terms[len(terms) // 2 :])
    return first + second if first is not None and second is not None else second if first is None else first


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("slices", [1, 2, 4, 5, 7, 8])
def test_sums_have_the_bits_of_the_tree(threads: int, slices: int) -> None:
    set_num_threads(threads)
    rng = np.random.default_rng(0)
    leaves = [Tensor(np.zeros(shape, np.float32)) for shape in [(), (3, 5), (2, PIECE - 7), (0, 4)]]
    parts: list[dict[Tensor, Any]] = [
        {leaf: np.asarray(rng.standard_normal(leaf.shape), np.float32) for leaf in leaves}
        for _ in range(slices)
    ]
    parts[-1][leaves[1]] = np.asfortranarray(parts[-1][leaves[1]])
    for part in parts[1::3]:
        del part[leaves[2]]
    want = {leaf: np.array(tree([part.get(leaf) for part in parts])) for leaf in leaves}
    total = sum_of_slices(parts)
    for leaf in leaves:
        np.testing.assert_array_equal(total[leaf], want[leaf], strict=True)


def test_parts_of_a_batch_are_branches_of_its_tree() -> None:
    rng, leaf = np.random.default_rng(0), Tensor(np.zeros(9, np.float32))
    grads = [rng.standard_normal(9).astype(np.float32) for _ in range(12)]
    whole = sum_of_slices([{leaf: g.copy()} for g in grads])[leaf]
    halves = [sum_of_slices([{leaf: g.copy()} for g in half])[leaf] for half in (grads[:6], grads[6:])]
    np.testing.assert_array_equal(halves[0] + halves[1], whole)


@pytest.mark.parametrize("present", [[], [1], [0, 2], [0, 1, 2, 3]])
def test_slices_are_summed_into_an_array(present: list[int]) -> None:
    terms = [np.full((2, 3), k + 1.0) if k in present else None for k in range(4)]
    total = np.full(6, 7.0)
    add_slices(terms, total)
    np.testing.assert_array_equal(total, np.full(6, sum(k + 1.0 for k in present)))


def test_what_is_no_array_is_added_too_and_a_slice_may_lack_a_leaf() -> None:
    rows, some = Tensor([0.0]), Tensor([0.0])
    total = sum_of_slices([{rows: 1}, {rows: 2, some: np.ones(1)}, {some: np.ones(1)}])
    assert total[rows] == 3
    np.testing.assert_array_equal(total[some], [2])


@pytest.mark.parametrize("make", [SGD, Adam])
def test_an_update_has_the_same_bits_for_any_number_of_threads(make: Any) -> None:
    rng = np.random.default_rng(1)
    w, g = (rng.standard_normal((3, PIECE + 1)).astype(np.float32) for _ in range(2))
    updated = []
    for threads in (1, 3):
        set_num_threads(threads)
        parameter = Tensor(w.copy(), requires_grad=True)
        optimizer = make([("w", parameter)], lr=0.1, weight_decay=0.01)
        for _ in range(2):
            parameter.grad = g
            optimizer.step()
        updated.append(parameter.data)
    np.testing.assert_array_equal(updated[0], updated[1])
