"""What passes between an exchange and a model: vectors that were looked up, and slabs of their gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Node, Tensor, is_grad_enabled
from tesserec.embeddings.jagged import JaggedError, JaggedTensor

Array = npt.NDArray[Any]


class Slabs:
    """The gradient of an output (N, D), row by row: (first row, (n, D) array) of each part of it.

    `+` joins. What no part has is zero; where parts overlap, they are summed.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[tuple[int, Array]]):
        self.parts = tuple(parts)

    def __add__(self, other: Any) -> Slabs:
        if not isinstance(other, Slabs):
            raise TypeError(
                "the gradient of a sharded collection is Slabs, which adds only to other Slabs: use the "
                "collection's output; for L2 regularization, give the row optimizer weight_decay"
            )
        return Slabs(self.parts + other.parts)

    __radd__ = __add__

    def tiles(self, rows: int, width: int, dtype: np.dtype[Any]) -> list[tuple[int, Array]]:
        """Parts in order of rows that have each row 0 … rows-1 once, each with columns side by side."""
        parts = sorted(self.parts, key=lambda part: part[0])
        ends = [first + len(grad) for first, grad in parts]
        if not parts or [first for first, _ in parts] + [rows] != [0, *ends]:
            return [(0, self.to_dense(rows, width, dtype))]
        return [(first, _side_by_side(grad)) for first, grad in parts]

    def to_dense(self, rows: int, width: int, dtype: np.dtype[Any]) -> Array:
        """(rows, width)."""
        dense = np.zeros((rows, width), dtype)
        for first, grad in self.parts:
            dense[first : first + len(grad)] += grad
        return dense

    def __repr__(self) -> str:
        return f"Slabs({len(self.parts)} parts, {sum(len(grad) for _, grad in self.parts)} rows)"


def _side_by_side(grad: Array) -> Array:
    if grad.strides[1] != grad.itemsize or grad.strides[0] % grad.itemsize:
        return np.ascontiguousarray(grad)
    return grad


class AllSlabs:
    """The gradients of several outputs: {outlet: Slabs}. `+` joins."""

    __slots__ = ("slabs",)

    def __init__(self, slabs: Mapping[Tensor, Slabs]):
        self.slabs = dict(slabs)

    def __add__(self, other: AllSlabs) -> AllSlabs:
        joined = self.slabs.copy()
        for outlet, slabs in other.slabs.items():
            joined[outlet] = joined[outlet] + slabs if outlet in joined else slabs
        return AllSlabs(joined)


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """Rows first … of what was looked up for an outlet. bags: of a sequence, for its offsets and weights."""

    values: Array
    first: int = 0
    bags: JaggedTensor | None = None

    def select(self, lo: int, hi: int) -> Output:
        """What samples lo … hi-1 have of it."""
        if self.bags is None:
            return Output(self.values[lo:hi], self.first + lo)
        start, stop = self.bags.offsets[[lo, hi]].tolist()
        return Output(self.values[start:stop], self.first + start, self.bags.slice(lo, hi))


@dataclass(frozen=True, slots=True, eq=False)
class LookedUp:
    """What was looked up for a batch: takes the place of its KeyedJaggedTensor where the model is called.

    keys, batch_size: as of that. outputs: {outlet of a sharded collection: its rows}. inlets: {outlet: what
    gets its gradient instead}.
    """

    keys: tuple[str, ...]
    batch_size: int
    outputs: Mapping[Tensor, Output]
    inlets: Mapping[Tensor, Tensor] = field(default_factory=dict)

    def tensor(self, outlet: Tensor) -> Tensor:
        """The rows of an outlet, as a result whose gradient is Slabs."""
        output, parent = self.outputs[outlet], self.inlets.get(outlet, outlet)
        result = Tensor(output.values)
        if is_grad_enabled():
            result.requires_grad = True
            result.node = Node("looked_up", [parent], [lambda g: Slabs([(output.first, g)])])
        return result

    def select(self, lo: int, hi: int) -> LookedUp:
        """Samples lo … hi-1; views."""
        if not 0 <= lo <= hi <= self.batch_size:
            raise JaggedError(f"select: samples {lo} to {hi}, wanted 0 ≤ lo ≤ hi ≤ {self.batch_size}")
        outputs = {outlet: output.select(lo, hi) for outlet, output in self.outputs.items()}
        return replace(self, batch_size=hi - lo, outputs=outputs)
