"""Tensor and the tape: the whole of reverse-mode differentiation.

A Tensor is an array plus, when an op computed it, the `Node` that made it. An op (see `op`) returns its
value and one pullback per argument, side by side. `gradients` walks the nodes from the youngest to the
oldest, which is a topological order because a node is younger than its parents, and calls only the
pullbacks that are needed.

Nothing here is shared between threads but the parameters, and those are only read: any number of threads
may run forward and `gradients` of one model at the same time.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pullback = Callable[[Array], Any]  # gradient of the output -> gradient of one argument
Gradients = dict["Tensor", Any]  # an array, or any object with `+`, such as a RowGrad
Take = Callable[["Tensor", Any], bool]  # a leaf and its gradient -> whether they were taken
Joint = Callable[[Array, Take | None], Gradients]  # gradient of the output -> those of all arguments

_ages = itertools.count()


@dataclass(slots=True, eq=False)
class Node:
    """One recorded op: who its inputs were, and how a gradient flows back to each.

    joint: what stands for the pullbacks where one function gives all gradients, {parent: gradient}. It may
    offer each as soon as it is final to the Take that it is given, and leaves out what was taken.
    """

    name: str
    parents: Sequence[Tensor | None]  # None where an argument needs no gradient
    pullbacks: Sequence[Pullback] = ()
    age: int = field(default_factory=_ages.__next__)
    joint: Joint | None = None

    def gradients(self, g: Array, take: Take | None = None) -> Iterable[tuple[Tensor, Any]]:
        """(parent, its gradient or a part of that), from the gradient of the output."""
        if self.joint is not None:
            return self.joint(g, take).items()
        return self._pulled_back(g)

    def _pulled_back(self, g: Array) -> Iterator[tuple[Tensor, Any]]:
        for parent, pullback in zip(self.parents, self.pullbacks, strict=True):
            if parent is not None:
                given = pullback(g)
                yield parent, g.copy() if given is g and parent.node is None else given


RELEASED = Node("released", (), ())  # stands where a backward pass has already been


class Tensor:
    """An ndarray of floats that remembers how it was computed.

    data: a float array is kept as it is; anything else becomes float32, unless `dtype` says otherwise.
    grad: None, an array like `data`, or an object with `+` where only some rows received any gradient.
    """

    __slots__ = ("data", "grad", "node", "requires_grad")
    __array_ufunc__ = None  # array + Tensor is ours to compute

    def __init__(
        self, data: npt.ArrayLike, *, requires_grad: bool = False, dtype: npt.DTypeLike | None = None
    ):
        if dtype is None and not (isinstance(data, np.ndarray) and data.dtype.kind == "f"):
            dtype = np.float32
        self.data: Array = np.asarray(data, dtype)
        self.grad: Any = None
        self.node: Node | None = None
        self.requires_grad = requires_grad

    def backward(self, grad: npt.ArrayLike | None = None, *, retain_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to `leaf.grad` for every leaf that requires one; see `gradients`."""
        accumulate(gradients(self, grad, retain_graph=retain_graph))

    def detach(self) -> Tensor:
        """The same numbers (shared memory) without their history."""
        return Tensor(self.data)

    def numpy(self) -> Array:
        """The array itself, not a copy."""
        return self.data

    def item(self) -> float:
        """The only element, as a Python float."""
        return float(self.data.item())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def T(self) -> Tensor:
        """All axes in reverse order."""
        return self.transpose()

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        origin = "" if self.node is None else f", node={self.node.name}"
        leaf = ", requires_grad=True" if self.requires_grad and self.node is None else ""
        numbers = np.array2string(self.data, separator=", ", prefix="Tensor(", threshold=20)
        return f"Tensor({numbers}, shape={self.shape}, dtype={self.dtype}{leaf}{origin})"

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if self.requires_grad:
            raise TypeError(
                "a Tensor with a gradient is no array: use .numpy(), or an op of tesserec.autograd.ops"
            )
        return np.array(self.data, dtype, copy=copy)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return self.item()

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "a Tensor cannot be changed in place: build a new one with ops.where or ops.concat, "
            "or write to .data of a parameter between steps"
        )

    def __getitem__(self, key: Any) -> Tensor:
        return ops.getitem(self, key=key)

    def __add__(self, other: Operand) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return ops.subtract(self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return ops.subtract(other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return ops.multiply(self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return ops.multiply(other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return ops.divide(self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return ops.divide(other, self)

    def __matmul__(self, other: Operand) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Operand) -> Tensor:
        return ops.matmul(other, self)

    def __pow__(self, exponent: float) -> Tensor:
        return ops.power(self, exponent=exponent)

    def __neg__(self) -> Tensor:
        return ops.negative(self)

    def __lt__(self, other: Operand) -> Any:
        return self.data < numbers(other)

    def __le__(self, other: Operand) -> Any:
        return self.data <= numbers(other)

    def __gt__(self, other: Operand) -> Any:
        return self.data > numbers(other)

    def __ge__(self, other: Operand) -> Any:
        return self.data >= numbers(other)

    def sum(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Tensor:
        return ops.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: int | tuple[int, ...] | None = None, *, keepdims: bool = False) -> Tensor:
        return ops.mean(self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: int) -> Tensor:
        return ops.reshape(self, shape=shape)

    def transpose(self, *axes: int) -> Tensor:
        return ops.transpose(self, axes=axes or None)


Operand = Tensor | Array | float


# Each thread has its own context, and `workers.parallel_map` hands the caller's on to its threads.
_grad_enabled = contextvars.ContextVar("grad_enabled", default=True)


def is_grad_enabled() -> bool:
    """Whether ops on this thread record their history."""
    return _grad_enabled.get()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Ops inside record nothing, on this thread only. `with no_grad():`, or `@no_grad()` over a function."""
    token = _grad_enabled.set(False)
    try:
        yield
    finally:
        _grad_enabled.reset(token)


class _Recording(threading.local):
    """Where ops of this thread go instead, while `capture.py` watches a forward pass."""

    recorder: Any = None


recording = _Recording()

_SHAPE_ERRORS = (ValueError, IndexError, np.exceptions.AxisError)  # numpy's words, to which `op` adds names


def op(fn: Callable[..., tuple[Any, Sequence[Pullback]]]) -> Callable[..., Tensor]:
    """`fn(*arrays, **static) -> (value, pullbacks)`, lifted to a function of Tensors.

    Positional arguments are differentiable, and may be Tensors, arrays, numbers or None; keyword arguments
    are static. There is one pullback per positional argument, also for optional ones. A pullback returns
    the gradient of its argument in the argument's shape: an array, a `Piece`, or any object with `+`. It
    may return the gradient it was given, but must not write to it; it is called only where needed, so
    costly work belongs inside it. A ValueError from `fn` is raised again with the op's name and the shapes
    of its arguments.
    """

    @functools.wraps(fn)
    def lifted(*args: Any, **static: Any) -> Tensor:
        if recording.recorder is not None:
            return cast(Tensor, recording.recorder.record(lifted, args, static))
        arrays = _arrays(fn, args)
        try:
            value, pullbacks = fn(*arrays, **static)
        except (ValueError, IndexError) as error:
            if type(error) not in _SHAPE_ERRORS:
                raise
            raise ValueError(f"{_signature(fn, arrays)}: {error}") from error
        result = Tensor(np.asarray(value))
        if _grad_enabled.get():
            parents = [a if isinstance(a, Tensor) and a.requires_grad else None for a in args]
            if any(p is not None for p in parents):
                result.requires_grad = True
                result.node = Node(fn.__name__, parents, pullbacks[: len(args)])
        return result

    return lifted


def _arrays(fn: Callable[..., Any], args: Sequence[Any]) -> list[Any]:
    """The numbers of each argument, all arrays of one float type. Plain numbers stay as they are."""
    arrays = [numbers(a) for a in args]
    dtypes = {a.dtype for a in arrays if isinstance(a, np.ndarray)}
    if len(dtypes) == 1 and next(iter(dtypes)).kind == "f":
        return arrays
    floats = {d for d in dtypes if d.kind == "f"}
    if len(floats) > 1:
        raise ValueError(
            f"{_signature(fn, arrays)}: arguments of different float types; cast one: "
            "`x.astype(np.float32)` for an array, `Tensor(x, dtype=np.float32)` for a Tensor"
        )
    dtype = floats.pop() if floats else np.dtype(np.float32)
    return [a if a is None or (dtypes and np.isscalar(a)) else np.asarray(a, dtype) for a in arrays]


def numbers(arg: Any) -> Any:
    """What an op computes with: an array, or a plain number, because a numpy number would widen float32."""
    if isinstance(arg, Tensor):
        return arg.data
    if isinstance(arg, np.ndarray | np.generic):
        return arg if arg.ndim else arg.item()
    return np.asarray(arg, np.float32) if isinstance(arg, Sequence) else arg


def as_tensor(x: Operand) -> Tensor:
    """`x` itself, or an array or number as a Tensor without gradient."""
    return x if isinstance(x, Tensor) else Tensor(x)


def _signature(fn: Callable[..., Any], arrays: Sequence[Any]) -> str:
    """`linear(x float32 (4, 3), w float64 (5, 3))`: an op and what it was given, for messages."""
    code = fn.__code__
    names = list(code.co_varnames[: code.co_argcount])
    names += [f"argument {i}" for i in range(len(names), len(arrays))]
    shown = (
        f"{name} {a.dtype} {a.shape}" if isinstance(a, np.ndarray) else f"{name} {a}"
        for name, a in zip(names, arrays, strict=False)
    )
    return f"{fn.__name__}({', '.join(shown)})"


def shared(fn: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """`fn`, computed once for all pullbacks of an op that are called with the same gradient."""
    memo: tuple[Any, Any] = (None, None)

    def call(g: Array) -> Any:
        nonlocal memo
        known = memo
        if known[0] is not g:
            known = memo = (g, fn(g))
        return known[1]

    return call


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A gradient that is zero but at `key`: so F slices of one tensor cost one buffer, not F."""

    key: Any
    values: Array
    add_at: Callable[[Array, Any, Array], None]

    def add_to(self, buffer: Array) -> None:
        """Add to `buffer[key]` in place."""
        self.add_at(buffer, self.key, self.values)


def gradients(
    output: Tensor,
    grad: npt.ArrayLike | None = None,
    *,
    retain_graph: bool = False,
    take: Take | None = None,
) -> Gradients:
    """{leaf: d(output)/d(leaf)} for every leaf that requires a gradient and that `output` depends on.

    Touches no leaf. The arrays belong to the caller alone and may be changed in place. `grad`, the gradient
    of `output`, is 1 unless given, which only a scalar allows. The graph is released on the way, and its
    memory with it, unless `retain_graph`; a released graph cannot be walked again. take: is offered each
    leaf's gradient as soon as it is final, while others are still to come; what it takes is left out.
    """
    return backpropagate(output, _seed(output, grad), retain_graph=retain_graph, take=take)


def backpropagate(
    output: Tensor, g: Array, *, retain_graph: bool = False, take: Take | None = None
) -> Gradients:
    """`gradients` of an output that has a history, from its gradient `g`, which pullbacks may keep."""
    found = sums.Sums({output: g})
    order = _history(output)
    offers = sums.Offers(order, found, take) if take else None
    while order:
        tensor = order.pop()
        node: Any = tensor.node
        if not retain_graph:
            tensor.node = RELEASED
        g = found.take(tensor)
        for parent, given in node.gradients(g, offers.early(node) if offers else None):
            found.add(parent, given, node)
        if offers:
            offers.after(node)
    return found.finish()


def accumulate(grads: Mapping[Tensor, Any]) -> None:
    """Add each gradient to `leaf.grad`."""
    for leaf, g in grads.items():
        leaf.grad = g if leaf.grad is None else as_array(leaf.grad + g)


def as_array(g: Any) -> Any:
    """`g`, but as an array if it is a numpy number, which numpy makes of any result without axes."""
    return np.asarray(g) if isinstance(g, np.generic) else g


def _seed(output: Tensor, grad: npt.ArrayLike | None) -> Array:
    if not output.requires_grad:
        raise ValueError(
            "nothing to differentiate: no tensor behind this one requires a gradient, or it was computed "
            "under no_grad()"
        )
    if grad is None and output.size != 1:
        raise ValueError(
            f"backward() needs a scalar, got shape {output.shape}: "
            "reduce it with .sum() or .mean(), or pass grad, an array of that shape"
        )
    seed = np.array(1.0 if grad is None else grad, output.dtype)
    if seed.ndim and seed.shape != output.shape:
        raise ValueError(f"grad has shape {seed.shape}, the tensor has shape {output.shape}: they must agree")
    return np.array(np.broadcast_to(seed, output.shape))


def _history(output: Tensor) -> list[Tensor]:
    """Every tensor with a node that `output` depends on, the oldest first."""
    found: list[Tensor] = []
    seen: set[Tensor] = {output}
    stack = [output]
    while stack:
        tensor = stack.pop()
        if tensor.node is None:
            continue
        if tensor.node is RELEASED:
            raise ValueError(
                "this graph was already differentiated and released: run the forward pass again, sum the "
                "losses and differentiate once, or pass retain_graph=True to the first backward()"
            )
        found.append(tensor)
        fresh = {p for p in tensor.node.parents if p is not None} - seen
        seen |= fresh
        stack.extend(fresh)
    found.sort(key=_age)
    return found


def _age(tensor: Tensor) -> int:
    return tensor.node.age if tensor.node is not None else -1


from tesserec.autograd import ops, sums  # noqa: E402  the operators above are ops, and both need the names above
