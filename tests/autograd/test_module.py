"""Modules: which parameters are found under which names, and what a state must fit."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from tesserec.autograd import (
    MLP,
    BatchNorm1d,
    Dropout,
    Linear,
    Module,
    ModuleList,
    Sequential,
    StateError,
    Tensor,
)


class Tower(Module):
    buffers: ClassVar = ("seen",)

    def __init__(self, rng: np.random.Generator):
        self.scale = Tensor(np.ones(1), requires_grad=True, dtype=np.float32)
        self.frozen = Tensor([5.0])
        self.seen = np.zeros(2, np.int64)
        self.first = Linear(2, 3, rng=rng)
        self.many = [Linear(3, 3, rng=rng, bias=False), (Linear(3, 1, rng=rng),)]
        self.by_name = {"a": Tensor([1.0], requires_grad=True)}
        self.tied = self.first
        self.note = "no parameter"

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(x)
        return h * self.scale


def tower(seed: int = 0) -> Tower:
    return Tower(np.random.default_rng(seed))


def test_parameters_come_once_with_their_paths() -> None:
    names = [name for name, _ in tower().named_parameters()]
    assert names == [
        "scale",
        "by_name.a",
        "first.weight",
        "first.bias",
        "many.0.weight",
        "many.1.0.weight",
        "many.1.0.bias",
    ]
    assert len({id(p) for p in tower().parameters()}) == len(names)


def test_state_holds_buffers_and_frozen_tensors_too() -> None:
    state = tower().state_dict()
    assert {"frozen", "seen"} < state.keys()
    assert state.keys() - {"frozen", "seen"} == {name for name, _ in tower().named_parameters()}


def test_state_is_a_view_and_loads_in_place() -> None:
    source, target = tower(1), tower(2)
    weight = target.first.weight.data
    source.seen[:] = 7
    target.load_state_dict(source.state_dict())
    assert weight is target.first.weight.data
    for name, array in target.state_dict().items():
        np.testing.assert_array_equal(array, source.state_dict()[name])


def test_a_state_that_does_not_fit_changes_nothing_and_lists_all() -> None:
    model = tower()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    state = {name: array + 1 for name, array in before.items()}
    state["first.wieght"] = state.pop("first.weight")
    state["first.bias"] = np.zeros(4)
    with pytest.raises(StateError) as error:
        model.load_state_dict(state)
    message = str(error.value)
    assert "Tower" in message
    assert "missing 'first.weight', shape (3, 2)" in message
    assert "unexpected 'first.wieght', did you mean 'first.weight'?" in message
    assert "'first.bias' has shape (4,), wanted (3,)" in message
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_integers_do_not_take_fractions() -> None:
    state = tower().state_dict() | {"seen": np.full(2, 0.5)}
    with pytest.raises(StateError, match="'seen' has type float64, wanted int64"):
        tower().load_state_dict(state)


def test_local_state_can_be_renamed() -> None:
    class Renamed(Tower):
        def local_state(self) -> dict[str, np.ndarray]:
            return {"all": self.scale.data}

    class Outer(Module):
        def __init__(self) -> None:
            self.inner = Renamed(np.random.default_rng(0))

    assert "inner.all" in Outer().state_dict()
    assert "inner.scale" not in Outer().state_dict()


def test_train_and_eval_reach_every_module() -> None:
    model = Sequential(Dropout(0.5), ModuleList([Dropout(0.1)]))
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())


def test_a_module_that_couples_samples_needs_the_whole_batch() -> None:
    rng = np.random.default_rng(0)
    assert not MLP((2, 2), rng=rng).needs_whole_batch
    assert MLP((2, 2, 2), rng=rng, batch_norm=True).needs_whole_batch
    assert Sequential(ModuleList([BatchNorm1d(2)])).needs_whole_batch


def test_modules_may_refer_back() -> None:
    parent, child = Sequential(), Tower(np.random.default_rng(0))
    parent.child, child.parent = child, parent  # type: ignore[attr-defined]
    assert [name for name, _ in parent.named_modules()][:2] == ["", "child"]


def test_module_list_and_sequential() -> None:
    rng = np.random.default_rng(0)
    layers = ModuleList([Linear(2, 3, rng=rng), Linear(3, 1, rng=rng)])
    model = Sequential(*layers, lambda x: x * 2.0)
    assert len(layers) == 2
    np.testing.assert_allclose(
        model(Tensor(np.ones((1, 2)), dtype=np.float32)).data,
        2 * layers[1](layers[0](np.ones((1, 2), np.float32))).data,
    )


def test_zero_grad_forgets() -> None:
    model = tower()
    model(Tensor([[1.0, 2.0]])).sum().backward()
    assert model.first.weight.grad is not None
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
