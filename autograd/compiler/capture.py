"""Capture: the ops of one forward pass, written down so that they can be done again without it.

`capture` runs `forward` once, with inputs whose numbers only ops may see. Python can then branch on shapes,
but not on data, so what was written down holds for every batch of the same shapes. Everything an op is given
must be known: an input, a result, a parameter or buffer of the model, or a plain number, which is kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import Module, own_tensors
from tesserec.autograd.random import open_stream, random_stream
from tesserec.autograd.tensor import Tensor, is_grad_enabled, recording

GUARDED = ("keys", "batch_size")  # what a model may read of an input that is no array

PLAIN = (int, float, bool, str, np.generic, type(None))


class Uncapturable(Exception):
    """A forward pass cannot be replayed; the message says what it did."""


class Traced(Tensor):
    """A Tensor that shows its shape and type, but its numbers to ops only."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.grad, self.node, self.requires_grad = None, None, tensor.requires_grad

    def __getattr__(self, name: str) -> NoReturn:
        raise Uncapturable(f"forward reads .{name} of a Tensor, which depends on the batch")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def ndim(self) -> int:
        return self.tensor.ndim

    @property
    def size(self) -> int:
        return self.tensor.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.tensor.dtype

    def __len__(self) -> int:
        return len(self.tensor)


class Sealed:
    """An input that is no array: shows what guards see, and the rest to opaque functions only."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __getattr__(self, name: str) -> Any:
        if name not in GUARDED:
            kind = type(self.value).__name__
            raise Uncapturable(f"forward reads .{name} of a {kind}, which depends on the batch")
        return getattr(self.value, name)


class Drawn:
    """Stands for the open random stream among the keywords of a recorded op."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One op. args: Tensors, Sealed inputs, buffers and numbers, by identity."""

    op: Callable[..., Any]
    args: Sequence[Any]
    static: Mapping[str, Any]
    result: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """A forward pass: its inputs as the records name them, what it did, and its result."""

    inputs: Sequence[Any]
    records: Sequence[Record]
    output: Tensor


def capture(model: Module, inputs: Sequence[Any], names: Sequence[str]) -> Capture:
    """What `model` does with `inputs`, the last of them given by `names`. Uncapturable says why not.

    Opaque functions are not called, and random numbers come from a copy of the open stream.
    """
    known = [_known(x) for x in inputs]
    shown = [Traced(x) if isinstance(x, Tensor) else x for x in known]
    first = len(shown) - len(names)
    recorder = Recorder(model)
    with recorder.watching(), random_stream(copy.deepcopy(open_stream())), np.errstate(all="ignore"):
        try:
            output = model(*shown[:first], **dict(zip(names, shown[first:], strict=True)))
        except Uncapturable:
            raise
        except Exception as error:
            raise Uncapturable(f"{type(error).__name__}: {error}") from error
    if not isinstance(output, Traced):
        raise Uncapturable(f"forward returns a {type(output).__name__}, wanted one Tensor made by ops")
    return Capture(known, recorder.records, output.tensor)


def opaque(
    fn: Callable[..., Tensor],
    *inputs: Any,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    leaves: Sequence[Tensor],
) -> Tensor:
    """`fn(*inputs)`, which a compiled model takes as one instruction, whatever it does inside.

    fn(*inputs, out=None) -> Tensor of `shape` and `dtype`, written to `out` where one is given; it may give
    gradients to `leaves` only. In a captured forward pass the inputs must be inputs of the model.
    """
    if recording.recorder is None:
        return fn(*inputs)
    result: Tensor = recording.recorder.record_opaque(fn, inputs, shape, dtype, leaves)
    return result


class Recorder:
    """Takes the place of ops on one thread."""

    def __init__(self, model: Module):
        self.records: list[Record] = []
        self.leaves = {tensor for module in model.modules() for _, tensor in own_tensors(module)}
        arrays = [getattr(module, name) for module in model.modules() for name in module.buffers]
        self.buffers = {id(array): array for array in arrays}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        recording.recorder = self
        try:
            yield
        finally:
            recording.recorder = None

    def record(self, op: Callable[..., Tensor], args: Sequence[Any], static: Mapping[str, Any]) -> Tensor:
        """The op's result on this batch."""
        name = op.__name__
        plain = [self._argument(name, arg) for arg in args]
        kept = {key: self._keyword(name, value) for key, value in static.items()}
        here = {key: copy.deepcopy(value) for key, value in static.items()}  # an op may change a buffer
        recording.recorder = None
        try:
            result = op(*plain, **here)
        finally:
            recording.recorder = self
        self.records.append(Record(op, plain, kept, result))
        return Traced(result)

    def record_opaque(
        self,
        fn: Callable[..., Tensor],
        inputs: Sequence[Any],
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        leaves: Sequence[Tensor],
    ) -> Tensor:
        """Zeros: only the shape matters here."""
        for x in inputs:
            if not isinstance(x, Sealed):
                raise Uncapturable(f"forward looks up a {type(x).__name__} of its own making")
        result = Tensor(np.zeros(shape, dtype))
        result.requires_grad = is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        self.records.append(Record(opaque, inputs, {"fn": fn, "leaves": tuple(leaves)}, result))
        return Traced(result)

    def _argument(self, name: str, arg: Any) -> Any:
        if isinstance(arg, Traced):
            return arg.tensor
        if isinstance(arg, Tensor):
            known = arg in self.leaves
        elif isinstance(arg, np.ndarray):
            known = id(arg) in self.buffers and arg.dtype.kind == "f"
        else:
            known = isinstance(arg, PLAIN)
        if known:
            return arg
        raise Uncapturable(
            f"{name} is given a {type(arg).__name__} that is neither an input nor a parameter or buffer "
            "of the model, nor a result of ops on them"
        )

    def _keyword(self, name: str, value: Any) -> Any:
        """A keyword as it can be kept. Arrays among them could depend on the batch."""
        if isinstance(value, np.random.Generator):
            if value is not open_stream():
                raise Uncapturable(f"{name} draws from a generator of its own, not from current_stream()")
            return Drawn
        parts = value if isinstance(value, tuple | list) else (value,)
        for part in parts:
            if isinstance(part, Tensor | np.ndarray | list) and id(part) not in self.buffers:
                kind = type(part).__name__
                raise Uncapturable(f"{name} is given a {kind} by keyword that is no buffer of the model")
        return value


def _known(x: Any) -> Any:
    """An input as records name it."""
    if isinstance(x, Tensor) and (x.requires_grad or x.node):
        raise Uncapturable("an input requires a gradient")
    if isinstance(x, Tensor | np.ndarray):
        if x.dtype.kind != "f":
            raise Uncapturable(f"an input is an array of {x.dtype}, wanted floats")
        return Tensor(x.data if isinstance(x, Tensor) else x)
    return x if isinstance(x, PLAIN) else Sealed(x)
