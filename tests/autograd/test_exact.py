"""Sums of squares are the exact ones, rounded once, however the numbers are cut and ordered."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tesserec.autograd.exact import levels_of, total_of
from tesserec.autograd.workers import num_threads, set_num_threads

quick = settings(max_examples=100, deadline=None)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@quick
@given(arrays(np.float32, st.integers(0, 40), elements=floats), st.integers(0, 40))
def test_sum_is_exact_and_does_not_depend_on_parts(values: Any, cut: int) -> None:
    exact = sum((Fraction(float(x)) ** 2 for x in values), Fraction(0))
    assert total_of(levels_of(values)) == float(exact)
    parts = levels_of(values[cut:][::-1]) + levels_of(values[:cut])
    assert total_of(parts) == float(exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponents", [(0, 1), (-6, 0), (-35, 18)])
def test_many_numbers_are_summed_exactly_by_any_threads(dtype: Any, exponents: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1000, 700)) * 10.0 ** rng.integers(*exponents, (1000, 700))
    values = values.astype(dtype)
    results, before = [], num_threads()
    try:
        for threads in (1, 4):
            set_num_threads(threads)
            results.append(total_of(levels_of(values)))
    finally:
        set_num_threads(before)
    assert results == [math.fsum(np.square(values, dtype=np.float64).ravel().tolist())] * 2
    assert (
        total_of(levels_of(values[:, ::3]) + levels_of(values[:, 1::3]) + levels_of(values[:, 2::3]))
        == results[0]
    )


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 1e200])
def test_what_is_not_finite_makes_the_sum_infinite(bad: float) -> None:
    values = np.ones(5000)
    values[3000] = bad
    assert total_of(levels_of(values)) == math.inf


def test_nothing_and_the_smallest_number() -> None:
    assert total_of(levels_of(np.empty((0, 3), np.float32))) == 0
    least = np.array([np.finfo(np.float32).smallest_subnormal])
    assert total_of(levels_of(least)) == 2.0**-298
