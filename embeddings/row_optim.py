"""Row optimizers: formulas like those of `tesserec.autograd.optim`, for the rows that a RowGrad names.

Rows without a gradient are left alone, and so is their state: nothing decays, nothing moves on. The gradients
of a row are summed and the row is updated in one pass, without an array of sums between. Distinct rows are
shared out among threads, so the result has the same bits for any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import copy_state
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.allocation import aligned, is_planning
from tesserec.embeddings.kernels import row_optim as kernels
from tesserec.embeddings.kernels.rows import compute_dtype, stored
from tesserec.embeddings.pool import Pool, stream_key
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.embeddings.spans import Span

Array = npt.NDArray[Any]
Named = Iterable[tuple[str, Pool]]
Betas = tuple[float, float]
Decay = Literal["l2", "decoupled"]


@dataclass(eq=False)
class RowOptimizer:
    """The shape of all of them: named pools, an `lr`, and per pool one array (R, …) for each of its slots.

    g, below, is the sum of a row's gradients, its elements moved into ±clip. By `decay`, weight_decay·w is
    added to that ("l2"), or lr·weight_decay·w subtracted from the row beside the formula ("decoupled"). A row
    that has become longer than max_norm is shortened to it. All of this is for touched rows only.

    lr may be set at any time. table_lr: {table: what multiplies lr there}. seed: of the rounding of float16
    and bfloat16 rows, random with the right mean, and a function of (seed, table, step, row, column).

    cut: into what a step cuts the gradient of a pool, to update with one after the other; `RowGrad.only` some
    tables each, say, to see how long each takes.
    """

    named_pools: InitVar[Named]
    _: KW_ONLY
    lr: float
    weight_decay: float = 0.0
    decay: Decay = "l2"
    clip: float | None = None
    max_norm: float | None = None
    table_lr: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    slots: ClassVar[tuple[str, ...]] = ()
    row_slots: ClassVar[tuple[str, ...]] = ()  # those of the slots with one number per row, not D
    own_decay: ClassVar[Decay | None] = None  # the kind of decay that the formula does by itself
    across: ClassVar[tuple[str, ...]] = ()  # what of a whole row it looks at: "gradient", "weights", slots

    def __post_init__(self, named_pools: Named) -> None:
        self.pools = dict(named_pools)
        self.cut: Callable[[Pool, RowGrad], Iterable[RowGrad]] = whole
        self.steps = 0
        for name, pool in self.pools.items():
            if not isinstance(pool, Pool):
                raise TypeError(
                    f"parameter {name!r} is no Pool: give it to an optimizer of tesserec.autograd.optim"
                )
        self._check_options()
        self.state = {name: self._new_state(pool) for name, pool in self.pools.items()}
        self.tables = {name: self._tables(pool) for name, pool in self.pools.items()}

    def rule(self) -> Any:
        """The formula and its numbers for this step: a named tuple of `kernels.row_optim`."""
        raise NotImplementedError

    def looks_at(self) -> tuple[str, ...]:
        """What of a whole row an element's update looks at: some of "gradient", "weights" and the slots.

        A table split by columns has to bring these together; where there are none, each part is on its own.
        """
        if self.max_norm is not None and self.max_norm < math.inf:
            return "gradient", "weights", *(slot for slot in self.slots if slot not in self.row_slots)
        l2 = self.decay == "l2" and self.weight_decay != self._formula_decay()
        return self.across + ("weights",) * (l2 and bool(self.across) and "weights" not in self.across)

    def step(self) -> None:
        """Update the rows that each pool's gradient names."""
        self.steps += 1
        for name, pool in self.pools.items():
            for grad in () if pool.grad is None else self.cut(pool, pool.grad):
                self.update(pool.data, self.state[name], grad, self.tables[name])

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

    def _check_options(self) -> None:
        tables = [table.origin.table.name for pool in self.pools.values() for table in pool.tables]
        sharded = not tables or any(pool.is_sharded for pool in self.pools.values())
        for name in self.table_lr:
            if name not in tables and not sharded:
                raise ValueError(f"table_lr: no table {name!r}; have {', '.join(tables)}")
        if self.decay not in ("l2", "decoupled"):
            raise ValueError(f"decay: got {self.decay!r}, wanted 'l2' or 'decoupled'")
        for option in ("clip", "max_norm"):
            value = getattr(self, option)
            if value is not None and not value > 0:
                raise ValueError(f"{option}: got {value}, wanted more than 0, or None")

    def _new_state(self, pool: Pool) -> dict[str, Array]:
        """Zeros, which cost no memory until they are touched."""
        shapes = {slot: pool.shape[:1] if slot in self.row_slots else pool.shape for slot in self.slots}
        return {slot: aligned(shape, pool.compute_dtype, np.zeros) for slot, shape in shapes.items()}

    def _arrays(self) -> dict[str, Array]:
        return {f"{slot}.{name}": a for name, slots in self.state.items() for slot, a in slots.items()}

    def _formula_decay(self) -> float:
        """The weight decay that is the formula's own work."""
        return self.weight_decay if self.decay == self.own_decay else 0.0

    def _common(self) -> kernels.Common:
        decay = self.weight_decay - self._formula_decay()
        l2, decoupled = (decay, 0.0) if self.decay == "l2" else (0.0, decay)
        clip, max_norm = (math.inf if limit is None else limit for limit in (self.clip, self.max_norm))
        return kernels.Common(clip, l2, self.lr * decoupled, max_norm, np.uint64(self.steps))

    def update(self, rows: Array, state: Mapping[str, Array], grad: RowGrad, tables: Array) -> None:
        """Update the rows that `grad` names of `rows` (R, D), stored as a pool's, and of their `state`.

        tables: (T,) TABLE, what to know of each table of `grad`; see `tables`.
        """
        entries, slots, rows = grad.entries, _slots(state.values()), stored(rows)
        real = compute_dtype(rows.dtype)
        rule, common = _as_real(real, self.rule()), _as_real(real, self._common())

        def update(span: Span) -> None:
            found = entries.sorted, entries.sources, entries.ranges
            kernels.update_rows(rule, common, *found, tables, span, rows, slots)

        parallel_map(update, entries.spans())

    def _tables(self, pool: Pool) -> Array:
        """(T,) TABLE."""
        tables = np.zeros(len(pool.tables), kernels.TABLE)
        for item, table in zip(tables, pool.tables, strict=True):
            name, rows, cols = table.origin.table.name, table.origin.rows, table.origin.cols
            item["factor"] = self.table_lr.get(name, 1.0)
            item["stream"] = stream_key(self.seed, f"noise/{name}")
            item["origin_row"], item["origin_column"] = rows[0], cols[0]
        return tables


def whole(pool: Pool, grad: RowGrad) -> Iterable[RowGrad]:
    """The gradient in one piece."""
    return (grad,)


def _slots(arrays: Iterable[Array]) -> Array:
    """(S, 2): address and bytes per row of the state's arrays."""
    return np.array([(a.ctypes.data, a.strides[0]) for a in arrays], np.int64).reshape(-1, 2)


def _as_real(dtype: np.dtype[Any], rule: Any) -> Any:
    """`rule` with its floats as `dtype`, which is what kernels compute in."""
    values = (_as_real(dtype, x) if isinstance(x, tuple) else x for x in rule)
    return type(rule)(*(dtype.type(x) if isinstance(x, int | float) else x for x in values))


@dataclass(eq=False, kw_only=True)
class RowSGD(RowOptimizer):
    """w -= lr·g; with momentum µ: v = µ·v + g, w -= lr·v."""

    momentum: float = 0.0

    def __post_init__(self, named_pools: Named) -> None:
        self.slots = ("velocity",) if self.momentum else ()  # type: ignore[misc]
        super().__post_init__(named_pools)

    def rule(self) -> Any:
        return kernels.Momentum(self.lr, self.momentum) if self.momentum else kernels.Sgd(self.lr)


@dataclass(eq=False, kw_only=True)
class RowAdagrad(RowOptimizer):
    """s += g², w -= lr·g / (√s + eps), by element; s starts at `initial`. Duchi, Hazan & Singer 2011."""

    eps: float = 1e-10
    initial: float = 0.0

    slots = ("total",)

    def __post_init__(self, named_pools: Named) -> None:
        super().__post_init__(named_pools)
        if self.initial and not is_planning():
            for state in self.state.values():
                state["total"].fill(self.initial)

    def rule(self) -> Any:
        return kernels.Adagrad(self.lr, self.eps)


@dataclass(eq=False, kw_only=True)
class RowWiseAdagrad(RowAdagrad):
    """Adagrad with one s per row, s += mean(g²): 1/D of the state. FBGEMM's "exact row-wise Adagrad"."""

    row_slots = ("total",)
    across = ("gradient",)

    def rule(self) -> Any:
        return kernels.RowWiseAdagrad(self.lr, self.eps)


@dataclass(eq=False, kw_only=True)
class RowWiseAdagradCounter(RowOptimizer):
    """Row-wise Adagrad whose step and decay depend on how often a row was seen: c, its count.

    c = 1 + 2^(-steps since it was last seen / half_life)·c; without half_life, c = 1 + c. Where c > tail, lr
    is multiplied by (most / (c + 1))^power, moved into `bounds`: with power > 0 rare rows move faster, with
    power < 0 slower. Decoupled decay is multiplied by half_life / c, without half_life by 1 / c.

    FBGEMM's rowwise_adagrad_with_counter in regularization mode COUNTER, decay mode DECOUPLE, and learning
    rate mode TAIL_ID_LR_INCREASE (power is its adjustment_ub, bounds are 1 and 10) or TAIL_ID_LR_DECREASE
    (power is -adjustment_ub, bounds are 0.1 and 1).
    """

    eps: float = 1e-10
    half_life: float | None = None
    tail: float = math.inf
    most: float = 1.0
    power: float = 1.0
    bounds: tuple[float, float] = (1.0, 10.0)
    decay: Decay = "decoupled"

    slots = row_slots = ("total", "count", "seen")
    own_decay = "decoupled"
    across = ("gradient",)

    def rule(self) -> Any:
        shrink = math.log(2) / self.half_life if self.half_life else 0.0
        decay = self._formula_decay() * (self.half_life or 1.0)
        tail = (self.tail, self.most, self.power, *self.bounds)
        return kernels.Counter(self.lr, self.eps, self.steps, shrink, decay, *tail)


@dataclass(eq=False, kw_only=True)
class RowAdam(RowOptimizer):
    """Lazy Adam: m = β₁·m + (1 - β₁)·g, s = β₂·s + (1 - β₂)·g², w -= lr·m̂ / (√ŝ + eps), of touched rows only.

    The moments of a row stand still while it has no gradient, where Adam's would decay and go on moving it.
    The bias correction, m̂ = m / (1 - β₁ᵗ) and ŝ = s / (1 - β₂ᵗ), counts the steps of the optimizer, not those
    of the row. Kingma & Ba 2015, algorithm 1; lazy as TensorFlow's LazyAdamOptimizer and torch's SparseAdam.
    """

    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8

    slots = ("mean", "square")

    def rule(self) -> Any:
        return kernels.Adam(*_adam(self.lr, self.betas, self.eps, self.steps))


@dataclass(eq=False, kw_only=True)
class RowAdamW(RowAdam):
    """RowAdam with decoupled decay. Loshchilov & Hutter 2019, algorithm 2."""

    weight_decay: float = 0.01
    decay: Decay = "decoupled"


@dataclass(eq=False, kw_only=True)
class PartialRowWiseAdam(RowAdam):
    """RowAdam with one s per row, of mean(g²): half the state. FBGEMM's partial_rowwise_adam."""

    row_slots = ("square",)
    across = ("gradient",)

    def rule(self) -> Any:
        return kernels.PartialAdam(*_adam(self.lr, self.betas, self.eps, self.steps))


@dataclass(eq=False, kw_only=True)
class RowLAMB(RowOptimizer):
    """w -= lr·‖w‖/‖u‖·u, where u = m̂ / (√ŝ + eps) + weight_decay·w, m̂ and ŝ as in RowAdam; ‖w‖/‖u‖ is of the
    row, and 1 where either is 0. You et al. 2020, algorithm 2.

    With decay "l2", the decay is in g instead.
    """

    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    decay: Decay = "decoupled"

    slots = ("mean", "square")
    own_decay = "decoupled"
    across: ClassVar[tuple[str, ...]] = ("gradient", "weights", "mean", "square")

    def rule(self) -> Any:
        adam = kernels.Adam(*_adam(1.0, self.betas, self.eps, self.steps))
        return kernels.Trust(self.lr, self._formula_decay(), adam)


@dataclass(eq=False, kw_only=True)
class PartialRowWiseLAMB(RowLAMB):
    """RowLAMB with one s per row, of mean(g²): half the state. FBGEMM's partial_rowwise_lamb."""

    row_slots = ("square",)
    across = ("gradient", "weights", "mean")

    def rule(self) -> Any:
        adam = kernels.PartialAdam(*_adam(1.0, self.betas, self.eps, self.steps))
        return kernels.Trust(self.lr, self._formula_decay(), adam)


@dataclass(eq=False, kw_only=True)
class RowLARS(RowOptimizer):
    """v = µ·v + lr·trust·‖w‖/(‖g‖ + weight_decay·‖w‖)·(g + weight_decay·w), w -= v, with norms of the row.

    The quotient is 1 where it would be 0 or infinite. You, Gitman & Ginsburg 2017, algorithm 1; FBGEMM's
    lars_sgd, whose eta is trust.
    """

    momentum: float = 0.9
    trust: float = 0.001

    slots = ("velocity",)
    own_decay = "l2"
    across = ("gradient", "weights")

    def rule(self) -> Any:
        return kernels.Lars(self.lr, self.trust, self.momentum, self._formula_decay())


@dataclass(eq=False, kw_only=True)
class RowFTRL(RowOptimizer):
    """FTRL-Proximal with lr as α: many elements become exactly 0. McMahan et al. 2013, algorithm 1.

    n += g², σ = (√n - √(n before)) / lr, z += g - σ·w; then w = 0 where |z| ≤ l1, else
    w = -(z - sign(z)·l1) / ((beta + √n) / lr + l2). Tables should start at zero (`init=Constant(0)`).
    """

    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    slots = ("linear", "total")

    def rule(self) -> Any:
        return kernels.Ftrl(self.lr, self.beta, self.l1, self.l2)


def _adam(lr: float, betas: Betas, eps: float, steps: int) -> tuple[float, ...]:
    """The numbers of Adam's rules: lr and eps with the bias corrections, and the shares of old and new."""
    beta1, beta2 = betas
    root = math.sqrt(1 - beta2**steps)
    return lr * root / (1 - beta1**steps), eps * root, beta1, 1 - beta1, beta2, 1 - beta2


ROW_OPTIMIZERS: dict[str, type[RowOptimizer]] = {
    "sgd": RowSGD,
    "adagrad": RowAdagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "rowwise_adagrad_counter": RowWiseAdagradCounter,
    "adam": RowAdam,
    "adamw": RowAdamW,
    "partial_rowwise_adam": PartialRowWiseAdam,
    "lamb": RowLAMB,
    "partial_rowwise_lamb": PartialRowWiseLAMB,
    "lars_sgd": RowLARS,
    "ftrl": RowFTRL,
}
