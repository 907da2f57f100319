"""Metrics equal scikit-learn's, whatever the batches, ties and weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from tesserec.train.metrics import (
    AUC,
    GAUC,
    HistogramAUC,
    Likelihood,
    MetricError,
    RankingMetrics,
    sigmoid,
)

Array = npt.NDArray[Any]
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


def sample(seed: int, *, ties: bool, weighted: bool) -> tuple[Array, Array, Array | None, Array]:
    """(scores, labels, weights, groups); both classes occur."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(2, 200))
    scores = rng.standard_normal(rows).astype(np.float32)
    if ties:
        scores = np.round(scores, 0)
    labels = (rng.random(rows) < 0.3).astype(np.float32)
    labels[:2] = 0, 1
    weights = rng.random(rows).astype(np.float32) + np.float32(0.01) if weighted else None
    return scores, labels, weights, rng.integers(0, 8, rows)


def feed(metric: Any, *arrays: Array | None, parts: int = 3) -> Any:
    """`metric` after the arrays in several batches."""
    for piece in zip(
        *(np.array_split(a, parts) if a is not None else [None] * parts for a in arrays), strict=True
    ):
        metric.update(*piece)
    return metric


@quick
@given(seed=seeds, ties=st.booleans(), weighted=st.booleans())
def test_auc_equals_sklearn(seed: int, ties: bool, weighted: bool) -> None:
    scores, labels, weights, _ = sample(seed, ties=ties, weighted=weighted)
    want = roc_auc_score(labels, scores, sample_weight=weights)
    assert feed(AUC(), scores, labels, weights).compute()["auc"] == pytest.approx(want, abs=1e-6)


@quick
@given(seed=seeds, ties=st.booleans(), weighted=st.booleans())
def test_gauc_is_the_weighted_mean_of_group_aucs(seed: int, ties: bool, weighted: bool) -> None:
    scores, labels, weights, groups = sample(seed, ties=ties, weighted=weighted)
    w = np.ones(len(scores)) if weights is None else weights
    aucs, mass = [], []
    for g in np.unique(groups):
        mine = groups == g
        if len(np.unique(labels[mine])) == 2:
            aucs.append(roc_auc_score(labels[mine], scores[mine], sample_weight=w[mine]))
            mass.append(w[mine].sum())
    got = feed(GAUC(), scores, labels, weights, groups).compute()
    assert got["gauc_groups"] == len(aucs)
    if aucs:
        assert got["gauc"] == pytest.approx(np.average(aucs, weights=mass), abs=1e-6)
    else:
        assert np.isnan(got["gauc"])


@quick
@given(seed=seeds, weighted=st.booleans())
def test_likelihood_equals_sklearn_and_definitions(seed: int, weighted: bool) -> None:
    scores, labels, weights, _ = sample(seed, ties=False, weighted=weighted)
    p = sigmoid(scores)
    got = feed(Likelihood(), p, labels, weights).compute()
    want = log_loss(labels, p, sample_weight=weights)
    rate = np.average(labels, weights=weights)
    assert got["log_loss"] == pytest.approx(want, rel=1e-6)
    assert got["ne"] == pytest.approx(
        want / log_loss(labels, np.full(len(p), rate), sample_weight=weights), rel=1e-6
    )
    assert got["calibration"] == pytest.approx(np.average(p, weights=weights) / rate, rel=1e-6)


@quick
@given(seed=seeds, ties=st.booleans(), weighted=st.booleans())
def test_histogram_auc_is_within_its_own_error_bound(seed: int, ties: bool, weighted: bool) -> None:
    scores, labels, weights, _ = sample(seed, ties=ties, weighted=weighted)
    got = feed(HistogramAUC(64), scores, labels, weights).compute()
    exact = roc_auc_score(labels, scores, sample_weight=weights)
    assert abs(got["auc_histogram"] - exact) <= got["auc_histogram_error"] + 1e-9


@pytest.mark.parametrize("exact", [True, False])
def test_merged_parts_equal_the_whole(exact: bool) -> None:
    scores, labels, weights, groups = sample(5, ties=True, weighted=True)
    whole = feed(RankingMetrics(grouped=True, exact_auc=exact), scores, labels, weights, groups)
    merged = RankingMetrics(grouped=True, exact_auc=exact)
    assert weights is not None
    for piece in (slice(0, 7), slice(7, None)):
        part = RankingMetrics(grouped=True, exact_auc=exact)
        part.update(scores[piece], labels[piece], weights[piece], groups[piece])
        merged.merge(part)
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-12)


@pytest.mark.parametrize("cuts", [[0, 96], [0, 32, 96], [0, 8, 48, 96]])
def test_whole_sums_give_the_same_bits_however_they_come_together(cuts: list[int]) -> None:
    """What ranks do: each measures some runs of `every` rows."""
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal(96).astype(np.float32), rng.integers(0, 2, 96)
    weights = rng.uniform(0.1, 9, 96).astype(np.float32)
    merged = RankingMetrics(every=8)
    for lo, hi in pairwise(cuts):
        part = RankingMetrics(every=8)
        part.update(scores[lo:hi], labels[lo:hi], weights[lo:hi])
        merged.merge(part)
    whole = RankingMetrics(every=8)
    whole.update(scores, labels, weights)
    assert merged.compute() == whole.compute()


def test_one_class_has_no_auc() -> None:
    metrics = feed(
        RankingMetrics(grouped=True), np.ones(6), np.ones(6), None, np.zeros(6, np.int64)
    ).compute()
    assert np.isnan(metrics["auc"]) and np.isnan(metrics["gauc"]) and np.isnan(metrics["ne"])
    assert metrics["log_loss"] == pytest.approx(-np.log(sigmoid(np.ones(1))[0]))


def test_nothing_seen_is_nan_not_an_error() -> None:
    values = RankingMetrics(grouped=True).compute()
    assert values["rows"] == 0 and np.isnan(values["auc"]) and np.isnan(values["log_loss"])


def test_saturated_logits_still_rank() -> None:
    """Their sigmoids are equal in float32; exact AUC sees the logits."""
    metrics = feed(
        RankingMetrics(), np.array([40.0, 41, 42, 43], np.float32), np.array([0, 0, 1, 1])
    ).compute()
    assert metrics["auc"] == 1.0 and np.isfinite(metrics["log_loss"])


@pytest.mark.parametrize(
    ("scores", "labels", "weights", "message"),
    [
        ([0.1, np.nan], [0, 1], None, "score 1 of 2 is NaN"),
        ([0.1, 0.2], [0, 2], None, "label 1 is 2"),
        ([0.1, 0.2], [0, 1, 1], None, "labels have shape"),
        ([0.1, 0.2], [0, 1], [1, -1], "weight 1 is -1"),
    ],
)
def test_what_cannot_be_measured_is_named(scores: Any, labels: Any, weights: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        AUC().update(np.array(scores), np.array(labels), None if weights is None else np.array(weights))


def test_gauc_wants_groups() -> None:
    with pytest.raises(MetricError, match="one group per score"):
        GAUC().update(np.zeros(2), np.zeros(2))
