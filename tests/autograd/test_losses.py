"""Losses: the formulas, weights and reductions, gradients, and the mistakes they catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import Tensor, gradcheck, losses

quick = settings(max_examples=8, deadline=None)
cases = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def check(loss: Callable[..., Tensor], args: list[Any], each: Any, rng: np.random.Generator) -> None:
    """`loss` reduces the numbers `each` in every way, and its gradients are right."""
    w = rng.uniform(0.5, 2, len(each))
    tensors = [Tensor(a) for a in args]
    np.testing.assert_allclose(loss(*tensors, reduction="none").data, each)
    np.testing.assert_allclose(loss(*tensors, reduction="sum").data, each.sum())
    np.testing.assert_allclose(loss(*tensors).data, each.mean())
    np.testing.assert_allclose(loss(*tensors, weights=w).data, np.average(each, weights=w))
    np.testing.assert_allclose(loss(*tensors, weights=w, reduction="sum").data, (w * each).sum())
    np.testing.assert_allclose(loss(*tensors, weights=w, reduction="none").data, w * each)
    gradcheck(loss, args)
    gradcheck(lambda *inputs: loss(*inputs[:-1], weights=inputs[-1]), [*args, w])


@given(cases)
@quick
def test_bce(case: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(case[0])
    z, y = rng.normal(size=case[1]), rng.random(case[1])
    p = sigmoid(z)
    check(losses.bce_with_logits, [z, y], -(y * np.log(p) + (1 - y) * np.log(1 - p)), rng)


def test_bce_is_stable_for_any_logit() -> None:
    z = Tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = losses.bce_with_logits(z, np.array([1, 0, 0, 1]), reduction="none")
    np.testing.assert_allclose(loss.data, [0, 0, 1e4, 1e4])
    loss.sum().backward()
    np.testing.assert_allclose(z.grad, [0, 0, 1, -1])


@given(cases)
@quick
def test_mse(case: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(case[0])
    x, y = rng.normal(size=(2, case[1]))
    check(losses.mse, [x, y], (x - y) ** 2, rng)


@given(cases)
@quick
def test_bpr(case: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(case[0])
    x, y = rng.normal(size=(2, case[1]))
    check(losses.bpr, [x, y], -np.log(sigmoid(x - y)), rng)


@given(cases)
@quick
def test_softmax_cross_entropy(case: tuple[int, int, int]) -> None:
    seed, b, c = case
    rng = np.random.default_rng(seed)
    z, classes = rng.normal(size=(b, c)), rng.integers(0, c, b)
    each = -np.log((np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))[np.arange(b), classes])

    def loss(z: Tensor, **options: Any) -> Tensor:
        return losses.softmax_cross_entropy(z, classes, **options)

    check(loss, [z], each, rng)


@given(cases)
@quick
def test_sampled_softmax(case: tuple[int, int, int]) -> None:
    seed, b, s = case
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(size=b), rng.normal(size=(b, s))
    own, sampled = np.log(rng.random(b)), np.log(rng.random(s))
    hits = rng.random((b, s)) < 0.3
    others = np.where(hits, 0, np.exp(negative - sampled)).sum(axis=1)
    each = -np.log(np.exp(positive - own) / (np.exp(positive - own) + others))

    def loss(positive: Tensor, negative: Tensor, **options: Any) -> Tensor:
        return losses.sampled_softmax(positive, negative, log_q=(own, sampled), hits=hits, **options)

    check(loss, [positive, negative], each, rng)


def test_sampled_softmax_with_every_class_is_the_full_one() -> None:
    z = np.random.default_rng(0).normal(size=(3, 5))
    classes = np.array([0, 4, 2])
    hits = np.arange(5) == classes[:, None]
    sampled = losses.sampled_softmax(Tensor(z[np.arange(3), classes]), Tensor(z), hits=hits)
    assert sampled.item() == pytest.approx(losses.softmax_cross_entropy(Tensor(z), classes).item())


@given(cases)
@quick
def test_in_batch_softmax(case: tuple[int, int, int]) -> None:
    seed, b, n = case
    rng = np.random.default_rng(seed)
    scores, log_q, items = rng.normal(size=(b, b)), np.log(rng.random(b)), rng.integers(0, n, b)
    corrected = np.exp(scores - log_q)
    counted = (items[:, None] != items) | np.eye(b, dtype=bool)
    each = -np.log(np.diag(corrected) / (corrected * counted).sum(axis=1))

    def loss(scores: Tensor, **options: Any) -> Tensor:
        return losses.in_batch_softmax(scores, log_q=log_q, items=items, **options)

    check(loss, [scores], each, rng)


def test_a_column_against_a_row_is_refused() -> None:
    z = Tensor(np.zeros((4, 1), np.float32))
    for loss in (losses.bce_with_logits, losses.mse, losses.bpr):
        with pytest.raises(ValueError, match=r"\(4, 1\) and \(4,\) differ.*reshape\(-1\)"):
            loss(z, Tensor(np.zeros(4, np.float32)))
    with pytest.raises(ValueError, match=r"weights \(4, 1\).*wanted \(4,\)"):
        losses.mse(z[:, 0], np.zeros(4, np.float32), weights=np.ones((4, 1), np.float32))


def test_first_mistakes_are_explained() -> None:
    z = Tensor(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="wanted 'mean', 'sum' or 'none'"):
        losses.mse(z, z, reduction="avg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reach from 0 to 3, wanted \[0, 3\)"):
        losses.softmax_cross_entropy(z, np.arange(4))
    with pytest.raises(ValueError, match="of integers"):
        losses.softmax_cross_entropy(z, np.zeros(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wanted \(B,\) and \(B, S\)"):
        losses.sampled_softmax(z, z)
    with pytest.raises(ValueError, match=r"wanted \(B, B\)"):
        losses.in_batch_softmax(z)
