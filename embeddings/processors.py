"""Feature processors: batches in, batches out, before the lookup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Pullback, Tensor, op
from tesserec.embeddings.jagged import Ids, JaggedError, KeyedJaggedTensor
from tesserec.embeddings.kernels.weights import position_grads, position_weights

Array = npt.NDArray[Any]


class PositionWeighted(Module):
    """KeyedJaggedTensor -> the same ids; the p-th id of a bag has the learned weight w[p] of its feature.

    max_length: {feature: number of weights}, 1 at first; ids of other features weigh 1. Weights that the
    batch has already are multiplied. A longer bag is a JaggedError; with `clamp` its further ids take the
    last weight.
    """

    def __init__(self, max_length: Mapping[str, int], *, clamp: bool = False):
        for feature, length in max_length.items():
            if length < 1:
                raise JaggedError(f"max_length of feature {feature!r} is {length}, wanted 1 or more")
        self.clamp = clamp
        self.weights = {
            feature: Tensor(np.ones(length, np.float32), requires_grad=True)
            for feature, length in max_length.items()
        }

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        bags = [self._offsets(kjt, feature) for feature in self.weights]
        weights: Tensor = _position_weights(*self.weights.values(), bags=bags, size=len(kjt.values))
        return kjt.with_weights(weights if kjt.weights is None else weights * kjt.weights)

    def _offsets(self, kjt: KeyedJaggedTensor, feature: str) -> Ids:
        """(bags + 1,) where the bags of a feature begin and end, among all ids of the batch."""
        if feature not in kjt.keys:
            raise KeyError(f"PositionWeighted: the batch has no key {feature!r}; it has {list(kjt.keys)}")
        starts, f = kjt.starts, kjt.keys.index(feature)
        offsets = kjt.offsets[starts[f] : starts[f + 1] + 1]
        lengths, wanted = np.diff(offsets), len(self.weights[feature])
        if not self.clamp and lengths.max(initial=0) > wanted:
            raise JaggedError(
                f"feature {feature!r}, bag {lengths.argmax()}: {lengths.max()} ids, but weights for {wanted} "
                "positions: raise max_length, cut the bags when the data is prepared, or pass clamp=True"
            )
        return offsets


@op
def _position_weights(*tables: Array, bags: Sequence[Ids], size: int) -> tuple[Array, Sequence[Pullback]]:
    """(size,) weights of all ids; table[p] for the p-th of each bag of its feature, else 1."""
    out = np.ones(size, np.float32)
    for table, offsets in zip(tables, bags, strict=True):
        position_weights(offsets, table, out)

    def pullback(offsets: Ids, table: Array, g: Array) -> Array:
        grad = np.zeros_like(table)
        position_grads(offsets, np.ascontiguousarray(g), grad)
        return grad

    return out, [partial(pullback, offsets, table) for table, offsets in zip(tables, bags, strict=True)]
