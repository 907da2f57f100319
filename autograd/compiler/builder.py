"""Builder: from ops to calls on slots, the places of a frame; and from each op's gradient likewise.

Each op's lowering (`lowerings.py`) emits the calls of its value and returns a function that emits those of
its gradient, which is called when the gradient of the value is known. Nothing runs while building.

Every array has packed samples: only the first axis may be strided. So an array can lie in columns of a wider
one, and what a `concat` joins is written where it is joined. A value is written once. A gradient belongs to
the value it is of, whose op may write over it when it passes it on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from tesserec.autograd.compiler.capture import Record, Sealed
from tesserec.autograd.tensor import Array, Tensor

View = Callable[[Array], Array]
Backward = Callable[["Slot"], None]  # slot of a value's gradient -> emits calls for those of the arguments
Lower = Callable[["Builder", Record, Sequence[Any]], tuple["Slot", Backward]]


class Kind(Enum):
    """Where a frame finds what is in a slot."""

    GIVEN = auto()  # set for each run
    FIXED = auto()  # the same object always
    BOX = auto()  # a list, empty between runs
    ARENA = auto()  # an array in reused memory
    FRESH = auto()  # an array of its own for each run, because it is handed out
    VIEW = auto()  # a view of another slot's array


@dataclass(slots=True, eq=False)
class Slot:
    """A place of a frame. view: makes the array from that of `parent`; value: what a FIXED slot holds."""

    index: int
    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: Any = None
    value: Any = None
    parent: Slot | None = None
    view: View | None = None
    reshaped: bool = False  # the view is the whole parent in another shape

    @property
    def root(self) -> Slot:
        """The slot whose memory this is."""
        return self if self.parent is None else self.parent.root

    def dummy(self) -> Array:
        """An array laid out as that of this slot will be."""
        if self.parent is None or self.view is None:
            return np.empty(self.shape, self.dtype)
        return self.view(self.parent.dummy())


def packed(a: Array) -> bool:
    """Whether all axes but the first are packed, and the first does not overlap itself."""
    if a.ndim == 0 or len(a) < 2:
        return a.flags.c_contiguous
    return a[:1].flags.c_contiguous and a.strides[0] >= a[:1].nbytes


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]


class Builder:
    """Emits calls. Knows which values need a gradient, how many ops use each, and the gradients so far."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.calls: list[tuple[Callable[..., Any], tuple[Slot, ...]]] = []
        self.places: dict[Any, Slot] = {}  # of what records name
        self.parameters: dict[Tensor, Slot] = {}
        self.needs: set[Any] = set()
        self.uses: Counter[Slot] = Counter()
        self.grads: dict[Slot, Slot] = {}
        self.result: Tensor  # of the op that is being lowered
        self.found = self.slot(Kind.BOX)  # what opaque functions give gradients to: (leaf, gradient)
        self.opaque_leaves: dict[Tensor, None] = {}
        self.activations: dict[Slot, int] = {}  # values that an activation made
        self.draws = False  # whether it takes random numbers

    def given(self, x: Any) -> Slot:
        """A new slot for an input or a parameter."""
        slot = self.slot(Kind.GIVEN, x)
        if isinstance(x, Tensor | Sealed):
            self.places[x] = slot
        return slot

    def argument(self, arg: Any) -> Any:
        """The slot of what an op is given; a number is its own."""
        if isinstance(arg, np.ndarray):
            return self.slot(Kind.FIXED, arg, arg)
        if not isinstance(arg, Tensor | Sealed):
            return arg
        if isinstance(arg, Tensor) and arg not in self.places:
            self.parameters[arg] = self.given(arg)
        slot = self.places[arg]
        self.uses[slot] += 1
        if isinstance(arg, Tensor) and arg.requires_grad:
            self.needs.add(slot)
        return slot

    def lowered(self, record: Record, lower: Lower) -> tuple[Slot, Backward]:
        """Emit the calls of an op -> the slot of its value, and the way back."""
        args = [self.argument(arg) for arg in record.args]
        self.result = record.result
        out, backward = lower(self, record, args)
        self.places[record.result] = out
        return out, backward

    def slot(self, kind: Kind, like: Any = None, value: Any = None) -> Slot:
        """A new one, of the shape and type of `like` if it is an array."""
        slot = Slot(len(self.slots), kind, value=value)
        if isinstance(like, Slot | Tensor | np.ndarray):
            slot.shape, slot.dtype = like.shape, like.dtype
        self.slots.append(slot)
        return slot

    def array(self, shape: tuple[int, ...], dtype: Any) -> Slot:
        """A new array, its numbers undefined."""
        slot = self.slot(Kind.ARENA)
        slot.shape, slot.dtype = shape, np.dtype(dtype)
        return slot

    def out(self) -> Slot:
        """A new array for the value of the op that is being lowered."""
        return self.slot(Kind.ARENA, self.result)

    def call(self, fn: Callable[..., Any], *args: Any) -> None:
        """Emit fn(*args); what is no slot is a constant."""
        slots = (a if isinstance(a, Slot) else self.slot(Kind.FIXED, value=a) for a in args)
        self.calls.append((fn, tuple(slots)))

    def view(self, parent: Slot, view: View) -> Slot:
        """A view of `parent`. Kernels need packed ones; see `as_packed`."""
        slot = self.slot(Kind.VIEW, view(parent.dummy()))
        slot.parent, slot.view = parent, view
        return slot

    def as_packed(self, x: Slot) -> Slot:
        """`x` itself, or a copy with packed samples."""
        if packed(x.dummy()):
            return x
        copy = self.slot(Kind.ARENA, x)
        self.call(np.copyto, copy, x)
        return copy

    def seen_as(self, x: Slot, shape: tuple[int, ...]) -> Slot | None:
        """`x` in another shape, if that takes no copy."""
        try:
            slot = self.view(x, lambda a: a.reshape(shape, copy=False))
        except ValueError:
            return None
        slot.reshaped = True
        return slot if packed(slot.dummy()) else None

    def reshaped(self, x: Slot, shape: tuple[int, ...]) -> Slot:
        """The elements of `x` in another shape, to read."""
        slot = self.seen_as(x, shape)
        if slot is None:
            slot = self.array(shape, x.dtype)
            self.call(np.copyto, self.view(slot, lambda a: a.reshape(x.shape)), x)
        return slot

    def rows(self, x: Slot) -> Slot:
        """`x` as (n, I), to read: all axes but the last as one."""
        return self.reshaped(x, _rows(x.shape))

    def place(self, x: Slot, into: Slot, piece: View) -> bool:
        """Let `x` lie in a piece of `into`, so that nothing need be copied there. False: it cannot."""
        if x.reshaped and x.parent is not None:
            shape = x.parent.shape
            return self.place(x.parent, into, lambda a: piece(a).reshape(shape, copy=False))
        if x.kind is not Kind.ARENA or x.dtype != into.dtype or into.root is x:
            return False
        views = [s for s in self.slots if s.root is x]
        x.kind, x.parent, x.view = Kind.VIEW, into, piece
        try:
            if all(packed(s.dummy()) for s in views):
                return True
        except ValueError:  # it was seen in another shape, which it cannot take where it would lie
            pass
        x.kind, x.parent, x.view = Kind.ARENA, None, None
        return False

    def target(self, x: Any) -> tuple[Slot, bool] | None:
        """(the gradient of `x` to write to, whether to add to what it holds); None if none is wanted."""
        if x not in self.needs:
            return None
        if x in self.grads:
            return self.grads[x], True
        self.grads[x] = self.slot(Kind.ARENA, x)
        return self.grads[x], False

    def rows_target(self, x: Any) -> tuple[Slot, bool] | None:
        """`target`, seen as rows."""
        target = self.target(x)
        if target is None:
            return None
        g, add = target
        rows = self.seen_as(g, _rows(g.shape))
        if rows is None:  # it lies in a place from which it must be moved
            self.grads[x] = self.slot(Kind.ARENA, x)
            self.call(np.copyto, self.grads[x], g)
            rows = self.rows(self.grads[x])
        return rows, add

    def put(self, x: Any, fn: Callable[..., Any], *args: Any) -> None:
        """Emit that fn(*args, array) writes a gradient of `x`, and that it is added to others."""
        target = self.target(x)
        if target is None:
            return
        g, add = target
        part = self.slot(Kind.ARENA, x) if add else g
        self.call(fn, *args, part)
        if add:
            self.call(np.add, g, part, g)

    def accumulate(self, x: Any, fn: Callable[..., Any], *args: Any) -> None:
        """Emit that fn(*args, add, array) writes a gradient of `x`, or adds it to what the array holds."""
        target = self.target(x)
        if target is not None:
            g, add = target
            self.call(fn, *args, add, g)

    def give(self, x: Any, g: Slot) -> None:
        """Add `g`, whose memory nobody else needs any more, to the gradient of `x`, or let it be that."""
        if x in self.grads:
            self.call(np.add, self.grads[x], g, self.grads[x])
        elif x in self.needs:
            self.grads[x] = self.as_packed(g)

    def hand_out(self, g: Slot) -> Slot:
        """`g`, in memory that belongs to the caller of the program."""
        if g.root.kind is Kind.ARENA:
            g.root.kind = Kind.FRESH
        return g

    def hand_out_whole(self, g: Slot) -> Slot:
        """`g` as an array of its own, in memory that belongs to the caller of the program."""
        if g.kind is Kind.VIEW:
            copy = self.slot(Kind.ARENA, g)
            self.call(np.copyto, copy, g)
            g = copy
        return self.hand_out(g)
