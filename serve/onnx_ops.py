"""ONNX nodes for what models are made of: one rule per op, which gives the name of the op's value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tesserec.autograd import ops

BATCH = -1  # in a shape: the axis that grows with the number of samples


class OnnxError(ValueError):
    """A model that cannot be written as ONNX, or that scores otherwise there."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value in the graph. shape: BATCH where it depends on the number of samples."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes and constants so far."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output -> the output's name."""
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, array: npt.ArrayLike) -> str:
        """The name of a constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def integers(self, *values: int) -> str:
        """The name of a constant vector, as axes and shapes are given."""
        return self.constant(np.array(values, np.int64))

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        """x in a shape of which one axis may be BATCH."""
        if shape.count(BATCH) > 1:
            raise OnnxError("a reshape has two axes that grow with the number of samples: ONNX infers one")
        return self.add("Reshape", x, self.integers(*shape), allowzero=1)


Rule = Callable[..., str]  # (graph, shape of the value, *Values of the arguments, **static) -> name
RULES: dict[Any, Rule] = {}


def rule(op: Any) -> Callable[[Rule], Rule]:
    """Enters a function as the rule of an op. Its keywords are the op's."""

    def enter(fn: Rule) -> Rule:
        RULES[op] = fn
        return fn

    return enter


def _same(kind: str) -> Rule:
    return lambda g, shape, *args: g.add(kind, *(arg.name for arg in args))


SAME: Mapping[Any, str] = {
    ops.add: "Add",
    ops.subtract: "Sub",
    ops.multiply: "Mul",
    ops.divide: "Div",
    ops.negative: "Neg",
    ops.maximum: "Max",
    ops.minimum: "Min",
    ops.exp: "Exp",
    ops.log: "Log",
    ops.sqrt: "Sqrt",
    ops.absolute: "Abs",
    ops.relu: "Relu",
    ops.gelu: "Gelu",
    ops.sigmoid: "Sigmoid",
    ops.tanh: "Tanh",
    ops.softplus: "Softplus",
    ops.matmul: "MatMul",
}
RULES.update({op: _same(kind) for op, kind in SAME.items()})


@rule(ops.multiply_add)
def _multiply_add(g: Graph, shape: Any, x: Value, y: Value, z: Value) -> str:
    return g.add("Add", g.add("Mul", x.name, y.name), z.name)


@rule(ops.power)
def _power(g: Graph, shape: Any, x: Value, *, exponent: float) -> str:
    return g.add("Pow", x.name, g.constant(np.float32(exponent)))


@rule(ops.clip)
def _clip(g: Graph, shape: Any, x: Value, *, low: float | None = None, high: float | None = None) -> str:
    bounds = ("" if bound is None else g.constant(np.float32(bound)) for bound in (low, high))
    return g.add("Clip", x.name, *bounds)


def _reduction(kind: str) -> Rule:
    def reduce(g: Graph, shape: Any, x: Value, *, axis: Any = None, keepdims: bool = False) -> str:
        axes = range(len(x.shape)) if axis is None else np.atleast_1d(axis).tolist()
        return g.add(kind, x.name, g.integers(*axes), keepdims=int(keepdims))

    return reduce


RULES[ops.sum] = _reduction("ReduceSum")
RULES[ops.mean] = _reduction("ReduceMean")
RULES[ops.max] = _reduction("ReduceMax")


@rule(ops.softmax)
def _softmax(g: Graph, shape: Any, x: Value, *, axis: int = -1) -> str:
    return g.add("Softmax", x.name, axis=axis)


@rule(ops.log_softmax)
def _log_softmax(g: Graph, shape: Any, x: Value, *, axis: int = -1) -> str:
    return g.add("LogSoftmax", x.name, axis=axis)


@rule(ops.logsumexp)
def _logsumexp(g: Graph, shape: Any, x: Value, *, axis: int = -1) -> str:
    return g.add("ReduceLogSumExp", x.name, g.integers(axis), keepdims=0)


@rule(ops.reshape)
def _reshape(g: Graph, result: tuple[int, ...], x: Value, *, shape: Any) -> str:
    return g.reshape(x.name, result)


@rule(ops.transpose)
def _transpose(g: Graph, shape: Any, x: Value, *, axes: Any = None) -> str:
    return g.add("Transpose", x.name, perm=[*reversed(range(len(x.shape)))] if axes is None else [*axes])


@rule(ops.concat)
def _concat(g: Graph, shape: Any, *xs: Value, axis: int = 1) -> str:
    return g.add("Concat", *(x.name for x in xs), axis=axis)


@rule(ops.stack)
def _stack(g: Graph, shape: Any, *xs: Value, axis: int = 1) -> str:
    wide = [g.add("Unsqueeze", x.name, g.integers(axis)) for x in xs]
    return g.add("Concat", *wide, axis=axis)


@rule(ops.getitem)
def _getitem(g: Graph, shape: tuple[int, ...], x: Value, *, key: Any) -> str:
    """Slices; then a reshape drops the axes of numbers, and makes those of None."""
    name, far = x.name, np.iinfo(np.int64).max
    for axis, part in enumerate(_axis_keys(key, len(x.shape))):
        if part == slice(None):
            continue
        if isinstance(part, slice):
            step = 1 if part.step is None else part.step
            ends = (0, far) if step > 0 else (far, -far)
            start, stop = (e if p is None else p for e, p in zip(ends, (part.start, part.stop), strict=True))
        else:
            start, stop, step = part, part + 1 or far, 1
        name = g.add("Slice", name, *map(g.integers, (start, stop, axis, step)))
    return g.reshape(name, shape)


def _axis_keys(key: Any, ndim: int) -> list[Any]:
    """A slice or a number for each axis that there is."""
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is ... or isinstance(k, int | np.integer | slice) for k in keys):
        raise OnnxError(f"x[{key!r}]: ONNX is written for slices, numbers, None and `...` only")
    given = [k for k in keys if k is not None]
    at = given.index(...) if ... in given else len(given)
    rest = [k for k in given[at:] if k is not ...]
    return [*given[:at], *[slice(None)] * (ndim - at - len(rest)), *rest]


@rule(ops.linear)
def _linear(g: Graph, shape: tuple[int, ...], x: Value, w: Value, b: Value | None = None) -> str:
    inputs = [x.name, w.name] if b is None else [x.name, w.name, b.name]
    if len(x.shape) == 2:
        return g.add("Gemm", *inputs, transB=1)
    product = g.add("MatMul", x.name, g.add("Transpose", w.name, perm=[1, 0]))
    return product if b is None else g.add("Add", product, b.name)


@rule(ops.linear_relu)
def _linear_relu(g: Graph, shape: tuple[int, ...], x: Value, w: Value, b: Value) -> str:
    return g.add("Relu", _linear(g, shape, x, w, b))


@rule(ops.layer_norm)
def _layer_norm(g: Graph, shape: Any, x: Value, scale: Value, shift: Value, *, eps: float = 1e-5) -> str:
    return g.add("LayerNormalization", x.name, scale.name, shift.name, axis=-1, epsilon=eps)


@rule(ops.normalize)
def _normalize(
    g: Graph, shape: Any, x: Value, scale: Value, shift: Value, *, mean: Any, var: Any, eps: float = 1e-5
) -> str:
    inverse = g.constant((1 / np.sqrt(var + eps)).astype(np.float32))
    normal = g.add("Mul", g.add("Sub", x.name, g.constant(mean.astype(np.float32))), inverse)
    return g.add("Add", g.add("Mul", normal, scale.name), shift.name)


@rule(ops.pairwise_dot)
def _pairwise_dot(g: Graph, shape: tuple[int, ...], x: Value) -> str:
    fields = x.shape[1]
    products = g.add("MatMul", x.name, g.add("Transpose", x.name, perm=[0, 2, 1]))
    first, second = np.triu_indices(fields, 1)
    flat = g.reshape(products, (BATCH, fields * fields))
    return g.add("Gather", flat, g.constant(first * fields + second), axis=1)


@rule(ops.factorization)
def _factorization(g: Graph, shape: Any, x: Value) -> str:
    total = g.add("ReduceSum", x.name, g.integers(1), keepdims=0)
    squares = g.add("ReduceSumSquare", x.name, g.integers(1), keepdims=0)
    twice = g.add("Sub", g.add("Mul", total, total), squares)
    return g.add("Mul", twice, g.constant(np.float32(0.5)))
