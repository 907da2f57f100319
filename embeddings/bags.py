"""JaggedTensor: the bags of one feature, one flat buffer and the offsets that cut it. And the checks of all
jagged data, so that no kernel has to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tesserec.autograd import ops
from tesserec.autograd.tensor import Pullback, Tensor, op
from tesserec.embeddings.kernels import jagged as kernels

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]  # or int32 where ids are meant; offsets are always int64
Weights = npt.NDArray[np.float32] | Tensor

SHOWN = 6  # keys or bags in a repr


class JaggedError(ValueError):
    """Keys, values, offsets, lengths, weights or inverse indices that do not fit together."""


class InvalidIdError(ValueError):
    """Something that is no row of its table; the message names feature, sample, id and what was wanted."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class JaggedTensor:
    """B bags of one feature.

    values:  (L,) ids int64 or int32, or (L, D) vectors, an array or a Tensor; all bags, concatenated.
    offsets: (B + 1,) int64, non-decreasing, from 0 to L.
    weights: (L,) float32 per-id weights, an array or a Tensor, or None for all ones.
    """

    values: Any
    offsets: Ids
    weights: Weights | None = None

    def __post_init__(self) -> None:
        values = self.values if isinstance(self.values, Tensor) else np.asarray(self.values)
        if values.ndim == 0:
            raise JaggedError("values has no axis, wanted (L,) or (L, D)")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", checked_offsets(self.offsets, len(values)))
        object.__setattr__(self, "weights", checked_weights(self.weights, len(values)))

    @classmethod
    def from_lengths(cls, values: Any, lengths: npt.ArrayLike, weights: Any = None) -> Self:
        """Bags of `lengths` (B,)."""
        return cls(values, offsets_of(lengths), weights)

    @classmethod
    def from_lists(cls, bags: Sequence[Sequence[int]], weights: Any = None) -> Self:
        """One bag per list of ids; for small data."""
        ids = [i for bag in bags for i in bag]
        return cls.from_lengths(checked_ids(ids), [len(bag) for bag in bags], weights)

    @property
    def lengths(self) -> Ids:
        """(B,) number of values of each bag."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def slice(self, lo: int, hi: int) -> JaggedTensor:
        """Bags lo … hi-1; values and weights are views."""
        offsets = self.offsets[lo : hi + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        weights = None if self.weights is None else self.weights[first:last]
        return JaggedTensor(self.values[first:last], offsets - first, weights)

    def take(self, bags: npt.NDArray[np.integer[Any]]) -> JaggedTensor:
        """Bag `bags[0]`, then bag `bags[1]`, …; (M,) numbers of bags, which may be repeated or left out."""
        lengths = self.lengths[bags]
        offsets = offsets_of(lengths)
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[bags] - offsets[:-1], lengths)
        return JaggedTensor(taken(self.values, index), offsets, taken(self.weights, index))

    def to_lists(self) -> list[list[Any]]:
        """The bags as lists; for small data."""
        rows = numbers_of(self.values).tolist()
        return [rows[lo:hi] for lo, hi in pairwise(self.offsets.tolist())]

    def to_padded_dense(self, length: int | None = None, padding: float = 0) -> Any:
        """(B, length) or (B, length, D): each bag from the left, cut at `length` or filled with `padding`.

        A Tensor where `values` is one. length: that of the longest bag unless given.
        """
        lengths = self.lengths
        length = int(lengths.max(initial=0)) if length is None else length
        if length < 0:
            raise JaggedError(f"to_padded_dense: length is {length}, wanted 0 or more")
        filled = np.arange(length) < lengths[:, None]
        position = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], lengths)
        kept = position < length
        if isinstance(self.values, Tensor):
            return _padded_tensor(self.values, kept=kept, filled=filled, padding=padding)
        return _padded(self.values, kept=kept, filled=filled, padding=padding)[0]

    def __repr__(self) -> str:
        shape = f"{len(self)} bags, {len(self.values)} values"
        if self.values.ndim > 1:
            return f"JaggedTensor({shape} of width {self.values.shape[1]})"
        return f"JaggedTensor({shape}: {shown_bags(self)})"


def checked_ids(values: npt.ArrayLike, key: str | None = None) -> Ids:
    """`values` as contiguous int64 or int32; no copy where they are that already."""
    array = np.asarray(values)
    what = "ids" if key is None else f"ids of feature {key!r}"
    if array.ndim != 1:
        raise JaggedError(f"{what} have shape {array.shape}, wanted one axis (L,)")
    if array.dtype == np.int32:
        return np.ascontiguousarray(array)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        raise InvalidIdError(
            f"{what} are {array.dtype} (the first is {array[0]!r}), wanted integers up to int64: "
            "encode or cast them when the data is prepared"
        )
    return np.ascontiguousarray(array, np.int64)


def checked_offsets(offsets: npt.ArrayLike, size: int) -> Ids:
    """`offsets` as contiguous int64 that rise from 0 to `size`."""
    array = np.asarray(offsets)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise JaggedError(f"offsets are {array.dtype} {array.shape}, wanted int64 (bags + 1,)")
    array = np.ascontiguousarray(array, np.int64)
    if len(array) == 0 or array[0] != 0 or array[-1] != size:
        ends = f"from {array[0]} to {array[-1]}" if len(array) else "nowhere"
        raise JaggedError(f"offsets run {ends}, wanted from 0 to {size}, the number of values")
    at = kernels.first_decrease(array)
    if at >= 0:
        raise JaggedError(
            f"offsets fall from {array[at]} to {array[at + 1]} after bag {at}, wanted no decrease"
        )
    return array


def checked_weights(weights: Any, size: int) -> Weights | None:
    """`weights` as (size,) float32; a Tensor stays one."""
    if weights is None:
        return None
    if isinstance(weights, Tensor):
        if weights.dtype != np.float32:
            raise JaggedError(f"weights are a Tensor of {weights.dtype}, wanted float32")
        if not weights.data.flags.c_contiguous:
            weights = weights * 1.0  # a copy, through which the gradient flows
    else:
        weights = np.ascontiguousarray(weights, np.float32)
    if weights.shape != (size,):
        raise JaggedError(f"weights have shape {weights.shape}, wanted ({size},): one per value")
    return weights  # type: ignore[no-any-return]


def offsets_of(lengths: npt.ArrayLike) -> Ids:
    """(N,) lengths -> (N + 1,) offsets."""
    array = np.asarray(lengths).reshape(-1)
    if array.size and array.dtype.kind not in "iu":
        raise JaggedError(f"lengths are {array.dtype}, wanted integers")
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(array, out=offsets[1:], dtype=np.int64)
    return offsets


def same_batch(sizes: Mapping[str, int]) -> None:
    """JaggedError unless all sizes agree."""
    (first, wanted), *others = list(sizes.items()) or [("", 0)]
    for name, size in others:
        if size != wanted:
            raise JaggedError(f"{name!r} has {size} samples, but {first!r} has {wanted}")


def taken(values: Any, index: Ids) -> Any:
    """values[index], of an array or a Tensor; None of None."""
    if isinstance(values, Tensor):
        return ops.gather(values, index=index)
    return None if values is None else values[index]


def numbers_of(values: Any) -> Array:
    """The array behind an array or a Tensor."""
    array: Array = values.data if isinstance(values, Tensor) else values
    return array


def _padded(
    values: Array, *, kept: npt.NDArray[np.bool_], filled: npt.NDArray[np.bool_], padding: float
) -> tuple[Array, tuple[Pullback]]:
    """out[filled] = values[kept], `padding` elsewhere."""
    out = np.full(filled.shape + values.shape[1:], padding, values.dtype)
    out[filled] = values[kept]

    def pullback(g: Array) -> Array:
        grad = np.zeros_like(values)
        grad[kept] = g[filled]
        return grad

    return out, (pullback,)


_padded_tensor = op(_padded)


def shown_bags(bags: JaggedTensor) -> str:
    """[7, 3] [] [2, 5] …"""
    cuts = pairwise(bags.offsets[: SHOWN + 1].tolist())
    shown = [
        np.array2string(bags.values[lo:hi], separator=", ", threshold=SHOWN, edgeitems=2) for lo, hi in cuts
    ]
    return " ".join(shown) + (" …" if len(bags) > SHOWN else "")
