"""Lowering: from the ops of a forward pass to the two stages of a program.

An op without a rule is given whole values, what is the same for all candidates of a request repeated, and
runs as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.compiler.capture import Sealed, Uncapturable
from tesserec.autograd.module import Module
from tesserec.embeddings.allocation import aligned
from tesserec.models.features import Features
from tesserec.serve.kernels import steps
from tesserec.serve.lowering_rules import RULES, function_of, given
from tesserec.serve.lowering_values import Builder, Columns, Mixed, Piece, is_own, single
from tesserec.serve.program import Call, Fixed, Program, Step
from tesserec.serve.query import Split
from tesserec.serve.records import Forward, Op, forward_of

Array = npt.NDArray[Any]


def lowered(model: Module, features: Features, split: Split, max_rows: int) -> Program:
    """The program of a model for requests of one split. Uncapturable says why there is none."""
    build = Builder(features, split)
    forward = forward_of(model, features)
    build.values[forward.dense] = _dense_input(build, features.num_dense, split.dense)
    for op in forward.ops:
        build.values[op.result] = _lowered(build, op)
    return _finished(build, forward, max_rows)


def _dense_input(b: Builder, num_dense: int, context: Columns) -> Mixed:
    own = tuple(i for i in range(num_dense) if i not in context)
    pieces: dict[bool, Piece] = {}
    for candidates, columns in ((False, context), (True, own)):
        if columns or (not candidates and not num_dense):
            pieces[candidates] = Piece(b.slot((len(columns),), candidates), columns)
            b.stages[candidates].dense = pieces[candidates].slot
    return Mixed((num_dense,), pieces.get(False), pieces.get(True))


def _lowered(b: Builder, op: Op) -> Mixed | Fixed:
    args = [b.argument(arg) for arg in op.args]
    mixed = [arg for arg in args if isinstance(arg, Mixed | Sealed)]
    if not mixed:
        return b.fixed(partial(_value, op, args))
    if op.axis is None:
        raise Uncapturable(f"{op.op.__name__} mixes samples")
    rule = RULES.get(op.op)
    value = rule(b, op, args) if rule else None
    return value or _as_it_is(b, op, args)


def _value(op: Op, args: Sequence[Any]) -> Array:
    fn: Any = op.op
    arrays = (a.array if isinstance(a, Fixed) else a for a in args)
    return np.asarray(fn.__wrapped__(*arrays, **op.static)[0])


def _finished(b: Builder, forward: Forward, max_rows: int) -> Program:
    result = b.values[forward.output]
    if not isinstance(result, Mixed):
        raise Uncapturable("forward gives the same for all samples")
    logits, out = b.whole(result, True), b.slot((1,), True)
    b.do(out, Step(steps.SIGMOID, out, logits))
    for slot in b.slots:
        if slot.parent is None:
            slot.memory = aligned((max_rows, slot.width), np.dtype(np.float32), np.empty)
    return Program(b.stages[False], b.stages[True], b.held, out, max_rows)


def _as_it_is(b: Builder, op: Op, args: Sequence[Any]) -> Mixed:
    if "activation" in op.static:  # which only the rule knows
        raise Uncapturable("a layer of an unknown form")
    own = is_own(args)
    out = b.slot(op.shape, own, axis=op.axis or 0)
    return single(b.do(out, Call(function_of(op), [given(b, a, own) for a in args], out)))
