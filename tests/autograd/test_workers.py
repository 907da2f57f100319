"""parallel_map: order, exceptions, nesting, modes and settings."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tesserec.autograd import (
    is_grad_enabled,
    no_grad,
    num_threads,
    one_thread_blas,
    parallel_map,
    set_num_threads,
)


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = num_threads()
    set_num_threads(3)
    yield
    set_num_threads(before)


def blas_threads() -> set[int]:
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_results_come_in_item_order() -> None:
    assert parallel_map(lambda i: i * i, range(50)) == [i * i for i in range(50)]
    assert parallel_map(lambda i: i, []) == []


def test_items_run_on_several_threads_at_once() -> None:
    barrier = threading.Barrier(3, timeout=30)
    names = parallel_map(lambda _: (barrier.wait(), threading.current_thread().name)[1], range(3))
    assert len(set(names)) == 3
    assert threading.current_thread().name in names


def test_one_item_or_one_thread_runs_inline() -> None:
    here = threading.get_ident()
    assert parallel_map(lambda _: threading.get_ident(), [0]) == [here]
    set_num_threads(1)
    assert parallel_map(lambda _: threading.get_ident(), [0, 1]) == [here, here]


def test_nested_maps_run_inline() -> None:
    def outer(i: int) -> set[int]:
        return {threading.get_ident()} | set(parallel_map(lambda _: threading.get_ident(), range(4)))

    assert all(len(idents) == 1 for idents in parallel_map(outer, range(8)))


def test_the_first_exception_in_item_order_is_raised_after_all_have_ended() -> None:
    second_failed = threading.Event()
    ended = []

    def work(i: int) -> None:
        if i == 0:
            second_failed.wait(30)
            raise KeyError("first")
        if i == 1:
            second_failed.set()
            raise ValueError("second")
        ended.append(i)

    with pytest.raises(KeyError, match="first"):
        parallel_map(work, range(3))
    assert ended in ([], [2])


def test_no_grad_of_the_caller_holds_inside() -> None:
    assert all(parallel_map(lambda _: is_grad_enabled(), range(4)))
    with no_grad():
        assert not any(parallel_map(lambda _: is_grad_enabled(), range(4)))


def test_the_number_of_threads_is_checked() -> None:
    with pytest.raises(ValueError, match="got 0, wanted 1 or more"):
        set_num_threads(0)


def test_the_environment_sets_the_number_of_threads() -> None:
    code = "from tesserec.autograd.workers import num_threads; print(num_threads())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"TESSEREC_NUM_THREADS": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "7"


def test_blas_is_held_to_one_thread_while_workers_run_and_no_longer() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas_threads()
    assert parallel_map(lambda _: blas_threads(), range(3)) == [{1}] * 3
    assert blas_threads() == before
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda i: 1 // i, range(3))
    assert blas_threads() == before


def test_blas_gets_its_threads_back_from_the_last_who_holds_it() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas_threads()
    with one_thread_blas():
        parallel_map(lambda i: i, range(3))
        assert blas_threads() == {1}
        with one_thread_blas():
            pass
        assert blas_threads() == {1}
    assert blas_threads() == before
