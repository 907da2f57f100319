"""Lowerings: the calls that compute an op's value and its gradient into arrays that are there already.

Each has the op's signature, with slots for arrays, behind the builder. It emits the calls of the value, and
returns the value's slot and a function that emits those of the gradient. An op without one, or given shapes
that its lowering does not take, is run as it is, and its pullbacks after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tesserec.autograd import ops
from tesserec.autograd.compiler.builder import Backward, Builder, Kind, Slot
from tesserec.autograd.compiler.capture import Drawn, Record, Uncapturable, opaque
from tesserec.autograd.kernels import interaction, scale
from tesserec.autograd.kernels import linear as kernels
from tesserec.autograd.random import current_stream
from tesserec.autograd.tensor import Array, Piece, Tensor, backpropagate

Lowered = tuple[Slot, Backward]
LOWERINGS: dict[Any, Callable[..., Lowered | None]] = {}


def lower(build: Builder, record: Record, args: Sequence[Any]) -> Lowered:
    """The value of a recorded op, and how to go back."""
    lowering = LOWERINGS.get(record.op)
    lowered = lowering(build, *args, **record.static) if lowering else None
    return lowered or _as_it_is(build, record, args)


def lowering(*lowered: Any) -> Callable[[Any], Any]:
    """Enters a function as the lowering of these ops."""

    def enter(fn: Any) -> Any:
        LOWERINGS.update(dict.fromkeys(lowered, fn))
        return fn

    return enter


def _as_it_is(b: Builder, record: Record, args: Sequence[Any]) -> Lowered:
    fn: Any = record.op
    out, box = b.out(), b.slot(Kind.BOX)
    b.draws |= any(value is Drawn for value in record.static.values())
    b.call(partial(_run_op, fn.__wrapped__, record.static), box, out, *args)

    def backward(g: Slot) -> None:
        targets = [b.target(x) or (None, False) for x in args]
        adds, into = [add for _, add in targets], [slot for slot, _ in targets]
        b.call(partial(_run_pullbacks, adds), box, g, out, *args, *into)

    return out, backward


def _run_op(fn: Any, static: Mapping[str, Any], box: list[Any], out: Array, *args: Any) -> None:
    live = {key: current_stream() if value is Drawn else value for key, value in static.items()}
    value, pullbacks = fn(*args, **live)
    np.copyto(out, value)
    box.append(pullbacks)


def _run_pullbacks(adds: list[bool], box: list[Any], g: Array, out: Array, *rest: Any) -> None:
    """rest: the arguments, which the pullbacks may read, and then where each one's gradient goes."""
    for add, pullback, target in zip(adds, box.pop(), rest[len(adds) :], strict=False):
        if target is None:
            continue
        given = pullback(g)
        if isinstance(given, Piece):
            if not add:
                target.fill(0)
            given.add_to(target)
        elif add:
            target += given
        else:
            np.copyto(target, given)


@lowering(opaque)
def _opaque(b: Builder, *inputs: Slot, fn: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Lowered:
    out, box = b.out(), b.slot(Kind.BOX)
    b.call(partial(_run_opaque, fn, set(leaves)), box, out, *inputs)

    def backward(g: Slot) -> None:
        b.opaque_leaves |= dict.fromkeys(leaf for leaf in leaves if leaf.requires_grad)
        b.call(_go_back_through_opaque, box, b.hand_out(g), b.found)

    return out, backward


def _run_opaque(
    fn: Callable[..., Tensor], leaves: set[Tensor], box: list[Any], out: Array, *inputs: Any
) -> None:
    result = fn(*inputs, out=out)
    if result.shape != out.shape or result.dtype != out.dtype:
        raise ValueError(
            f"{fn} gave {result.dtype} {result.shape}, but had said it would give {out.dtype} {out.shape}"
        )
    parents = result.node.parents if result.node else ()
    if any(p is not None and p.node is None and p not in leaves for p in parents):
        raise Uncapturable("an input holds a Tensor that requires a gradient")
    if not np.may_share_memory(result.data, out):
        np.copyto(out, result.data)
    box.append(result)


def _go_back_through_opaque(box: list[Any], g: Array, found: list[Any]) -> None:
    found += backpropagate(box.pop(), g).items()


@lowering(ops.linear)
def _linear(b: Builder, x: Slot, w: Slot, bias: Any = None, *, activation: int = kernels.IDENTITY) -> Lowered:
    out, no_bias = b.out(), np.empty(0, w.dtype)
    x2, out2 = b.rows(x), b.rows(out)
    b.activations[out] = activation
    b.call(kernels.linear_forward, x2, w, no_bias if bias is None else bias, activation, out2)

    def backward(g: Slot) -> None:
        g2 = b.rows(g)
        if b.activations[out] != kernels.IDENTITY:
            b.call(kernels.activation_backward, out2, activation, g2)
        weight, shift, back = b.target(w), b.target(bias), b.rows_target(x)
        if weight:
            gw, add = weight
            both = shift if shift and shift[1] == add else None
            b.call(kernels.linear_backward_weight, g2, x2, add, gw, both[0] if both else no_bias)
            shift = None if both else shift
        if shift:
            b.call(_add_rows if shift[1] else _sum_rows, g2, shift[0])
        if back:
            gx, add = back
            before = b.activations.get(x, kernels.IDENTITY) if b.uses[x] == 1 else kernels.IDENTITY
            b.call(kernels.linear_backward_input, g2, w, x2, before, add, gx)
            if before != kernels.IDENTITY:
                b.activations[x] = kernels.IDENTITY  # its slope has been seen to

    return out, backward


LOWERINGS[ops.linear_relu] = partial(_linear, activation=kernels.RELU)


def _sum_rows(g: Array, out: Array) -> None:
    g.sum(axis=0, out=out)


def _add_rows(g: Array, out: Array) -> None:
    out += g.sum(axis=0)


@lowering(ops.concat)
def _concat(b: Builder, *xs: Slot, axis: int = 1) -> Lowered:
    ends = np.cumsum([x.shape[axis] for x in xs]).tolist()
    lead = (slice(None),) * (axis % len(xs[0].shape))
    return _join(b, xs, [(*lead, slice(end - x.shape[axis], end)) for x, end in zip(xs, ends, strict=True)])


@lowering(ops.stack)
def _stack(b: Builder, *xs: Slot, axis: int = 1) -> Lowered:
    lead = (slice(None),) * (axis % (len(xs[0].shape) + 1))
    return _join(b, xs, [(*lead, i) for i in range(len(xs))])


def _join(b: Builder, xs: Sequence[Slot], keys: Sequence[Any]) -> Lowered:
    """An array that has each of `xs` at its key; they are computed there if they can be."""
    out = b.out()
    pieces = [partial(_take, key) for key in keys]
    for x, piece in zip(xs, pieces, strict=True):
        if not b.place(x, out, piece):
            b.call(np.copyto, b.view(out, piece), x)

    def backward(g: Slot) -> None:
        for x, piece in zip(xs, pieces, strict=True):
            b.give(x, b.view(g, piece))

    return out, backward


def _take(key: Any, a: Array) -> Array:
    part: Array = a[key]
    return part


@lowering(ops.reshape)
def _reshape(b: Builder, x: Slot, *, shape: tuple[int, ...]) -> Lowered:
    return b.reshaped(x, b.result.shape), lambda g: b.give(x, b.reshaped(g, x.shape))


@lowering(ops.getitem)
def _getitem(b: Builder, x: Slot, *, key: Any) -> Lowered | None:
    keys = key if isinstance(key, tuple) else (key,)
    basic = all(k is None or k is ... or type(k) in (int, slice) for k in keys)
    if not basic or not b.result.ndim:
        return None
    piece = partial(_take, key)
    out = b.view(x, piece)

    def backward(g: Slot) -> None:
        target = b.target(x)
        if target:
            gx, add = target
            if not add:
                b.call(np.copyto, gx, 0)
            part = b.view(gx, piece)
            b.call(np.add, part, g, part)

    return b.as_packed(out), backward


@lowering(ops.add)
def _add(b: Builder, x: Any, y: Any) -> Lowered:
    out = b.out()
    b.call(np.add, x, y, out)

    def backward(g: Slot) -> None:
        first, last = (x, y) if _same_shape(y, out) else (y, x)
        _send(b, first, g, np.positive, g)
        if _same_shape(last, out):
            b.give(last, g)
        else:
            _send(b, last, g, np.positive, g)

    return out, backward


@lowering(ops.subtract)
def _subtract(b: Builder, x: Any, y: Any) -> Lowered:
    out = b.out()
    b.call(np.subtract, x, y, out)

    def backward(g: Slot) -> None:
        _send(b, y, g, np.negative, g)
        _send(b, x, g, np.positive, g)

    return out, backward


@lowering(ops.multiply)
def _multiply(b: Builder, x: Any, y: Any) -> Lowered:
    for vectors, factors in ((x, y), (y, x)):
        if _scales_vectors(b, vectors, factors):
            return _scaled_vectors(b, vectors, factors)
    out = b.out()
    b.call(np.multiply, x, y, out)

    def backward(g: Slot) -> None:
        _send(b, x, g, np.multiply, g, y)
        _send(b, y, g, np.multiply, g, x)

    return out, backward


def _scales_vectors(b: Builder, x: Any, s: Any) -> bool:
    """Whether it is (F, D) times (B, F, 1), dense values as fields."""
    if not isinstance(x, Slot) or not isinstance(s, Slot) or s in b.needs or len(x.shape) != 2:
        return False
    return len(s.shape) == 3 and s.shape[1:] == (x.shape[0], 1)


def _scaled_vectors(b: Builder, x: Slot, s: Slot) -> Lowered:
    out = b.out()
    b.call(scale.scale_vectors, x, s, out)
    return out, lambda g: b.accumulate(x, scale.scale_vectors_backward, g, s)


@lowering(ops.multiply_add)
def _multiply_add(b: Builder, x: Slot, y: Slot, z: Slot) -> Lowered:
    out = b.out()
    b.call(interaction.cross, b.rows(x), b.rows(z), b.rows(y), b.rows(out))

    def backward(g: Slot) -> None:
        first, last = (x, y) if y not in b.grads else (y, x)
        if {x, y} <= b.needs and x is not y and last not in b.grads:
            (g_first, add), (g_last, _) = (b.rows_target(arg) or (g, False) for arg in (first, last))
            b.call(interaction.cross_backward, *map(b.rows, (g, first, last)), add, g_first, g_last)
        else:
            b.put(x, np.multiply, g, y)
            b.put(y, np.multiply, g, x)
        b.give(z, g)

    return out, backward


def _same_shape(x: Any, y: Slot) -> bool:
    return isinstance(x, Slot) and x.shape == y.shape


def _send(b: Builder, x: Any, g: Slot, fn: Callable[..., Any], *args: Any) -> None:
    """fn(*args, array like g) is a gradient of `x`, but for a sum over the axes that were broadcast."""
    if x not in b.needs:
        return
    if x.shape == g.shape:
        b.put(x, fn, *args)
        return
    whole = b.slot(Kind.ARENA, g)
    b.call(fn, *args, whole)
    kept = (1,) * (len(g.shape) - len(x.shape)) + x.shape
    axes = tuple(i for i, n in enumerate(kept) if n != g.shape[i])
    b.put(x, partial(_fold, axes, kept), whole)


def _fold(axes: tuple[int, ...], kept: tuple[int, ...], g: Array, out: Array) -> None:
    g.sum(axis=axes, keepdims=True, out=out.reshape(kept))


@lowering(ops.sum)
def _sum(b: Builder, x: Slot, *, axis: Any = None, keepdims: bool = False) -> Lowered:
    out = b.out()
    b.call(partial(_fold_axes, axis, keepdims), x, out)
    axes = range(len(x.shape)) if axis is None else np.atleast_1d(axis) % len(x.shape)
    key = tuple(None if i in axes and not keepdims else slice(None) for i in range(len(x.shape)))
    return out, lambda g: b.put(x, partial(_spread, key), g)


def _fold_axes(axis: Any, keepdims: bool, x: Array, out: Array) -> None:
    x.sum(axis=axis, keepdims=keepdims, out=out)


def _spread(key: Any, g: Array, out: Array) -> None:
    np.copyto(out, g[key])


@lowering(ops.dropout)
def _dropout(b: Builder, x: Slot, *, p: float, rng: type[Drawn]) -> Lowered:
    out, mask = b.out(), b.slot(Kind.ARENA, x)
    b.draws = True
    b.call(_draw, p, mask)
    b.call(np.multiply, x, mask, out)
    return out, lambda g: b.put(x, np.multiply, g, mask)


def _draw(p: float, mask: Array) -> None:
    kept = current_stream().random(mask.shape, dtype=np.float32) >= np.float32(p)
    np.multiply(kept, 1 / (1 - p), out=mask, dtype=mask.dtype)


@lowering(ops.pairwise_dot)
def _pairwise_dot(b: Builder, x: Slot) -> Lowered:
    out = b.out()
    b.call(interaction.pairwise_dot, x, out)
    return out, lambda g: b.accumulate(x, interaction.pairwise_dot_backward, x, g)


@lowering(ops.factorization)
def _factorization(b: Builder, x: Slot) -> Lowered:
    out = b.out()
    total = b.slot(Kind.ARENA, out)
    b.call(interaction.factorization, x, total, out)
    return out, lambda g: b.accumulate(x, interaction.factorization_backward, g, x, total)
