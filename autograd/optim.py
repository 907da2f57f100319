"""Optimizers of dense parameters: each is one formula and one compiled pass over the parameter, in place.

Rows of embedding tables have their own in `tesserec.embeddings.row_optim`. `lr` is a plain attribute: a
schedule sets it before each step. In the formulas g is the gradient plus weight_decay·w, and all is element
by element, so long parameters are cut into pieces, which the worker threads share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tesserec.autograd.exact import NOTHING, Levels, levels_of, total_of
from tesserec.autograd.kernels import optim as kernels
from tesserec.autograd.module import copy_state
from tesserec.autograd.slices import pieces
from tesserec.autograd.tensor import Array, Tensor, as_array
from tesserec.autograd.workers import parallel_map

Named = Iterable[tuple[str, Tensor]]


class Optimizer:
    """What all share: named parameters, an `lr`, and per parameter one array for each name in `slots`.

    A subclass writes `update`. A parameter whose `grad` is None is left alone.
    """

    def __init__(self, named_parameters: Named, slots: tuple[str, ...], *, lr: float, weight_decay: float):
        self.parameters = {name: _updatable(name, parameter) for name, parameter in named_parameters}
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = 0
        self.state = {
            name: {slot: np.zeros_like(parameter.data) for slot in slots}
            for name, parameter in self.parameters.items()
        }

    def step(self) -> None:
        """Update every parameter from its gradient."""
        self.steps += 1
        work = []
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                arrays = parameter.data, _dense(name, parameter.grad), *self.state[name].values()
                flat = [array.reshape(-1) for array in arrays]
                work += [[array[part] for array in flat] for part in pieces(parameter.size)]
        parallel_map(lambda item: self.update(item[0], item[1], item[2:]), work)

    def update(self, w: Array, g: Array, slots: list[Array]) -> None:
        """The formula, in place, for a piece of a parameter and of its slots, all flat. `g` is read only."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """{"steps": int, "slot.parameter": array, …}; views, not copies. `lr` belongs to the schedule."""
        return {"steps": self.steps, **self._arrays()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. StateError, before any change, where it does not fit."""
        own = {"steps": np.array(self.steps), **self._arrays()}
        copy_state(state, own, type(self).__name__)
        self.steps = int(own["steps"])

    def _arrays(self) -> dict[str, Array]:
        return {f"{slot}.{name}": a for name, slots in self.state.items() for slot, a in slots.items()}


class SGD(Optimizer):
    """w -= lr·g; with momentum µ: v = µ·v + g, then w -= lr·v, or w -= lr·(g + µ·v) if `nesterov`.

    Sutskever et al. 2013, in the form in which lr scales the whole step.
    """

    def __init__(
        self,
        named_parameters: Named,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0")
        super().__init__(
            named_parameters, ("velocity",) if momentum else (), lr=lr, weight_decay=weight_decay
        )
        self.momentum = momentum
        self.nesterov = nesterov

    def update(self, w: Array, g: Array, slots: list[Array]) -> None:
        if self.momentum:
            kernels.momentum(w, g, slots[0], self.lr, self.weight_decay, self.momentum, self.nesterov)
        else:
            kernels.sgd(w, g, self.lr, self.weight_decay)


class Adagrad(Optimizer):
    """s += g², w -= lr·g / (√s + eps); s starts at `initial`. Duchi, Hazan & Singer 2011."""

    def __init__(
        self,
        named_parameters: Named,
        *,
        lr: float,
        eps: float = 1e-10,
        initial: float = 0.0,
        weight_decay: float = 0.0,
    ):
        super().__init__(named_parameters, ("total",), lr=lr, weight_decay=weight_decay)
        self.eps = eps
        for total in self._arrays().values():
            total[...] = initial

    def update(self, w: Array, g: Array, slots: list[Array]) -> None:
        kernels.adagrad(w, g, slots[0], self.lr, self.weight_decay, self.eps)


class RMSprop(Optimizer):
    """s = alpha·s + (1 - alpha)·g², w -= lr·g / (√s + eps). Tieleman & Hinton 2012, lecture 6.5."""

    def __init__(
        self,
        named_parameters: Named,
        *,
        lr: float,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(named_parameters, ("square",), lr=lr, weight_decay=weight_decay)
        self.alpha = alpha
        self.eps = eps

    def update(self, w: Array, g: Array, slots: list[Array]) -> None:
        kernels.rmsprop(w, g, slots[0], self.lr, self.weight_decay, self.alpha, self.eps)


class Adam(Optimizer):
    """m = β₁·m + (1 - β₁)·g, s = β₂·s + (1 - β₂)·g², w -= lr·m̂ / (√ŝ + eps).

    m̂ = m / (1 - β₁ᵗ), ŝ = s / (1 - β₂ᵗ), where t counts the steps of the optimizer, not those of each
    parameter. Kingma & Ba 2015, algorithm 1. `decoupled`: the decay stays out of g, and w shrinks by
    lr·weight_decay·w instead.
    """

    def __init__(
        self,
        named_parameters: Named,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ):
        super().__init__(named_parameters, ("mean", "square"), lr=lr, weight_decay=weight_decay)
        self.betas = betas
        self.eps = eps
        self.decoupled = decoupled

    def update(self, w: Array, g: Array, slots: list[Array]) -> None:
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.steps)
        lr = self.lr * root / (1 - beta1**self.steps)
        if self.decoupled:
            w *= 1 - self.lr * self.weight_decay
        decay = 0.0 if self.decoupled else self.weight_decay
        kernels.adam(w, g, slots[0], slots[1], lr, decay, beta1, beta2, self.eps * root)


def AdamW(
    named_parameters: Named,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Adam:
    """Adam with decoupled weight decay. Loshchilov & Hutter 2019, algorithm 2."""
    return Adam(named_parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=True)


def clip_grad_norm(
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    squares: Callable[[Sequence[Tensor]], float] | None = None,
) -> float:
    """The norm of all gradients together, before they are scaled down to at most `max_norm`.

    Row gradients count too, after their rows are summed. squares: what gives the sum of the squares of all,
    where these are not the only ones. ValueError if the norm is not finite. Pascanu et al. 2013.
    """
    held = [p for p in parameters if p.grad is not None]
    norm = math.sqrt(squares(held) if squares else total_of(squares_of(held)))
    if not math.isfinite(norm):
        raise ValueError(
            f"clip_grad_norm: the norm of the gradients is {norm}: "
            "lower the learning rate, or look for extreme inputs"
        )
    if norm > max_norm:
        factor = max_norm / norm
        for p in held:
            p.grad = as_array(p.grad * factor) if isinstance(p.grad, np.ndarray) else p.grad.scale(factor)
    return norm


def clip_grad_value(parameters: Iterable[Tensor], max_value: float) -> None:
    """Move every element of every gradient into ±`max_value`; row gradients after their rows are summed."""
    for p in parameters:
        if p.grad is not None:
            p.grad = as_array(p.grad.clip(-max_value, max_value))


def squares_of(parameters: Iterable[Tensor]) -> Levels:
    """Σ g² over all elements of all gradients there are; `total_of` makes it a float."""
    grads = [p.grad for p in parameters if p.grad is not None]
    parts = (levels_of(grad) if isinstance(grad, np.ndarray) else grad.squares() for grad in grads)
    return sum(parts, NOTHING)


def _updatable(name: str, parameter: Tensor) -> Tensor:
    flags = parameter.data.flags
    if not (flags.c_contiguous and flags.writeable):
        raise ValueError(f"parameter {name!r}: its array must be contiguous and writable")
    return parameter


def _dense(name: str, grad: Any) -> Array:
    if not isinstance(grad, np.ndarray):
        raise TypeError(
            f"parameter {name!r} has a {type(grad).__name__} as gradient: rows of tables are updated by a "
            "row optimizer, so give this one only the dense parameters"
        )
    return np.ascontiguousarray(grad).reshape(-1)
