"""Curves from a sample of ids against the law that the ids were drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.dataio.curve import curve_of
from tesserec.dataio.row_counts import ArrayCounter, RowCounter, TableCounter
from tesserec.sharding.planner.frequencies import Frequencies


def sketched(counter: RowCounter, ids: np.ndarray, rows: int) -> Frequencies:
    for part in np.array_split(ids, max(1, len(ids) // 65_536)):
        counter.add(part)
    curve = curve_of(counter.sketch(), rows)
    return Frequencies(np.array(curve.counts), np.array(curve.shares), curve.ordered)


def law(rows: int, exponent: float) -> np.ndarray:
    weights = np.arange(1.0, rows + 1) ** -exponent
    return np.asarray(weights / weights.sum())


def drawn(rows: int, exponent: float, count: int, *, strewn: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    ranks = np.searchsorted(np.cumsum(law(rows, exponent)[:-1]), rng.random(count), side="right")
    return rng.permutation(rows)[ranks] if strewn else ranks


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.05, 1.3])
@pytest.mark.parametrize("strewn", [False, True], ids=["ordered", "strewn"])
@pytest.mark.parametrize("limit", [None, 1 << 16], ids=["array", "table"])
def test_a_planted_law_is_found_again(exponent: float, strewn: bool, limit: int | None) -> None:
    rows, count = 200_000, 400_000
    ids = drawn(rows, exponent, count, strewn=strewn)
    counter = ArrayCounter(rows) if limit is None else TableCounter(rows, limit)
    got, truth = sketched(counter, ids, rows), law(rows, exponent)
    assert got.rows == pytest.approx(rows)
    assert got.ordered == (exponent > 0 and not strewn)
    for batch in (1000, 30_000, count):
        expected = -np.expm1(batch * np.log1p(-truth)).sum()
        assert got.distinct(batch) == pytest.approx(expected, rel=0.04)
    if exponent:
        for hot in (20, 200, 2000, 20_000, 100_000):
            assert got.hottest(hot) == pytest.approx(truth[:hot].sum(), rel=0.04)
    if got.ordered:
        for lo, hi in ((0, 10), (50, 5000), (30_000, 120_000), (150_000, rows)):
            expected = truth[lo:hi].sum()
            luck = 3 * np.sqrt(expected / count)
            assert got.share(lo, hi) == pytest.approx(expected, abs=0.02 * expected + luck)


def test_a_small_sample_does_not_make_even_ids_look_skewed() -> None:
    """Where 100,000 even ids of 200,000 rows were seen, the seen rows look hot; they are not."""
    got = sketched(ArrayCounter(200_000), drawn(200_000, 0, 100_000, strewn=True), 200_000)
    assert got.hottest(20_000) < 0.2  # the 20,000 most read rows had .4 of the sample
    assert got.distinct(100_000) == pytest.approx(200_000 * (1 - np.exp(-0.5)), rel=0.02)


def test_rows_that_no_id_reaches_stay_cold() -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(100_000)[rng.integers(0, 500, 200_000)]
    got = sketched(ArrayCounter(100_000), ids, 100_000)
    assert got.distinct(10**9) == pytest.approx(500, rel=0.02)
    assert got.hottest(500) > 0.98


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.lists(st.integers(0, 10**9), max_size=300), st.integers(1, 300))
def test_any_counts_make_a_whole_curve(rows: int, ids: list[int], times: int) -> None:
    counter = ArrayCounter(rows)
    counter.add(np.repeat(np.array(ids, np.int64) % rows, times))
    curve = curve_of(counter.sketch(), rows)
    assert sum(curve.counts) == pytest.approx(rows) and sum(curve.shares) == pytest.approx(1)
    assert min(curve.counts) > 0 and len(curve.counts) < 150
    Frequencies(np.array(curve.counts), np.array(curve.shares), curve.ordered)
