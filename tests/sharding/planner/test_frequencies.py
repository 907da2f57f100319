from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.sharding.plan import PlanError
from tesserec.sharding.planner.frequencies import Frequencies, Lengths

ROWS = st.integers(1, 5000)
EXPONENTS = st.sampled_from([0.0, 0.7, 1.0, 1.2])


def chances(rows: int, exponent: float) -> np.ndarray:
    """(rows,) of Zipf's law."""
    weights = np.arange(1.0, rows + 1) ** -exponent
    return np.asarray(weights / weights.sum())


@settings(deadline=None, max_examples=60)
@given(ROWS, EXPONENTS, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_zipf_spans_are_sums_over_their_rows(rows: int, exponent: float, span: tuple[float, float]) -> None:
    lo, hi = sorted(int(part * rows) for part in span)
    truth, got = chances(rows, exponent), Frequencies.zipf(rows, exponent)
    assert got.rows == rows
    assert got.share(lo, hi) == pytest.approx(truth[lo:hi].sum(), rel=0.03, abs=1e-9)
    assert got.hottest(hi) == pytest.approx(truth[:hi].sum(), rel=0.03, abs=1e-9)
    unseen = np.where(truth < 1, (1 - truth) ** 1000, 0)
    assert got.distinct(1000, lo, hi) == pytest.approx((1 - unseen[lo:hi]).sum(), rel=0.03, abs=1e-9)


@pytest.mark.parametrize("exponent", [1.05, 1.3])
@pytest.mark.parametrize("ordered", [True, False])
def test_batches_hold_as_many_distinct_rows_as_foretold(exponent: float, ordered: bool) -> None:
    rows, ids, rng = 100_000, 20_000, np.random.default_rng(0)
    places = np.arange(rows) if ordered else rng.permutation(rows)
    edges = np.cumsum(chances(rows, exponent)[:-1])
    batches = [places[np.searchsorted(edges, rng.random(ids), side="right")] for _ in range(20)]
    got = Frequencies.zipf(rows, exponent, ordered)
    for lo, hi in ((0, 100), (100, 20_000), (30_000, rows), (0, rows)):
        inside = [batch[(batch >= lo) & (batch < hi)] for batch in batches]
        read, distinct = np.mean([len(ids) for ids in inside]), np.mean([len(set(ids)) for ids in inside])
        if read > 1000:  # else luck, as is where a few strewn hot rows lie
            assert not ordered or got.share(lo, hi) * ids == pytest.approx(read, rel=0.03)
            assert got.distinct(ids, lo, hi) == pytest.approx(distinct, rel=0.03 if ordered else 0.06)


@settings(deadline=None, max_examples=60)
@given(ROWS, EXPONENTS, st.booleans())
def test_questions_have_inverses(rows: int, exponent: float, ordered: bool) -> None:
    got = Frequencies.zipf(rows, exponent, ordered)
    shares = np.linspace(0, 1, 7)
    np.testing.assert_allclose(got.hottest(got.rows_for(shares)), shares, atol=1e-9)
    np.testing.assert_allclose(got.share(0, got.row_at(shares)), shares, atol=1e-9)
    assert got.distinct(10**15) == pytest.approx(rows)
    assert got.distinct(0) == 0 and got.distinct(1) == pytest.approx(1)


@settings(deadline=None, max_examples=60)
@given(ROWS, EXPONENTS, st.booleans(), st.integers(1, 64))
def test_even_cuts_give_every_part_a_row(rows: int, exponent: float, ordered: bool, parts: int) -> None:
    got = Frequencies.zipf(rows, exponent, ordered)
    if parts > rows:
        with pytest.raises(PlanError, match="parts"):
            got.even_cuts(parts)
        return
    cuts = got.even_cuts(parts)
    assert (cuts[0], cuts[-1]) == (0, rows) and (np.diff(cuts) > 0).all()
    shares = np.diff(cuts) / rows if not ordered else got.share(cuts[:-1], cuts[1:])
    largest = max(1 / parts, chances(rows, exponent)[0]) if ordered else 1 / parts
    assert shares.max() <= largest + chances(rows, exponent)[0] + 2 / rows


def test_questions_broadcast() -> None:
    got = Frequencies.zipf(1000, 1.1)
    ids, lo, hi = np.array([[10], [100]]), np.array([0, 10, 500]), np.array([10, 500, 1000])
    together = got.distinct(ids, lo, hi)
    assert together.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert together[i, j] == pytest.approx(got.distinct(ids[i, 0], lo[j], hi[j]))
    assert isinstance(got.distinct(10), float) and isinstance(got.share(0, 1), float)


def test_more_rows_are_never_read_and_fewer_share_the_ids() -> None:
    base = Frequencies.zipf(1000, 1.1)
    more, fewer = base.resized(5000), base.resized(100)
    assert (more.rows, fewer.rows) == (5000, 100)
    assert more.share(1000, 5000) == 0 and more.share(0, 10) == pytest.approx(base.share(0, 10))
    lost = base.share(100, 1000)
    assert fewer.share(0, 10) == pytest.approx(base.share(0, 10) + lost / 10)
    hashed = Frequencies.zipf(1000, 1.1, ordered=False).resized(100)
    assert hashed.hottest(10) == pytest.approx(fewer.share(0, 10))


def test_features_of_one_table_mix_by_their_ids() -> None:
    head, even = Frequencies.zipf(1000, 1.2), Frequencies.zipf(500, 0)
    mixed = Frequencies.mixed([(3, head), (1, even)])
    assert mixed.rows == 1000
    for lo, hi in ((0, 1), (5, 100), (400, 1000)):
        expected = 0.75 * head.share(lo, hi) + 0.25 * even.resized(1000).share(lo, hi)
        assert mixed.share(lo, hi) == pytest.approx(expected, abs=1e-9)
    assert Frequencies.mixed([(0, head)]).share(0, 9) == pytest.approx(head.share(0, 9))


@pytest.mark.parametrize(
    ("counts", "shares", "wanted"),
    [
        ([1, 2], [0.5], "counts and shares"),
        ([], [], "counts and shares"),
        ([1, 0], [0.5, 0.5], "counts > 0"),
        ([1, 1], [0.5, 0.4], "sum 1"),
        ([1, 1], [1.5, -0.5], "sum 1"),
        ([1, 1], [float("nan"), 1], "sum 1"),
    ],
)
def test_impossible_frequencies_are_refused(counts: list[float], shares: list[float], wanted: str) -> None:
    with pytest.raises(PlanError, match=wanted):
        Frequencies(np.array(counts), np.array(shares))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(0, 400), st.integers(1, 100), min_size=1, max_size=200), st.floats(0, 1))
def test_lengths_keep_mean_empties_and_what_they_touch(bags: dict[int, int], share: float) -> None:
    values = np.array(sorted(bags), np.float64)
    weights = np.array([bags[int(value)] for value in values], np.float64)
    got = Lengths.of(values, weights)
    assert len(got.values) <= 32
    assert got.mean == pytest.approx(values @ weights / weights.sum())
    assert got.empty == pytest.approx(weights[values == 0].sum() / weights.sum())
    truth = 1 - (1 - share) ** values @ weights / weights.sum()
    assert got.touched(share) == pytest.approx(truth, abs=0.015)


def test_lengths_by_name() -> None:
    assert Lengths.fixed(3).touched(0.5) == pytest.approx(0.875)
    assert (Lengths.fixed(2.25).mean, Lengths.fixed(2.25).values.tolist()) == (2.25, [2, 3])
    assert Lengths.poisson(4).touched(0.3) == pytest.approx(1 - np.exp(-1.2), rel=1e-3)
    assert Lengths.poisson(0).empty == 1
    np.testing.assert_allclose(Lengths.poisson(2).touched(np.array([0, 1])), [0, 1 - np.exp(-2)], atol=1e-9)
    with pytest.raises(PlanError, match="rising"):
        Lengths(np.array([2, 1]), np.array([0.5, 0.5]))
