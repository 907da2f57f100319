"""`gradients(take=…)` offers each leaf's gradient once, when it is final, and leaves out what was taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import MLP, Module, Tensor, compile, gradients, ops

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


class Model(Module):
    """An MLP whose first weight is used once more at the end."""

    def __init__(self) -> None:
        self.mlp = MLP((4, 8, 3, 1), rng=np.random.default_rng(1))

    def forward(self, x: Any) -> Tensor:
        total: Tensor = self.mlp(x).reshape(-1)
        return total


def as_it_is(model: Module) -> Callable[[Any], Tensor]:
    return model


def compiled(model: Module) -> Callable[[Any], Tensor]:
    return compile(model)


def in_slices(model: Module) -> Callable[[Any], Tensor]:
    return compile(model, slice_size=2)


@pytest.mark.parametrize("made", [as_it_is, compiled, in_slices])
@pytest.mark.parametrize("again", [False, True])
def test_every_gradient_is_offered_once_and_is_final(made: Any, again: bool) -> None:
    model = Model()
    first = model.mlp.layers[0].weight

    def loss() -> Tensor:
        total: Tensor = made(model)(X).sum()
        return total + ops.multiply(first, first).sum() if again else total

    want, offered = gradients(loss()), {}

    def take(leaf: Tensor, g: Any) -> bool:
        assert leaf not in offered
        offered[leaf] = g.copy()
        return leaf is not first

    rest = gradients(loss(), take=take)
    assert list(rest) == [first]
    assert offered.keys() == want.keys()
    for leaf, g in want.items():
        np.testing.assert_array_equal(offered[leaf], g)
    np.testing.assert_array_equal(rest[first], want[first])


@pytest.mark.parametrize("made", [as_it_is, compiled])
def test_the_last_layers_come_first_while_others_are_still_to_come(made: Any) -> None:
    model, order = Model(), []
    fast = made(model)
    gradients(fast(X).sum())
    before = [leaf.data.copy() for leaf in model.parameters()]

    def take(leaf: Tensor, g: Any) -> bool:
        order.append(leaf)
        g.fill(np.nan)  # it is the taker's now: what comes later does not need it
        return True

    assert gradients(fast(X).sum(), take=take) == {}
    layers = [layer.weight for layer in model.mlp.layers]
    assert [leaf for leaf in order if leaf in layers] == layers[::-1]
    for leaf, data in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(leaf.data, data)
    assert np.isfinite(next(iter(gradients(fast(X).sum()).values()))).all()


def test_an_error_of_the_taker_is_raised() -> None:
    def take(leaf: Tensor, g: Any) -> bool:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        gradients(compile(Model())(X).sum(), take=take)
