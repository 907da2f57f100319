"""Rules: how ops compute with mixed values, each in as few operations as its kind allows.

A rule is given the builder, the op and its arguments, and returns the value, or None where the arguments are
of a form that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import prod
from types import MethodType
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd import ops
from tesserec.autograd.compiler.capture import Uncapturable, opaque
from tesserec.autograd.kernels.linear import IDENTITY, RELU
from tesserec.embeddings.collection import EmbeddingBagCollection
from tesserec.serve.kernels import steps
from tesserec.serve.kernels.layer import packed_weights
from tesserec.serve.lowering_values import Builder, Columns, Mixed, Piece, Value, single
from tesserec.serve.program import Call, Fixed, Lookup, Slot, Step
from tesserec.serve.records import SHAPED, Op

Array = npt.NDArray[Any]
Rule = Callable[[Builder, Op, Sequence[Any]], Mixed | None]
RULES: dict[Any, Rule] = {}


def rule(*of: Any) -> Callable[[Rule], Rule]:
    """Enters a function as the rule of these ops."""

    def enter(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(of, fn))
        return fn

    return enter


def _relu(x: Array, out: Array) -> None:
    np.maximum(x, 0, out=out)


def _multiply_add(x: Any, y: Any, z: Any, out: Array) -> None:
    np.multiply(x, y, out=out)
    np.add(out, z, out=out)


UFUNCS: dict[Any, Callable[..., Any]] = {
    ops.add: np.add,
    ops.subtract: np.subtract,
    ops.multiply: np.multiply,
    ops.divide: np.divide,
    ops.maximum: np.maximum,
    ops.minimum: np.minimum,
    ops.negative: np.negative,
    ops.absolute: np.absolute,
    ops.exp: np.exp,
    ops.log: np.log,
    ops.sqrt: np.sqrt,
    ops.tanh: np.tanh,
    ops.relu: _relu,
    ops.multiply_add: _multiply_add,
}
ELEMENTWISE = (*UFUNCS, ops.sigmoid, ops.gelu, ops.softplus, ops.power, ops.clip)


def given(b: Builder, arg: Value, own: bool) -> Any:
    if isinstance(arg, Mixed):
        return b.whole(arg, own)
    return arg.array if isinstance(arg, Fixed) else arg


def function_of(op: Op) -> Callable[..., None]:
    """fn(*arrays, out=array) of an op."""
    fn: Any = op.op
    if fn in SHAPED:
        return _reshape_to if fn is ops.reshape else _broadcast_to
    return UFUNCS.get(fn) or partial(_run_op, fn.__wrapped__, op.static)


def _reshape_to(x: Array, out: Array) -> None:
    np.copyto(out, x.reshape(out.shape))


def _broadcast_to(x: Array, out: Array) -> None:
    np.copyto(out, x)


def _run_op(fn: Any, static: Any, *args: Any, out: Array) -> None:
    np.copyto(out, fn(*args, **static)[0])


@rule(*ELEMENTWISE)
def _elementwise(b: Builder, op: Op, args: Sequence[Any]) -> Mixed | None:
    """Piece by piece, where all values have the same pieces."""
    mixed = [arg for arg in args if isinstance(arg, Mixed)]
    if len({(len(m.shape), m.shape[:1], *_columns(m)) for m in mixed}) > 1 or len(mixed[0].pieces) < 2:
        return None
    pieces = []
    for which in mixed[0].pieces:
        own, columns = which.slot.own, which.columns
        out = b.slot((len(columns), *op.shape[1:]), own)
        taken = [_piece_of(b, arg, own, columns, op.shape) for arg in args]
        pieces.append(Piece(b.do(out, Call(function_of(op), taken, out)), columns))
    return Mixed(op.shape, *pieces)


def _columns(value: Mixed) -> list[tuple[bool, Columns]]:
    return [(piece.slot.own, piece.columns) for piece in value.pieces]


def _piece_of(b: Builder, arg: Value, own: bool, columns: Columns, shape: tuple[int, ...]) -> Any:
    """What of an argument belongs to some columns of a result."""
    if isinstance(arg, Mixed):
        piece = arg.own if own else arg.shared
        assert piece is not None
        return piece.slot
    if not isinstance(arg, Fixed):
        return arg
    axis = arg.array.ndim - len(shape)
    if 0 <= axis < arg.array.ndim and arg.array.shape[axis] == shape[0] != 1:
        return b.fixed(lambda: arg.array.take(columns, axis)).array
    return arg.array


@rule(opaque)
def _lookup(b: Builder, op: Op, args: Sequence[Any]) -> Mixed:
    """Each feature's bags pooled where the feature belongs."""
    fn = op.static["fn"]
    if not isinstance(fn, MethodType) or fn.__func__ is not EmbeddingBagCollection._pooled:
        raise Uncapturable(f"forward looks up by {fn}")
    collection = fn.__self__
    assert isinstance(collection, EmbeddingBagCollection)
    if collection.processor is not None or collection.around is not nullcontext:
        raise Uncapturable("what is looked up is processed or watched")
    pieces = [_looked_up(b, collection, own) for own in (False, True)]
    return Mixed(op.shape, *pieces)


def _looked_up(b: Builder, collection: EmbeddingBagCollection, own: bool) -> Piece | None:
    table_set, keys = collection.table_set, b.keys[own]
    ends = np.cumsum([0, *(reader.width for reader in table_set.outputs)])
    mine = [(r, int(end)) for r, end in zip(table_set.outputs, ends, strict=False) if r.feature in keys]
    if not mine:
        return None
    columns = tuple(c for reader, first in mine for c in range(first, first + reader.width))
    out, at = b.slot((len(columns),), own), 0
    places = {}
    for reader, _ in mine:
        places[reader], at = at, at + reader.width
    for k, pool in enumerate(collection.pools):
        readers = [reader for reader, _ in mine if reader.pool == k]
        if readers:
            to = [places[reader] for reader in readers]
            b.stages[own].lookups.append(Lookup(pool, readers, keys, to, out))
    return Piece(out, columns)


@rule(ops.concat)
def _concat(b: Builder, op: Op, args: Sequence[Any]) -> Mixed | None:
    if op.static.get("axis", 1) % (len(op.shape) + 1) != 1 or not all(isinstance(a, Mixed) for a in args):
        return None
    ends = np.cumsum([0, *(arg.shape[0] for arg in args)]).tolist()
    found = []
    for own in (False, True):
        pieces = [(arg.own if own else arg.shared, end) for arg, end in zip(args, ends, strict=False)]
        found.append(_side_by_side(b, [(p, end) for p, end in pieces if p], op.shape[1:], own))
    return Mixed(op.shape, *found)


def _side_by_side(
    b: Builder, pieces: Sequence[tuple[Piece, int]], rest: tuple[int, ...], own: bool
) -> Piece | None:
    """Pieces as one, whose columns begin at their numbers."""
    columns = tuple(c + first for piece, first in pieces for c in piece.columns)
    if len(pieces) < 2:
        return Piece(pieces[0][0].slot, columns) if pieces else None
    out, at = b.slot((len(columns), *rest), own), 0
    for piece, _ in pieces:
        b.place(piece.slot, out, at)
        at += piece.slot.width
    return Piece(out, columns)


@rule(ops.reshape)
def _reshape(b: Builder, op: Op, args: Sequence[Any]) -> Mixed | None:
    """A view, where no new column has numbers of two pieces, or has them apart."""
    (x,) = args
    inner = prod(op.shape[1:])
    pieces: dict[bool, Piece] = {}
    for piece in x.pieces if op.axis == 0 and prod(x.shape) else ():
        numbers = (np.array(piece.columns)[:, None] * x.inner + np.arange(x.inner)).reshape(-1)
        if len(numbers) % inner:
            return None
        groups = numbers.reshape(-1, inner)
        if (groups[:, 0] % inner).any() or (np.diff(groups, axis=1) != 1).any():
            return None
        shape = (len(groups), *op.shape[1:]) if op.shape else ()
        columns = tuple((groups[:, 0] // inner).tolist())
        pieces[piece.slot.own] = Piece(b.window(piece.slot, 0, shape), columns)
    return Mixed(op.shape, pieces.get(False), pieces.get(True)) if pieces else None


@rule(ops.getitem)
def _getitem(b: Builder, op: Op, args: Sequence[Any]) -> Mixed | None:
    """A view, where the chosen columns of each piece are side by side."""
    (x,) = args
    key = op.static["key"]
    every, which, *more = (*key, slice(None))[: max(2, len(key))] if isinstance(key, tuple) else (key, None)
    if every != slice(None) or type(which) not in (int, slice) or not x.shape:
        return None
    if any(k is not None and k != slice(None) for k in more):
        return None
    chosen = np.arange(x.shape[0])[which].reshape(-1).tolist()
    pieces: dict[bool, Piece] = {}
    for piece in x.pieces:
        at = [k for k, c in enumerate(piece.columns) if c in chosen]
        if not at:
            continue
        if at != list(range(at[0], at[0] + len(at))):
            return None
        shape = op.shape if type(which) is int else (len(at), *op.shape[1:])
        columns = tuple(chosen.index(piece.columns[k]) for k in at)
        columns = columns if type(which) is slice else tuple(range(shape[0] if shape else 1))
        pieces[piece.slot.own] = Piece(b.window(piece.slot, at[0] * x.inner, shape), columns)
    return Mixed(op.shape, pieces.get(False), pieces.get(True)) if pieces else None


@rule(ops.linear, ops.linear_relu)
def _linear(b: Builder, op: Op, args: Sequence[Any]) -> Mixed | None:
    """The shared columns are multiplied once per request, and what they give is added for each candidate."""
    x, w, bias = (*args, None)[:3]
    if not isinstance(x, Mixed) or not isinstance(w, Fixed) or isinstance(bias, Mixed) or len(x.shape) != 1:
        return None
    activation = RELU if op.op is ops.linear_relu else op.static.get("activation", IDENTITY)
    width = len(w.array)
    shift: Fixed | Slot = bias or b.fixed(lambda: np.zeros(width, np.float32))
    for piece in x.pieces:
        last = piece is x.pieces[-1]
        weights = b.fixed(partial(_packed, w, piece.columns))
        out = b.slot((width,), piece.slot.own)
        out.sparse = last and activation == RELU
        step = Step(steps.LAYER, out, piece.slot, shift, weights, len(piece.columns), width)
        step.activation = activation if last else IDENTITY
        shift = b.do(out, step)
    return single(out)


def _packed(w: Fixed, columns: Columns) -> Array:
    weights: Array = packed_weights(w.array[:, columns])
    return weights


@rule(ops.pairwise_dot)
def _pairwise_dot(b: Builder, op: Op, args: Sequence[Any]) -> Mixed:
    """Pairs of shared fields once per request; then each own field with all shared ones, and own ones."""
    (x,) = args
    fields, width = x.shape
    found: dict[bool, Piece] = {}
    for piece in x.pieces:
        mine = piece.columns
        meets = x.shared.columns if piece is x.own and x.shared else ()
        columns = [_pair(i, j, fields) for i in mine for j in meets]
        columns += [_pair(i, j, fields) for k, i in enumerate(mine) for j in mine[k + 1 :]]
        if not columns:
            continue
        out = b.slot((len(columns),), piece.slot.own)
        if meets:
            met = Step(steps.MEET, out, piece.slot, x.shared.slot, width=width, count=len(mine))
            met.others = len(meets)
            b.do(out, met)
        if len(mine) > 1:
            rest = b.window(out, len(mine) * len(meets), (len(columns) - len(mine) * len(meets),))
            b.do(rest, Step(steps.PAIRS, rest, piece.slot, width=width, count=len(mine)))
        found[piece.slot.own] = Piece(out, tuple(columns))
    return Mixed(op.shape, found.get(False), found.get(True))


def _pair(i: int, j: int, fields: int) -> int:
    """Where the product of fields i and j is among those of all pairs, in row-major order."""
    i, j = min(i, j), max(i, j)
    return i * fields - i * (i + 1) // 2 + j - i - 1


@rule(ops.sum)
def _sum(b: Builder, op: Op, args: Sequence[Any]) -> Mixed | None:
    """Over columns: the sum of the shared ones once per request."""
    (x,) = args
    axis = op.static.get("axis")
    if not isinstance(axis, int) or axis % (len(x.shape) + 1) != 1 or op.static.get("keepdims"):
        return None
    return single(_summed(b, x, op.shape, steps.ADD_UP))


@rule(ops.factorization)
def _factorization(b: Builder, op: Op, args: Sequence[Any]) -> Mixed:
    """From the sums of vectors and of their squares, those of shared fields once per request."""
    (x,) = args
    sums = _summed(b, x, (2, *op.shape), steps.MOMENTS)
    out = b.slot(op.shape, sums.own)
    return single(b.do(out, Step(steps.PRODUCTS, out, sums, width=op.shape[0])))


def _summed(b: Builder, x: Mixed, shape: tuple[int, ...], kind: int) -> Slot:
    """What `kind` of step makes of all fields, first of the shared ones."""
    so_far: Fixed | Slot = b.fixed(lambda: np.zeros(shape, np.float32))
    for piece in x.pieces:
        out = b.slot(shape, piece.slot.own)
        step = Step(kind, out, piece.slot, so_far, width=x.inner, count=len(piece.columns))
        so_far = b.do(out, step)
    return out
