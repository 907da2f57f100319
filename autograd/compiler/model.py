"""compile(model): the same model, whose forward pass is captured once and then replayed slice by slice."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tesserec.autograd.compiler.capture import GUARDED, PLAIN, Uncapturable, capture
from tesserec.autograd.compiler.fusion import fused
from tesserec.autograd.compiler.lowerings import lower
from tesserec.autograd.compiler.program import Program, Run
from tesserec.autograd.module import Module
from tesserec.autograd.random import open_stream, random_stream
from tesserec.autograd.slices import sum_of_slices
from tesserec.autograd.tensor import Array, Gradients, Node, Take, Tensor, is_grad_enabled, recording
from tesserec.autograd.workers import parallel_map

KEPT = 8  # programs; each has memory of its own
WATCHED = (
    1000  # items of a container among a module's attributes; what changes in a larger one is not noticed
)

ARRAYS = (np.ndarray, Tensor)
Inputs = tuple[Any, ...]


def compile(model: Module, *, slice_size: int = 512) -> CompiledModel:
    """The same model, faster: same parameters, state and modes; see `CompiledModel`."""
    return CompiledModel(model, slice_size=slice_size)


class CompiledModel(Module):
    """A model whose forward pass and gradient are replayed from a `Program`, in slices on worker threads.

    A program holds for one set of shapes, keys, modes and attributes of modules; a new set is captured anew,
    by one forward pass whose result is dropped. The numbers are those of the model up to rounding, and do not
    depend on the number of threads. `forward` must return one Tensor with a sample in each row. A model whose
    forward pass depends on the data in other ways than by ops runs as it is, after one warning.

    Numbers that `forward` computes in plain Python, other than from shapes, stay what they were when it was
    captured. Dropout draws for each slice from a stream of its own, spawned from the open one.
    """

    def __init__(self, model: Module, *, slice_size: int = 512):
        if slice_size < 1:
            raise ValueError(f"slice_size is {slice_size}, wanted 1 or more")
        self.model = model
        self.slice_size = slice_size
        self.why_eager: str | None = None
        self.programs: list[tuple[Guard, Program]] = []
        self._lock = threading.Lock()

    @property
    def training(self) -> bool:  # type: ignore[override]
        return self.model.training

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Those of the model: the state and its names are the same."""
        return self.model.named_modules()

    @property
    def needs_whole_batch(self) -> bool:
        newest = self.programs[0][0] if self.programs else None
        return newest.couples if newest and newest.same_model() else self.model.needs_whole_batch

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What `model(*inputs, **named)` returns."""
        if self.why_eager is not None or recording.recorder is not None:
            return self.model(*inputs, **named)
        try:
            return self._replayed((*inputs, *named.values()), tuple(named))
        except Uncapturable as error:
            reason = str(error)
        result = self.model(*inputs, **named)  # if the model is wrong, this raises
        self._give_up(reason)
        return result

    def _give_up(self, reason: str) -> None:
        with self._lock:
            known, self.why_eager = self.why_eager, reason
        if known is None:
            warnings.warn(f"{type(self.model).__name__} runs as it is, not compiled: {reason}", stacklevel=4)

    def _replayed(self, inputs: Inputs, names: tuple[str, ...]) -> Tensor:
        parts = self._slices(inputs)
        stream, n = open_stream(), len(parts)
        streams = [stream] * n if stream is None or n == 1 else stream.spawn(n)

        def run(item: tuple[Inputs, np.random.Generator | None]) -> Run:
            part, stream = item
            with random_stream(stream):
                return Run(self._program(part, names), part)

        runs = parallel_map(run, list(zip(parts, streams, strict=True)))
        if n > 1 and runs[0].value.shape[:1] != (self.slice_size,):
            raise Uncapturable(
                f"forward gives {runs[0].value.shape} for {self.slice_size} samples, wanted a row for each"
            )
        return _joined(runs)

    def _slices(self, inputs: Inputs) -> list[Inputs]:
        """The inputs of each slice."""
        batch = max((_batch_size(x) for x in inputs), default=0)
        if batch <= self.slice_size or self.needs_whole_batch:
            return [inputs]
        cuts = range(0, batch, self.slice_size)
        return [tuple(_select(x, lo, min(lo + self.slice_size, batch)) for x in inputs) for lo in cuts]

    def _program(self, inputs: Inputs, names: tuple[str, ...]) -> Program:
        """The program for these inputs; the last of them have names."""
        signature = (is_grad_enabled(), names, *map(_signature, inputs))
        if self.programs and self.programs[0][0].holds(signature):
            return self.programs[0][1]
        with self._lock:
            kept = self.programs
            entry = next((e for e in kept if e[0].holds(signature)), None) or self._new(signature, inputs)
            self.programs = [entry, *(e for e in kept if e is not entry)][:KEPT]
            return entry[1]

    def _new(self, signature: tuple[Any, ...], inputs: Inputs) -> tuple[Guard, Program]:
        guard = Guard(signature, self.model)
        captured = capture(self.model, inputs, signature[1])
        if not guard.holds(signature):
            raise Uncapturable("forward changes an attribute of a module")
        return guard, Program(fused(captured), lower)


class Guard:
    """What a program was made for: the form of the inputs, and the model as it was.

    couples: whether the model needed whole batches.
    """

    def __init__(self, signature: tuple[Any, ...], model: Module):
        self.signature = signature
        self.attributes = [vars(module) for module in model.modules()]
        self.then = _snapshot(self.attributes)
        self.buffers = [
            (module, name, getattr(module, name)) for module in model.modules() for name in module.buffers
        ]
        self.parameters = list(model.parameters())
        self.forms = [_form(tensor) for tensor in self.parameters]
        self.couples = model.needs_whole_batch

    def holds(self, signature: tuple[Any, ...]) -> bool:
        """Whether the inputs have the same form, and nothing has changed in the model."""
        return signature == self.signature and self.same_model()

    def same_model(self) -> bool:
        """Whether nothing has changed in the model; attributes are compared by identity, or else by ==."""
        try:
            return (
                self.attributes == self.then
                and [_form(tensor) for tensor in self.parameters] == self.forms
                and all(getattr(module, name) is array for module, name, array in self.buffers)
            )
        except ValueError:  # an array took the place of another one
            return False


def _snapshot(value: Any) -> Any:
    """`value`, with containers copied, so that == with the original notices what changes in them."""
    if isinstance(value, dict) and len(value) <= WATCHED:
        return {key: _snapshot(child) for key, child in value.items()}
    if type(value) in (list, tuple) and len(value) <= WATCHED:
        return type(value)(_snapshot(child) for child in value)
    return value


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data.shape, tensor.data.strides, tensor.data.dtype, tensor.requires_grad


def _signature(x: Any) -> Any:
    """What a program depends on of an input."""
    if isinstance(x, np.ndarray):
        return x.shape, x.dtype
    if isinstance(x, Tensor):
        return x.shape, x.dtype, x.requires_grad
    return x if isinstance(x, PLAIN) else tuple([getattr(x, name) for name in GUARDED])


def _batch_size(x: Any) -> int:
    """How many samples it holds; 0 if it is the same for all."""
    if isinstance(x, ARRAYS):
        return len(x) if x.ndim else 0
    if isinstance(x, PLAIN):
        return 0
    try:
        return int(x.batch_size)
    except AttributeError:
        kind = type(x).__name__
        raise Uncapturable(f"an input is a {kind}, wanted arrays, numbers, batches with batch_size") from None


def _select(x: Any, lo: int, hi: int) -> Any:
    if isinstance(x, ARRAYS):
        return x[lo:hi] if x.ndim else x
    return x if isinstance(x, PLAIN) else x.select(lo, hi)


def _joined(runs: Sequence[Run]) -> Tensor:
    """The values one after the other, as one Tensor whose gradient goes back through every run."""
    result = Tensor(runs[0].value if len(runs) == 1 else np.concatenate([run.value for run in runs]))
    leaves = runs[0].program.leaves
    if leaves:
        result.requires_grad = True
        result.node = Node("compiled", leaves, joint=partial(_backward, runs))
    return result


def _backward(runs: Sequence[Run], g: Array, take: Take | None) -> Gradients:
    """Each leaf's gradient, summed over the runs by the tree of slices, from that of all values."""
    if len(runs) == 1:
        return runs[0].backward(g, take)
    ends = np.cumsum([len(run.value) for run in runs])
    parts = parallel_map(_backward_of_slice, list(zip(runs, np.split(g, ends[:-1]), strict=True)))
    return sum_of_slices(parts)


def _backward_of_slice(item: tuple[Run, Array]) -> Gradients:
    run, g = item
    return run.backward(g)
