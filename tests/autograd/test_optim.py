"""Optimizers equal the written-out formulas over several steps; clipping; states that go on exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tesserec.autograd import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    RMSprop,
    StateError,
    Tensor,
    clip_grad_norm,
    clip_grad_value,
)
from tesserec.autograd.exact import Levels, levels_of

Floats = npt.NDArray[np.float64]
LR, DECAY = 0.1, 0.01


def naive_sgd(w: Floats, gs: list[Floats], mu: float = 0.0, nesterov: bool = False) -> Floats:
    v = np.zeros_like(w)
    for g in gs:
        g = g + DECAY * w
        v = mu * v + g
        w = w - LR * (g + mu * v if nesterov else v)
    return w


def naive_adagrad(w: Floats, gs: list[Floats]) -> Floats:
    s = np.full_like(w, 0.5)
    for g in gs:
        g = g + DECAY * w
        s = s + g**2
        w = w - LR * g / (np.sqrt(s) + 1e-3)
    return w


def naive_rmsprop(w: Floats, gs: list[Floats]) -> Floats:
    s = np.zeros_like(w)
    for g in gs:
        g = g + DECAY * w
        s = 0.9 * s + 0.1 * g**2
        w = w - LR * g / (np.sqrt(s) + 1e-3)
    return w


def naive_adam(w: Floats, gs: list[Floats], decoupled: bool = False) -> Floats:
    m = s = np.zeros_like(w)
    for t, g in enumerate(gs, 1):
        if decoupled:
            w = w - LR * DECAY * w
        else:
            g = g + DECAY * w
        m = 0.8 * m + 0.2 * g
        s = 0.9 * s + 0.1 * g**2
        w = w - LR * (m / (1 - 0.8**t)) / (np.sqrt(s / (1 - 0.9**t)) + 1e-3)
    return w


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Floats, list[Floats]], Floats]]] = {
    "sgd": (SGD, {}, naive_sgd),
    "momentum": (SGD, {"momentum": 0.9}, lambda w, gs: naive_sgd(w, gs, 0.9)),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, lambda w, gs: naive_sgd(w, gs, 0.9, True)),
    "adagrad": (Adagrad, {"eps": 1e-3, "initial": 0.5}, naive_adagrad),
    "rmsprop": (RMSprop, {"alpha": 0.9, "eps": 1e-3}, naive_rmsprop),
    "adam": (Adam, {"betas": (0.8, 0.9), "eps": 1e-3}, naive_adam),
    "adamw": (AdamW, {"betas": (0.8, 0.9), "eps": 1e-3}, lambda w, gs: naive_adam(w, gs, True)),
}


def steps(optimizer: Any, parameter: Tensor, gs: list[Floats]) -> None:
    for g in gs:
        parameter.grad = g.astype(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_equal_the_formula(name: str, dtype: Any) -> None:
    make, options, naive = CASES[name]
    rng = np.random.default_rng(0)
    w, gs = rng.normal(size=(3, 4)), list(rng.normal(size=(6, 3, 4)))
    parameter = Tensor(w.astype(dtype), requires_grad=True)
    steps(make([("w", parameter)], lr=LR, weight_decay=DECAY, **options), parameter, gs)
    assert parameter.dtype == dtype
    np.testing.assert_allclose(parameter.data, naive(w, gs), rtol=1e-4 if dtype == np.float32 else 1e-10)


def test_first_steps_known_in_closed_form() -> None:
    for make, options, want in [
        (SGD, {}, -0.2),
        (SGD, {"momentum": 0.9, "nesterov": True}, -0.1 * (2 + 0.9 * 2)),
        (Adagrad, {}, -0.1),  # g / |g|
        (Adam, {}, -0.1),
        (RMSprop, {}, -0.1 / math.sqrt(0.01)),
    ]:
        parameter = Tensor(0.0, requires_grad=True)
        steps(make([("w", parameter)], lr=0.1, **options), parameter, [np.array(2.0)])
        assert parameter.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_state_goes_on_exactly(name: str) -> None:
    make, options, _ = CASES[name]
    rng = np.random.default_rng(1)
    w, gs = rng.normal(size=5).astype(np.float32), list(rng.normal(size=(6, 5)))
    through, first = (Tensor(w.copy(), requires_grad=True) for _ in range(2))
    steps(make([("w", through)], lr=LR, **options), through, gs)
    before = make([("w", first)], lr=LR, **options)
    steps(before, first, gs[:3])
    after = make([("w", first)], lr=LR, **options)
    after.load_state_dict({k: np.copy(v) for k, v in before.state_dict().items()})
    steps(after, first, gs[3:])
    np.testing.assert_array_equal(first.data, through.data)
    assert after.steps == 6


def test_a_state_of_another_model_is_refused() -> None:
    w = Tensor(np.ones(2), requires_grad=True)
    adam = Adam([("w", w)], lr=0.1)
    with pytest.raises(StateError, match=r"unexpected 'mean.v', did you mean 'mean.w'"):
        adam.load_state_dict(Adam([("v", w)], lr=0.1).state_dict())


def test_a_parameter_without_gradient_is_left_alone() -> None:
    w = Tensor(np.ones(2), requires_grad=True)
    optimizer = SGD([("w", w)], lr=0.1, weight_decay=1.0)
    optimizer.step()
    np.testing.assert_array_equal(w.data, [1, 1])
    w.grad = np.ones(2)
    optimizer.zero_grad()
    assert w.grad is None


def test_what_cannot_be_updated_is_refused() -> None:
    with pytest.raises(ValueError, match="'w': its array must be contiguous"):
        SGD([("w", Tensor(np.ones((2, 3)).T, requires_grad=True))], lr=0.1)
    with pytest.raises(ValueError, match="momentum above 0"):
        SGD([], lr=0.1, nesterov=True)
    w = Tensor(np.ones(2), requires_grad=True)
    w.grad = Rows(1.0)
    with pytest.raises(TypeError, match=r"'w' has a Rows as gradient.*row optimizer"):
        SGD([("w", w)], lr=0.1).step()


class Rows:
    """Stands for a RowGrad."""

    def __init__(self, value: float):
        self.value = value

    def squares(self) -> Levels:
        return levels_of(np.array(self.value))

    def scale(self, factor: float) -> Rows:
        return Rows(self.value * factor)

    def clip(self, low: float, high: float) -> Rows:
        return Rows(max(low, min(self.value, high)))


def parameters() -> list[Tensor]:
    a, b, table, unused = (Tensor([0.0, 0.0], requires_grad=True) for _ in range(4))
    a.grad = np.array([3.0, 0.0], np.float32)
    b.grad = np.array(4.0, np.float32)
    table.grad = Rows(12.0)
    return [a, b, table, unused]


def test_the_norm_is_of_all_gradients_together() -> None:
    params = parameters()
    held = params[0].grad
    assert clip_grad_norm(params, 6.5) == pytest.approx(13)
    np.testing.assert_allclose(params[0].grad, [1.5, 0])
    assert params[1].grad == pytest.approx(2)
    assert params[2].grad.value == pytest.approx(6)
    np.testing.assert_array_equal(held, [3, 0])
    assert clip_grad_norm(params, 100) == pytest.approx(6.5)
    assert all(p.grad.dtype == np.float32 and isinstance(p.grad, np.ndarray) for p in params[:2])


def test_a_norm_that_is_not_finite_is_an_error() -> None:
    params = parameters()
    params[0].grad[0] = np.nan
    with pytest.raises(ValueError, match="norm of the gradients is inf"):
        clip_grad_norm(params, 1.0)


def test_values_are_clipped_each() -> None:
    params = parameters()
    clip_grad_value(params, 3.5)
    np.testing.assert_array_equal(params[0].grad, [3, 0])
    assert params[1].grad == params[2].grad.value == 3.5
