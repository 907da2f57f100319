"""Fusion: ops whose work one pass over memory can do become one op, where nobody sees what was between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from tesserec.autograd import ops
from tesserec.autograd.compiler.capture import Capture, Record
from tesserec.autograd.kernels.linear import RELU, SIGMOID, TANH
from tesserec.autograd.tensor import Tensor

ACTIVATIONS: dict[Any, int] = {ops.relu: RELU, ops.sigmoid: SIGMOID, ops.tanh: TANH}

Source = Callable[[Any], Record | None]  # an argument -> the record that made it, if for this use only


def fused(captured: Capture) -> Capture:
    """The same forward pass in fewer records."""
    uses = Counter(arg for record in captured.records for arg in record.args if isinstance(arg, Tensor))
    uses[captured.output] += 1
    made: dict[Tensor, Record] = {}  # in order

    def source(arg: Any) -> Record | None:
        return made.get(arg) if isinstance(arg, Tensor) and uses[arg] == 1 else None

    for record in captured.records:
        joined, part = _activated(record, source) or _multiplied_and_added(record, source) or (record, None)
        if part is not None:
            del made[part.result]
        made[record.result] = joined
    return Capture(captured.inputs, list(made.values()), captured.output)


Joined = tuple[Record, Record] | None  # the new record, and the one that it makes needless


def _activated(record: Record, source: Source) -> Joined:
    """activation(linear(x, w, b)): the activation as a keyword that only the lowering knows."""
    layer = source(record.args[0]) if record.op in ACTIVATIONS else None
    if layer is None or layer.op is not ops.linear or layer.static:
        return None
    activation = {"activation": ACTIVATIONS[record.op]}
    return Record(ops.linear, layer.args, activation, record.result), layer


def _multiplied_and_added(record: Record, source: Source) -> Joined:
    """x·y + z, all of one shape."""
    if record.op is not ops.add:
        return None
    for arg, other in (record.args, record.args[::-1]):
        product = source(arg)
        if product is not None and product.op is ops.multiply:
            args = [*product.args, other]
            if all(isinstance(a, Tensor) and a.shape == record.result.shape for a in args):
                return Record(ops.multiply_add, args, {}, record.result), product
    return None
