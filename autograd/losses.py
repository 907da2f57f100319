"""Losses: one number per sample, then one reduction for all of them.

`reduction` is "mean" (weighted: Σ w·loss / Σ w), "sum" (Σ w·loss) or "none" (w·loss per sample, (B,)).
Labels, weights and log-probabilities of sampling may be arrays; gradients flow to every Tensor that asks
for one.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tesserec.autograd import ops
from tesserec.autograd.kernels import loss as kernels
from tesserec.autograd.ops.elementwise import Result
from tesserec.autograd.tensor import Array, Operand, Tensor, numbers, op

Reduction = Literal["mean", "sum", "none"]


def bce_with_logits(
    logits: Tensor, labels: Operand, weights: Operand | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Binary cross-entropy of logits: (B,), (B,) in [0, 1], (B,) -> (). Stable for any finite logit."""
    _same_shape("bce_with_logits", logits, labels)
    return _reduced(_bce(logits, labels), weights, reduction)


@op
def _bce(z: Array, y: Array) -> Result:
    losses, slopes = np.empty(z.shape, z.dtype), np.empty(z.shape, z.dtype)
    kernels.bce_with_logits(z.reshape(-1), np.ravel(y), losses.reshape(-1), slopes.reshape(-1))
    return losses, (lambda g: g * slopes, lambda g: -g * z)


def mse(
    predictions: Tensor, targets: Operand, weights: Operand | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """Squared error: (B,), (B,) -> ()."""
    _same_shape("mse", predictions, targets)
    return _reduced((predictions - targets) ** 2, weights, reduction)


def softmax_cross_entropy(
    logits: Tensor,
    classes: npt.NDArray[np.integer[Any]],
    weights: Operand | None = None,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """-log softmax(logits)[class]: (B, C), (B,) of integers in [0, C) -> ()."""
    classes = np.asarray(classes)
    if logits.ndim != 2 or classes.shape != logits.shape[:1] or classes.dtype.kind not in "iu":
        raise ValueError(
            f"softmax_cross_entropy: logits {logits.shape} and classes {classes.dtype} {classes.shape}: "
            "wanted logits (B, C) and classes (B,) of integers"
        )
    if classes.size and (classes.min() < 0 or classes.max() >= logits.shape[1]):
        raise ValueError(
            f"softmax_cross_entropy: classes reach from {classes.min()} to {classes.max()}, "
            f"wanted [0, {logits.shape[1]})"
        )
    rows = np.arange(len(classes))
    return _reduced(-ops.log_softmax(logits)[rows, classes], weights, reduction)


def bpr(
    positive: Tensor, negative: Tensor, weights: Operand | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """-log σ(positive - negative): (B,), (B,) -> (). Bayesian personalised ranking, Rendle et al. 2009."""
    _same_shape("bpr", positive, negative)
    return _reduced(ops.softplus(negative - positive), weights, reduction)


def sampled_softmax(
    positive: Tensor,
    negative: Tensor,
    *,
    log_q: tuple[Operand, Operand] | None = None,
    hits: npt.NDArray[np.bool_] | None = None,
    weights: Operand | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the positive among itself and S sampled negatives: logits (B,), (B, S) -> ().

    log_q: log-probability with which the sampler draws the positives (B,) and the negatives (B, S) or (S,);
    it is subtracted from the logits, which makes the gradient that of the full softmax in the limit. hits:
    (B, S), where a sampled negative is the positive itself: left out. Bengio & Senécal 2008; Jean et al.
    2015, section 3; the correction as in Yi et al. 2019, equation 3.
    """
    if positive.ndim != 1 or negative.ndim != 2 or len(positive) != len(negative):
        raise ValueError(
            f"sampled_softmax: positive {positive.shape}, negative {negative.shape}: wanted (B,) and (B, S)"
        )
    if log_q is not None:
        positive, negative = positive - log_q[0], negative - log_q[1]
    if hits is not None:
        negative = ops.where(hits, -np.inf, negative)
    logits = ops.concat(positive.reshape(-1, 1), negative, axis=1)
    return _reduced(ops.logsumexp(logits) - positive, weights, reduction)


def in_batch_softmax(
    scores: Tensor,
    *,
    log_q: Operand | None = None,
    items: npt.NDArray[np.integer[Any]] | None = None,
    weights: Operand | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of each query's own item among all of the batch: scores (B, B) -> ().

    The own scores are on the diagonal.

    Couples samples: the loss of a slice is not a slice of the loss. A model that trains with it says so by
    `couples_samples = True`, and then gets the whole batch at once (`layers.InBatchSoftmax` does). log_q:
    (B,), log-probability of each item to be in a batch, subtracted from its column. items: (B,) ids;
    another sample's item that equals the own one is left out. Yi et al. 2019, section 3.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"in_batch_softmax: scores {scores.shape}: wanted (B, B), queries @ items.T")
    own = np.eye(len(scores), dtype=np.bool_)
    if log_q is not None:
        scores = scores - log_q
    positive = scores[own]
    if items is not None:
        scores = ops.where((items[:, None] == items) & ~own, -np.inf, scores)
    return _reduced(ops.logsumexp(scores) - positive, weights, reduction)


def _same_shape(name: str, x: Tensor, y: Operand) -> None:
    """Broadcasting (B,) against (B, 1) makes (B, B), the classic silent error: refuse it."""
    if x.shape != np.shape(numbers(y)):
        raise ValueError(
            f"{name}: shapes {x.shape} and {np.shape(numbers(y))} differ; wanted the same, such as (B,): "
            "reshape one, for example logits.reshape(-1)"
        )


def _reduced(losses: Tensor, weights: Operand | None, reduction: Reduction) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction {reduction!r}: wanted 'mean', 'sum' or 'none'")
    if weights is None:
        return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()
    if np.shape(numbers(weights)) != losses.shape:
        raise ValueError(f"weights {np.shape(numbers(weights))}: wanted {losses.shape}, one for each sample")
    weighted = losses * weights
    if reduction == "none":
        return weighted
    total = weighted.sum()
    return total if reduction == "sum" else total / ops.sum(weights)
