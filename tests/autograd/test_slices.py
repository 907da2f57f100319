"""Gradients of slices are summed in slice order, with the same bits for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import SGD, Adam, Tensor, num_threads, set_num_threads
from tesserec.autograd.slices import PIECE, sum_of_slices


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = num_threads()
    yield
    set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_have_the_bits_of_adding_one_after_the_other(threads: int) -> None:
    set_num_threads(threads)
    rng = np.random.default_rng(0)
    leaves = [Tensor(np.zeros(shape, np.float32)) for shape in [(), (3, 5), (2, PIECE - 7), (0, 4)]]
    parts: list[dict[Tensor, Any]] = [
        {leaf: np.asarray(rng.standard_normal(leaf.shape), np.float32) for leaf in leaves} for _ in range(4)
    ]
    parts[1][leaves[1]] = np.asfortranarray(parts[1][leaves[1]])
    want = {leaf: parts[0][leaf] + parts[1][leaf] + parts[2][leaf] + parts[3][leaf] for leaf in leaves}
    total = sum_of_slices(parts)
    for leaf in leaves:
        np.testing.assert_array_equal(total[leaf], want[leaf], strict=True)


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
