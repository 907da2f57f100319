"""Program: a captured forward pass and its gradient as calls on arrays that lie ready.

The arrays of one run are a frame, one place for each slot. Most lie in an arena, where arrays that are never
needed at the same time share memory; arenas are kept between runs. What is handed out, the value and the
gradients, is allocated for each run and belongs to the caller.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from tesserec.autograd.compiler.builder import Builder, Kind, Lower, Slot
from tesserec.autograd.compiler.capture import Capture
from tesserec.autograd.random import open_stream, random_stream
from tesserec.autograd.tensor import Array, Gradients, Take, Tensor

LINE = 64  # bytes: arrays begin where a cache line does

Frame = list[Any]
Call = tuple[Callable[..., Any], Callable[[Frame], tuple[Any, ...]]]


class Program:
    """A captured forward pass and its gradient. Any number of threads may run it at the same time.

    leaves: the Tensors that it gives gradients to.
    """

    def __init__(self, captured: Capture, lower: Lower):
        build = Builder()
        self.inputs = [build.given(x) for x in captured.inputs]
        steps = [build.lowered(record, lower) for record in captured.records]
        self.value, value = build.slot(Kind.FRESH, captured.output), build.argument(captured.output)
        if not build.place(value, self.value, lambda a: a):
            build.call(np.copyto, self.value, value)
        turn = len(build.calls)
        self.seed = build.slot(Kind.GIVEN)
        build.put(value, np.positive, self.seed)
        for out, backward in reversed(steps):
            if out in build.grads:
                backward(build.grads[out])
        self.parameters = [(slot.index, leaf) for leaf, slot in build.parameters.items()]
        self.grads = [
            (leaf, build.hand_out_whole(build.grads[slot]).index)
            for leaf, slot in build.parameters.items()
            if slot in build.grads
        ]
        self.leaves = list(dict.fromkeys([leaf for leaf, _ in self.grads] + list(build.opaque_leaves)))
        self.finals = _finals(build, turn, self.grads)
        self.draws, self.found = build.draws, build.found
        self._settle(build, turn)

    def _settle(self, build: Builder, turn: int) -> None:
        """Lay out the memory, and say what is to be done once, before a run, and before its way back."""
        self.slots = build.slots
        self.offsets, self.size = _plan(build.calls)
        calls: list[Call] = [(fn, _getter(slots)) for fn, slots in build.calls]
        self.forward_calls, self.backward_calls = calls[:turn], calls[turn:]
        views = sorted((s for s in build.slots if s.kind is Kind.VIEW), key=_depth)
        self.static_views = [s for s in views if s.root.kind in (Kind.ARENA, Kind.FIXED)]
        late = [s for s in build.slots if s.kind is Kind.FRESH and s is not self.value]
        self.fresh = [(s.index, s.shape, s.dtype) for s in late]
        self.views = [_apply(s) for s in views if s.root.kind is Kind.GIVEN or s.root is self.value]
        self.late_views = [_apply(s) for s in views if s.root in late]
        self.boxes = [s.index for s in build.slots if s.kind is Kind.BOX]
        self.workspaces: list[Frame] = []

    def forward(self, workspace: Frame, inputs: Sequence[Any]) -> Frame:
        frame = workspace.copy()
        for slot, x in zip(self.inputs, inputs, strict=True):
            frame[slot.index] = _numbers(x)
        for index, leaf in self.parameters:
            frame[index] = leaf.data
        frame[self.value.index] = np.empty(self.value.shape, self.value.dtype)
        for index, parent, view in self.views:
            frame[index] = view(frame[parent])
        for fn, get in self.forward_calls:
            fn(*get(frame))
        return frame

    def backward(self, frame: Frame, g: Array, take: Take | None = None) -> Gradients:
        """{leaf: gradient}, but for what `take` has taken: it is offered each as soon as it is final."""
        frame[self.seed.index] = g
        for index, shape, dtype in self.fresh:
            frame[index] = np.empty(shape, dtype)
        for index, parent, view in self.late_views:
            frame[index] = view(frame[parent])
        if take is None:
            for fn, get in self.backward_calls:
                fn(*get(frame))
            taken = set()
        else:
            taken = self._offering(frame, take)
        grads: Gradients = {leaf: frame[index] for leaf, index in self.grads if leaf not in taken}
        for leaf, grad in frame[self.found.index]:
            grads[leaf] = grads[leaf] + grad if leaf in grads else grad
        return grads

    def _offering(self, frame: Frame, take: Take) -> set[Tensor]:
        """Run the way back -> the leaves whose gradients were taken."""
        taken = set()
        for k, (fn, get) in enumerate(self.backward_calls):
            fn(*get(frame))
            taken |= {leaf for leaf, index in self.finals.get(k, ()) if take(leaf, frame[index])}
        return taken

    def take(self) -> Frame:
        """A frame with all that stays the same from run to run, no other run's."""
        try:
            return self.workspaces.pop()
        except IndexError:
            return self._new_workspace()

    def give_back(self, workspace: Frame) -> None:
        """Let other runs use it."""
        for index in self.boxes:
            workspace[index].clear()
        self.workspaces.append(workspace)

    def _new_workspace(self) -> Frame:
        memory = np.empty(self.size + LINE, np.uint8)
        memory = memory[-memory.ctypes.data % LINE :]
        frame: Frame = [None] * len(self.slots)
        for slot in self.slots:
            if slot.kind is Kind.FIXED:
                frame[slot.index] = slot.value
            elif slot.kind is Kind.BOX:
                frame[slot.index] = []
        for slot, (offset, size) in self.offsets.items():
            frame[slot.index] = memory[offset : offset + size].view(slot.dtype).reshape(slot.shape)
        for slot in self.static_views:
            index, parent, view = _apply(slot)
            if frame[parent] is not None:
                frame[index] = view(frame[parent])
        return frame


class Run:
    """A forward pass: `value`, and the way back.

    The workspace is given back after the first `backward`, or with the run. A further `backward` computes the
    forward pass again, with the parameters and buffers as they are then.
    """

    workspace: Frame | None = None

    def __init__(self, program: Program, inputs: Sequence[Any]):
        self.program, self.inputs = program, inputs
        self.stream = copy.deepcopy(open_stream()) if program.draws else None
        self.workspace = program.take()
        self.frame = program.forward(self.workspace, inputs)
        self.value: Array = self.frame[program.value.index]
        if not program.leaves:
            self._release()

    def backward(self, g: Array, take: Take | None = None) -> Gradients:
        """{leaf: gradient}, from that of `value`; see `Program.backward`."""
        if self.workspace is None:
            with random_stream(copy.deepcopy(self.stream)):
                return Run(self.program, self.inputs).backward(g, take)
        try:
            return self.program.backward(self.frame, g, take)
        finally:
            self._release()

    def _release(self) -> None:
        workspace, self.workspace, self.frame = self.workspace, None, []
        if workspace is not None:
            self.program.give_back(workspace)

    def __del__(self) -> None:
        self._release()


def _finals(
    build: Builder, turn: int, grads: Sequence[tuple[Tensor, int]]
) -> dict[int, list[tuple[Tensor, int]]]:
    """{call of the way back: the leaves whose gradients are final after it, and their slots}."""
    last = {slot.root: k for k, (_, slots) in enumerate(build.calls[turn:]) for slot in slots}
    finals: dict[int, list[tuple[Tensor, int]]] = {}
    for leaf, index in grads:
        if leaf not in build.opaque_leaves:  # which are given more at the end
            finals.setdefault(last[build.slots[index].root], []).append((leaf, index))
    return finals


def _plan(calls: Sequence[tuple[Any, Sequence[Slot]]]) -> tuple[dict[Slot, tuple[int, int]], int]:
    """({slot: (offset, bytes)} in the arena, its size): the largest first, each as low as it fits."""
    spans: dict[Slot, tuple[int, int]] = {}
    for now, (_, slots) in enumerate(calls):
        for root in (slot.root for slot in slots):
            if root.kind is Kind.ARENA:
                spans[root] = spans.get(root, (now, now))[0], now
    placed: dict[Slot, tuple[int, int]] = {}
    for slot in sorted(spans, key=_bytes, reverse=True):
        first, last = spans[slot]
        others = [placed[s] for s in placed if spans[s][0] <= last and first <= spans[s][1]]
        offset = 0
        for start, size in sorted(others):
            if offset + _bytes(slot) <= start:
                break
            offset = max(offset, -(-(start + size) // LINE) * LINE)
        placed[slot] = offset, _bytes(slot)
    return placed, max((offset + size for offset, size in placed.values()), default=0)


def _bytes(slot: Slot) -> int:
    return int(np.prod(slot.shape, dtype=np.int64)) * int(slot.dtype.itemsize)


def _depth(slot: Slot) -> int:
    return 0 if slot.parent is None else 1 + _depth(slot.parent)


def _apply(slot: Slot) -> tuple[int, int, Callable[[Array], Array]]:
    assert slot.parent is not None and slot.view is not None
    return slot.index, slot.parent.index, slot.view


def _getter(slots: Sequence[Slot]) -> Callable[[Frame], tuple[Any, ...]]:
    """frame -> what lies in these slots."""
    indices = [slot.index for slot in slots]
    return itemgetter(*indices) if len(indices) > 1 else lambda frame: (frame[indices[0]],)


def _numbers(x: Any) -> Any:
    array = x.data if isinstance(x, Tensor) else x
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array
