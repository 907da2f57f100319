"""Values of a forward pass in which some columns are a request's and the others each candidate's own.

Each kind lies in a slot of its own, in whatever order is best for who makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.compiler.capture import Sealed
from tesserec.autograd.tensor import Tensor
from tesserec.models.features import Features
from tesserec.serve.kernels import steps
from tesserec.serve.program import Call, Fixed, Slot, Stage, Step
from tesserec.serve.query import Split

Array = npt.NDArray[Any]
Columns = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some columns of a value: which, and where they lie."""

    slot: Slot
    columns: Columns


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """A value of `shape` per sample: pieces that are the requests', the candidates' own, or both.

    A value without columns, one number for each sample, is one piece with column 0.
    """

    shape: tuple[int, ...]
    shared: Piece | None = None
    own: Piece | None = None

    @property
    def pieces(self) -> list[Piece]:
        return [piece for piece in (self.shared, self.own) if piece]

    @property
    def inner(self) -> int:
        """Numbers of one column."""
        return prod(self.shape[1:])


Value = Mixed | Fixed | Sealed | float | None


class Builder:
    """Collects slots, fixed arrays, and the work of both stages."""

    def __init__(self, features: Features, split: Split):
        names = list(features.sparse)
        self.keys = {False: [names[i] for i in split.sparse]}
        self.keys[True] = [name for name in names if name not in self.keys[False]]
        self.stages = {own: Stage(keys) for own, keys in self.keys.items()}
        self.slots: list[Slot] = []
        self.held: list[Fixed] = []
        self.values: dict[Tensor, Mixed | Fixed] = {}
        self.wholes: dict[tuple[Mixed, bool], Slot] = {}

    def slot(self, shape: tuple[int, ...], own: bool, *, axis: int = 0) -> Slot:
        """A new place for rows."""
        self.slots.append(Slot(shape, own, axis))
        return self.slots[-1]

    def fixed(self, make: Callable[[], Array]) -> Fixed:
        """A new array that is the same for all requests."""
        self.held.append(Fixed(make))
        return self.held[-1]

    def window(self, slot: Slot, at: int, shape: tuple[int, ...]) -> Slot:
        """Part of each row of a slot, from number `at` on, seen in a shape."""
        return Slot(shape, slot.own, parent=slot, at=at, sparse=slot.sparse)

    def do(self, out: Slot, work: Step | Call) -> Slot:
        """Have it done in the stage of `out`."""
        self.stages[out.own].work.append(work)
        return out

    def argument(self, arg: Any) -> Value:
        """What an op is given: a value, a parameter or buffer, or a number."""
        if isinstance(arg, Tensor) and arg in self.values:
            return self.values[arg]
        if isinstance(arg, Tensor):
            self.values[arg] = self.fixed(lambda: arg.data)
            return self.values[arg]
        return self.fixed(lambda: arg) if isinstance(arg, np.ndarray) else arg

    def place(self, x: Slot, into: Slot, at: int) -> None:
        """Let `x` be from number `at` on in the rows of `into`: computed there, or else copied."""
        root = x.root
        if root is not into and root.width == x.width and not root.axis:
            root.parent, root.at = into, at
        else:
            runs = self.fixed(lambda: np.array([[0, at, x.width]]))
            self.do(into, Step(steps.PUT, into, x, fixed=runs, count=1))

    def whole(self, value: Mixed, own: bool) -> Slot:
        """All of a value in one slot, its columns in order. own: a row for each candidate."""
        only = value.own if own else value.shared
        if only and len(value.pieces) == 1 and in_order(only.columns):
            return only.slot
        if (value, own) not in self.wholes:
            self.wholes[value, own] = self._joined(value, self.slot(value.shape, own))
        return self.wholes[value, own]

    def _joined(self, value: Mixed, out: Slot) -> Slot:
        for piece in value.pieces:
            runs = self.fixed(partial(_runs, piece.columns, value.inner))
            x, repeated = piece.slot, out.own and not piece.slot.own
            step = Step(steps.SPREAD, out, y=x) if repeated else Step(steps.PUT, out, x)
            step.fixed, step.count = runs, len(runs.array)
            self.do(out, step)
        return out


def in_order(columns: Columns) -> bool:
    """Whether they are all columns from the first on."""
    return columns == tuple(range(len(columns)))


def _runs(columns: Columns, inner: int) -> Array:
    """(at, to, n) of the stretches in which columns that lie side by side belong side by side."""
    starts = [k for k, c in enumerate(columns) if k == 0 or c != columns[k - 1] + 1]
    lengths = (b - a for a, b in pairwise([*starts, len(columns)]))
    found = [(k, columns[k], n) for k, n in zip(starts, lengths, strict=True)]
    return np.array(found, np.int64).reshape(-1, 3) * inner


def is_own(args: Sequence[Any]) -> bool:
    """Whether what is made of them differs between the candidates of a request."""
    return any(isinstance(a, Mixed) and a.own is not None for a in args)


def single(slot: Slot) -> Mixed:
    """A value that is one piece, its columns in order."""
    piece = Piece(slot, tuple(range(slot.shape[0] if slot.shape else 1)))
    return Mixed(slot.shape, None, piece) if slot.own else Mixed(slot.shape, piece)
