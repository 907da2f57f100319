"""Streaming metrics of binary predictions: `update` by batch, `compute` at the end, `merge` of partial ones.

`compute` gives {name: value}, NaN where a metric is not defined.
All of them take (B,) arrays: scores, labels 0 or 1, optional sample weights (positive), optional group keys.
Likelihood metrics keep sums in float64. AUC and GAUC are exact, so they keep the scores: AUC 4 bytes a row (8
with sample weights), GAUC 13 (17). `HistogramAUC` needs only its bins, and says how far off it can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tesserec.autograd.ops.elementwise import expit

F4 = npt.NDArray[np.float32]
F8 = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]


class MetricError(ValueError):
    """Scores, labels, weights or groups that a metric cannot be computed from."""


def sigmoid(logits: Floats) -> F8:
    """1 / (1 + exp(-z)) in float64, any shape, without overflow."""
    return expit(np.asarray(logits, np.float64))


@dataclass
class Likelihood:
    """log loss, normalized entropy and calibration of probabilities, from sums.

    log_loss: weighted mean of -log p(label), natural log. Probabilities are held in [1e-15, 1 - 1e-15].
    ne: log_loss / entropy of the average label; below 1 beats predicting the average. calibration: Σ
    predicted / Σ observed; 1 is perfect. Both as in He et al. 2014, section 3.
    every: rows of an update that are summed at once, the sums of which are kept (32 bytes each) and added
    exactly: so it does not matter how they come together.
    """

    every: int = 512
    rows: int = 0
    sums: list[F8] = field(default_factory=list)  # (4, sums): weight, loss, predicted, observed

    def update(
        self, scores: Floats, labels: Floats, weights: Floats | None = None, groups: Floats | None = None
    ) -> None:
        """scores: (B,) probabilities, float64 for full precision near 0 and 1."""
        _check(scores, labels, weights)
        if not len(scores):
            return
        p = np.clip(np.asarray(scores, np.float64), 1e-15, 1 - 1e-15)
        y = np.asarray(labels, np.float64)
        w = np.ones_like(p) if weights is None else np.asarray(weights, np.float64)
        loss = -w * (y * np.log(p) + (1 - y) * np.log1p(-p))
        starts = np.arange(0, len(p), self.every)
        self.rows += len(p)
        self.sums.append(np.array([np.add.reduceat(terms, starts) for terms in (w, loss, w * p, w * y)]))

    def merge(self, other: Self) -> None:
        self.rows += other.rows
        self.sums += other.sums

    def compute(self) -> dict[str, float]:
        sums = [math.fsum(chain(*parts)) for parts in zip(*self.sums, strict=True)]
        weight, loss, predicted, observed = sums or [0.0] * 4
        if not weight:
            return {"log_loss": np.nan, "ne": np.nan, "calibration": np.nan, "label_rate": np.nan}
        log_loss, rate = loss / weight, observed / weight
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else np.nan
        return {
            "log_loss": log_loss,
            "ne": float(log_loss / entropy),
            "calibration": predicted / observed if observed else np.nan,
            "label_rate": rate,
        }


@dataclass
class AUC:
    """Probability that a positive outscores a negative, ties counting half; weighted when weights are given.

    Exact: equals scikit-learn's `roc_auc_score`. Scores may be logits or anything else that ranks; they are
    kept as float32 (better logits than probabilities: these round to ties near 1). 4 bytes a row, 8 with
    weights.
    """

    positive: list[F4] = field(default_factory=list)
    negative: list[F4] = field(default_factory=list)
    positive_weight: list[F4] = field(default_factory=list)
    negative_weight: list[F4] = field(default_factory=list)

    def update(
        self, scores: Floats, labels: Floats, weights: Floats | None = None, groups: Floats | None = None
    ) -> None:
        is_positive = _check(scores, labels, weights)
        if self.positive and (weights is None) == bool(self.positive_weight):
            raise MetricError("AUC: sample weights must be given with every batch or with none")
        self.positive.append(scores[is_positive].astype(np.float32))
        self.negative.append(scores[~is_positive].astype(np.float32))
        if weights is not None:
            self.positive_weight.append(weights[is_positive].astype(np.float32))
            self.negative_weight.append(weights[~is_positive].astype(np.float32))

    def merge(self, other: Self) -> None:
        self.positive += other.positive
        self.negative += other.negative
        self.positive_weight += other.positive_weight
        self.negative_weight += other.negative_weight

    def compute(self) -> dict[str, float]:
        positive, negative = _joined(self.positive), _joined(self.negative)
        if not len(positive) or not len(negative):
            return {"auc": np.nan}
        if not self.positive_weight:
            return {"auc": _unweighted_auc(positive, negative)}
        return {
            "auc": _weighted_auc(
                positive, _joined(self.positive_weight), negative, _joined(self.negative_weight)
            )
        }


@dataclass
class HistogramAUC:
    """AUC of scores counted into `bins` equal bins of their sigmoid: fixed memory, 16 bytes a bin.

    Approximate, hence its own name: pairs that share a bin count half. `auc_histogram_error` bounds the
    distance to the exact value. scores: logits.
    """

    bins: int = 1 << 16
    positive: F8 = field(init=False)
    negative: F8 = field(init=False)

    def __post_init__(self) -> None:
        self.positive, self.negative = np.zeros(self.bins), np.zeros(self.bins)

    def update(
        self, scores: Floats, labels: Floats, weights: Floats | None = None, groups: Floats | None = None
    ) -> None:
        is_positive = _check(scores, labels, weights)
        bin_of = np.minimum((sigmoid(scores) * self.bins).astype(np.int64), self.bins - 1)
        for held, which in ((self.positive, is_positive), (self.negative, ~is_positive)):
            held += np.bincount(bin_of[which], None if weights is None else weights[which], self.bins)

    def merge(self, other: Self) -> None:
        if self.bins != other.bins:
            raise MetricError(f"HistogramAUC: cannot merge {other.bins} bins into {self.bins}")
        self.positive += other.positive
        self.negative += other.negative

    def compute(self) -> dict[str, float]:
        pairs = self.positive.sum() * self.negative.sum()
        if not pairs:
            return {"auc_histogram": np.nan, "auc_histogram_error": np.nan}
        tied = self.positive @ self.negative / 2
        below = self.negative.cumsum() - self.negative
        won = self.positive @ below + tied
        return {"auc_histogram": float(won / pairs), "auc_histogram_error": float(tied / pairs)}


@dataclass
class GAUC:
    """Mean AUC within groups, each weighing as many samples as it has, or their weights.

    Zhu et al. 2017, section 4.2. Groups whose labels are all equal have no AUC and are left out;
    `gauc_groups` counts those that remain. 13 bytes a row, 17 with sample weights.
    """

    parts: list[tuple[F4, npt.NDArray[np.bool_], npt.NDArray[np.int64], F4 | None]] = field(
        default_factory=list
    )

    def update(
        self, scores: Floats, labels: Floats, weights: Floats | None = None, groups: Floats | None = None
    ) -> None:
        is_positive = _check(scores, labels, weights)
        if groups is None or np.shape(groups) != np.shape(scores):
            raise MetricError(
                f"GAUC: wanted one group per score, {np.shape(scores)}; got {np.shape(groups or ())}"
            )
        weights = None if weights is None else np.array(weights, np.float32)
        self.parts.append((np.array(scores, np.float32), is_positive, np.array(groups, np.int64), weights))

    def merge(self, other: Self) -> None:
        self.parts += other.parts

    def compute(self) -> dict[str, float]:
        if not self.parts:
            return {"gauc": np.nan, "gauc_groups": 0}
        scores = np.concatenate([part[0] for part in self.parts])
        is_positive = np.concatenate([part[1] for part in self.parts])
        groups = np.concatenate([part[2] for part in self.parts])
        weights = np.concatenate([_or_ones(part[3], len(part[0])) for part in self.parts])
        auc, mass = _auc_by_group(scores, is_positive, groups, weights)
        defined = ~np.isnan(auc)
        if not defined.any():
            return {"gauc": np.nan, "gauc_groups": 0}
        gauc = np.average(auc[defined], weights=mass[defined])
        return {"gauc": float(gauc), "gauc_groups": int(defined.sum())}


class RankingMetrics:
    """The metrics of a ranking model from its logits: AUC, log loss, NE, calibration; GAUC given groups."""

    def __init__(self, *, grouped: bool = False, exact_auc: bool = True, every: int = 512):
        """every: see `Likelihood`."""
        self.likelihood = Likelihood(every)
        self.by_rank: list[AUC | HistogramAUC | GAUC] = [AUC() if exact_auc else HistogramAUC()]
        if grouped:
            self.by_rank.append(GAUC())

    def update(
        self, logits: Floats, labels: Floats, weights: Floats | None = None, groups: Floats | None = None
    ) -> None:
        """logits (B,): AUC ranks by them; the others see their sigmoid in float64."""
        self.likelihood.update(sigmoid(logits), labels, weights)
        for metric in self.by_rank:
            metric.update(logits, labels, weights, groups)

    def merge(self, other: RankingMetrics) -> None:
        self.likelihood.merge(other.likelihood)
        for mine, theirs in zip(self.by_rank, other.by_rank, strict=True):
            mine.merge(theirs)  # type: ignore[arg-type]  # both were made alike

    def compute(self) -> dict[str, float]:
        values: dict[str, float] = {"rows": self.likelihood.rows}
        for metric in (*self.by_rank, self.likelihood):
            values |= metric.compute()
        return values


def _check(scores: Floats, labels: Floats, weights: Floats | None) -> npt.NDArray[np.bool_]:
    """Which labels are positive: (B,) bool. Raises MetricError on anything a metric would silently mangle."""
    for name, array in (("labels", labels), ("weights", weights)):
        if array is not None and (np.ndim(array) != 1 or np.shape(array) != np.shape(scores)):
            raise MetricError(
                f"{name} have shape {np.shape(array)}, scores {np.shape(scores)}: wanted (B,) twice"
            )
    if np.isnan(scores).any():
        raise MetricError(f"score {int(np.isnan(scores).argmax())} of {len(scores)} is NaN")
    positive: npt.NDArray[np.bool_] = labels == 1
    other = ~(positive | (labels == 0))
    if other.any():
        row = int(other.argmax())
        raise MetricError(f"label {row} is {labels[row]}, wanted 0 or 1")
    if weights is not None and not (weights >= 0).all():
        row = int((~(weights >= 0)).argmax())
        raise MetricError(f"weight {row} is {weights[row]}, wanted 0 or more")
    return positive


def _joined(parts: Sequence[F4]) -> F4:
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _or_ones(weights: F4 | None, rows: int) -> F4:
    return np.ones(rows, np.float32) if weights is None else weights


def _pieces(rows: int, size: int = 1 << 20) -> Iterator[slice]:
    """Slices that cover `rows`, so that temporaries stay small."""
    return (slice(lo, lo + size) for lo in range(0, rows, size))


def _unweighted_auc(positive: F4, negative: F4) -> float:
    """(negatives below + half of those equal, summed over positives) / pairs. Sorts both arrays in place."""
    positive.sort()
    negative.sort()
    twice_won = 0
    for piece in _pieces(len(positive)):
        for side in ("left", "right"):
            twice_won += int(negative.searchsorted(positive[piece], side).sum())
    return twice_won / 2 / len(positive) / len(negative)


def _weighted_auc(positive: F4, positive_weight: F4, negative: F4, negative_weight: F4) -> float:
    """The same with each pair weighing the product of its samples' weights."""
    order = np.argsort(negative)
    negative = negative[order]
    below = np.zeros(len(negative) + 1)
    np.cumsum(negative_weight[order], dtype=np.float64, out=below[1:])
    twice_won = 0.0
    for piece in _pieces(len(positive)):
        left, right = (negative.searchsorted(positive[piece], side) for side in ("left", "right"))
        twice_won += float(positive_weight[piece].astype(np.float64) @ (below[left] + below[right]))
    pairs = float(positive_weight.sum(dtype=np.float64)) * float(below[-1])
    return twice_won / 2 / pairs if pairs else np.nan


def _auc_by_group(
    scores: F4, is_positive: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64], weights: F4
) -> tuple[F8, F8]:
    """(AUC, summed weight) of each group: (G,) twice. AUC is NaN where a group has one class only."""
    order = np.lexsort((scores, groups))
    scores, groups = scores[order], groups[order]
    weight = weights[order].astype(np.float64)
    positive = np.where(is_positive[order], weight, 0.0)

    new_group = np.r_[True, groups[1:] != groups[:-1]]
    ties = np.flatnonzero(new_group | np.r_[True, scores[1:] != scores[:-1]])
    group_starts = np.searchsorted(ties, np.flatnonzero(new_group))
    tied_weight, tied_positive = np.add.reduceat(weight, ties), np.add.reduceat(positive, ties)
    tied_negative = tied_weight - tied_positive

    below = np.cumsum(tied_negative) - tied_negative
    sizes = np.diff(np.r_[group_starts, len(ties)])
    below -= np.repeat(below[group_starts], sizes)
    won = np.add.reduceat(tied_positive * (below + tied_negative / 2), group_starts)
    pairs = np.add.reduceat(tied_positive, group_starts) * np.add.reduceat(tied_negative, group_starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan), np.add.reduceat(tied_weight, group_starts)
