"""Records: the ops of a model's forward pass, as they are for any number of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tesserec.autograd import ops
from tesserec.autograd.compiler.capture import Capture, Drawn, Record, Sealed, Uncapturable, capture
from tesserec.autograd.compiler.fusion import fused
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor, no_grad
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features

SAMPLES = 5, 7  # of the two batches from which shapes are learnt
SHAPED = ops.reshape, ops.broadcast_to  # whose keyword is the shape of their result


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """An op of the forward pass. shape: of its result, but for the axis of the samples.

    axis: where that is; None if the result is the same for all samples.
    """

    op: Callable[..., Any]
    args: Sequence[Any]
    static: Mapping[str, Any]
    result: Tensor
    shape: tuple[int, ...]
    axis: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """A forward pass: its dense input, its ops in order, and its result, a number for each sample."""

    dense: Tensor
    ops: Sequence[Op]
    output: Tensor


def forward_of(model: Module, features: Features) -> Forward:
    """What `model`, in evaluation mode, does with a batch of any size. Uncapturable says why we cannot know.

    Two batches are captured, and must be alike but for their sizes.
    """
    with no_grad():
        first, second = (_captured(model, features, samples) for samples in SAMPLES)
    if len(first.records) != len(second.records):
        raise Uncapturable("what forward does depends on the size of the batch")
    twins: dict[Any, Any] = dict(zip(first.inputs, second.inputs, strict=True))
    found = []
    for record, twin in zip(first.records, second.records, strict=True):
        found.append(_op(record, twin, twins))
        twins[record.result] = twin.result
    if first.output.shape != SAMPLES[:1] or second.output.shape != SAMPLES[1:]:
        raise Uncapturable(
            f"forward gives {first.output.shape} for {SAMPLES[0]} samples, wanted one number each"
        )
    return Forward(first.inputs[0], found, first.output)


def _captured(model: Module, features: Features, samples: int) -> Capture:
    keys = tuple(features.sparse)
    dense = np.zeros((samples, features.num_dense), np.float32)
    sparse = KeyedJaggedTensor(keys, np.empty(0, np.int64), np.zeros(len(keys) * samples + 1, np.int64))
    return fused(capture(model, (dense, sparse), ()))


def _op(record: Record, twin: Record, twins: Mapping[Any, Any]) -> Op:
    name = record.op.__name__
    keywords = {} if record.op in SHAPED else record.static
    same_keywords = keywords.keys() <= twin.static.keys() and all(
        _same(value, twin.static[key]) for key, value in keywords.items()
    )
    pairs = list(zip(record.args, twin.args, strict=True))
    if record.op is not twin.op or not same_keywords:
        raise Uncapturable(f"what {name} does depends on the size of the batch")
    if not all(_same(twins.get(a, a) if isinstance(a, Tensor | Sealed) else a, b) for a, b in pairs):
        raise Uncapturable(f"what {name} is given depends on the size of the batch")
    if record.result.dtype != np.float32:
        raise Uncapturable(f"{name} gives {record.result.dtype}, wanted float32")
    shape, axis = _shape(name, record.result.shape, twin.result.shape)
    return Op(record.op, record.args, record.static, record.result, shape, axis)


def _same(a: Any, b: Any) -> bool:
    if a is Drawn:
        raise Uncapturable("forward draws random numbers in evaluation mode")
    if isinstance(a, Sealed | Tensor | np.ndarray):
        return a is b
    return type(a) is type(b) and bool(a == b)


def _shape(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[tuple[int, ...], int | None]:
    """The shape without the axis of the samples, and that."""
    axes = [i for i, (m, n) in enumerate(zip(a, b, strict=False)) if m != n]
    if len(a) != len(b) or len(axes) > 1 or any((a[i], b[i]) != SAMPLES for i in axes):
        raise Uncapturable(f"{name} gives {a} for {SAMPLES[0]} samples and {b} for {SAMPLES[1]}")
    if not axes:
        return a, None
    return (*a[: axes[0]], *a[axes[0] + 1 :]), axes[0]
