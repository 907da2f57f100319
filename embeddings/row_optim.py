"""Row optimizers: the formulas of `tesserec.autograd.optim`, for the rows of a pool that a RowGrad names.

Rows without a gradient are left alone, and so is their state: nothing decays, nothing moves on. Distinct rows
are shared out among threads, so the result has the same bits for any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import copy_state
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.kernels import row_optim as kernels
from tesserec.embeddings.pool import Pool, aligned
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.embeddings.spans import even_spans

Array = npt.NDArray[Any]
Named = Iterable[tuple[str, Pool]]

_LEAST = 2048  # rows that are worth a task of their own


class RowOptimizer:
    """The shape of all of them: named pools, an `lr`, and per pool one array (R, …) for each name in `slots`.

    Below, g is the row's summed gradient plus weight_decay·w, so that decay too is for touched rows only.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, named_pools: Named, *, lr: float, weight_decay: float = 0.0):
        self.pools = dict(named_pools)
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = 0
        for name, pool in self.pools.items():
            if not isinstance(pool, Pool):
                raise TypeError(
                    f"parameter {name!r} is no Pool: give it to an optimizer of tesserec.autograd.optim"
                )
        self.state = {
            name: {slot: self.new_slot(pool) for slot in self.slots} for name, pool in self.pools.items()
        }

    def new_slot(self, pool: Pool) -> Array:
        """State of all rows of a pool at the start: zeros, which cost no memory until they are touched."""
        return aligned(pool.shape, pool.dtype, np.zeros)

    def step(self) -> None:
        """Update the rows that each pool's gradient names."""
        self.steps += 1
        for name, pool in self.pools.items():
            if pool.grad is not None:
                self._update_pool(pool, pool.grad, list(self.state[name].values()))

    def update(self, rows: Array, grads: Array, pool: Array, *slots: Array) -> None:
        """The formula, for distinct `rows` of one pool."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for pool in self.pools.values():
            pool.grad = None

    def state_dict(self) -> dict[str, Any]:
        """{"steps": int, "slot.pool": (R, …) array, …}; views. `pool.tables` says which rows are whose."""
        return {"steps": self.steps, **self._arrays()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. StateError, before any change, where it does not fit."""
        own = {"steps": np.array(self.steps), **self._arrays()}
        copy_state(state, own, type(self).__name__)
        self.steps = int(own["steps"])

    def _arrays(self) -> dict[str, Array]:
        return {f"{slot}.{name}": a for name, slots in self.state.items() for slot, a in slots.items()}

    def _update_pool(self, pool: Pool, grad: RowGrad, slots: list[Array]) -> None:
        rows, values = grad.rows, grad.values

        def update(span: tuple[int, int]) -> None:
            piece = slice(*span)
            self.update(rows[piece], values[piece], pool.data, *slots)

        parallel_map(update, even_spans(len(rows), _LEAST))


class RowSGD(RowOptimizer):
    """w -= lr·g."""

    def update(self, rows: Array, grads: Array, pool: Array, *slots: Array) -> None:
        kernels.sgd(rows, grads, pool, self.lr, self.weight_decay)


class RowAdagrad(RowOptimizer):
    """s += g², w -= lr·g / (√s + eps), by element; s starts at `initial`. Duchi, Hazan & Singer 2011.

    With `row_wise`, a row has one s, and g² is the mean over its elements: `RowWiseAdagrad`.
    """

    slots = ("total",)

    def __init__(
        self,
        named_pools: Named,
        *,
        lr: float,
        eps: float = 1e-10,
        initial: float = 0.0,
        weight_decay: float = 0.0,
        row_wise: bool = False,
    ):
        self.row_wise = row_wise
        super().__init__(named_pools, lr=lr, weight_decay=weight_decay)
        self.eps = eps
        if initial:
            for array in self._arrays().values():
                array.fill(initial)

    def new_slot(self, pool: Pool) -> Array:
        shape = pool.shape[:1] if self.row_wise else pool.shape
        return aligned(shape, pool.dtype, np.zeros)

    def update(self, rows: Array, grads: Array, pool: Array, *slots: Array) -> None:
        kernel = kernels.rowwise_adagrad if self.row_wise else kernels.adagrad
        kernel(rows, grads, pool, *slots, self.lr, self.weight_decay, self.eps)


def RowWiseAdagrad(
    named_pools: Named,
    *,
    lr: float,
    eps: float = 1e-10,
    initial: float = 0.0,
    weight_decay: float = 0.0,
) -> RowAdagrad:
    """Adagrad with one s per row, s += mean(g²): 1/D of the state. FBGEMM's "exact row-wise Adagrad"."""
    return RowAdagrad(named_pools, lr=lr, eps=eps, initial=initial, weight_decay=weight_decay, row_wise=True)


class RowAdam(RowOptimizer):
    """Lazy Adam: m = β₁·m + (1 - β₁)·g, s = β₂·s + (1 - β₂)·g², w -= lr·m̂ / (√ŝ + eps), of touched rows only.

    The moments of a row stand still while it has no gradient, where Adam's would decay and go on moving it.
    The bias correction, m̂ = m / (1 - β₁ᵗ) and ŝ = s / (1 - β₂ᵗ), counts the steps of the optimizer, not those
    of the row. Kingma & Ba 2015, algorithm 1; lazy as TensorFlow's LazyAdamOptimizer and torch's SparseAdam.
    """

    slots = ("mean", "square")

    def __init__(
        self,
        named_pools: Named,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(named_pools, lr=lr, weight_decay=weight_decay)
        self.betas = betas
        self.eps = eps

    def update(self, rows: Array, grads: Array, pool: Array, *slots: Array) -> None:
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.steps)
        lr = self.lr * root / (1 - beta1**self.steps)
        kernels.adam(rows, grads, pool, *slots, lr, self.weight_decay, (beta1, beta2), self.eps * root)


ROW_OPTIMIZERS: dict[str, Callable[..., RowOptimizer]] = {
    "sgd": RowSGD,
    "adagrad": RowAdagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": RowAdam,
}
