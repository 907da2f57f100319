"""Jagged (ragged) id features: one flat value buffer and one offset buffer, like an Arrow list column.

Layout, the same everywhere in this project: F keys by B samples, key-major. Bag `f * B + b` is
`values[offsets[f * B + b] : offsets[f * B + b + 1]]`, the ids of key f in sample b.

Everything here is a frozen view: nothing is cached and nothing mutates. Constructors check what they are
given, so that no kernel has to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.autograd.tensor import Pullback, Tensor, op
from tesserec.embeddings.kernels import jagged as kernels

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]

_SHOWN = 6  # keys or bags in a repr


class JaggedError(ValueError):
    """Keys, values, offsets, lengths or weights that do not fit together."""


class InvalidIdError(ValueError):
    """Something that is no row of its table; the message names feature, sample, id and what was wanted."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class JaggedTensor:
    """B bags of one feature.

    values:  (L,) ids int64, or (L, D) vectors, an array or a Tensor; all bags, concatenated.
    offsets: (B + 1,) int64, non-decreasing, from 0 to L.
    weights: (L,) float32 per-id weights, or None for all ones.
    """

    values: Any
    offsets: Ids
    weights: Weights | None = None

    def __post_init__(self) -> None:
        values = self.values if isinstance(self.values, Tensor) else np.asarray(self.values)
        if values.ndim == 0:
            raise JaggedError("values has no axis, wanted (L,) or (L, D)")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", _checked_offsets(self.offsets, len(values)))
        object.__setattr__(self, "weights", _checked_weights(self.weights, len(values)))

    @classmethod
    def from_lengths(cls, values: Any, lengths: npt.ArrayLike, weights: Any = None) -> Self:
        """Bags of `lengths` (B,)."""
        return cls(values, _offsets_of(lengths), weights)

    @classmethod
    def from_lists(cls, bags: Sequence[Sequence[int]], weights: Any = None) -> Self:
        """One bag per list of ids; for small data."""
        ids = [i for bag in bags for i in bag]
        return cls.from_lengths(_checked_ids(ids), [len(bag) for bag in bags], weights)

    @property
    def lengths(self) -> Ids:
        """(B,) number of values of each bag."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def to_lists(self) -> list[list[Any]]:
        """The bags as lists; for small data."""
        rows = (self.values.data if isinstance(self.values, Tensor) else self.values).tolist()
        return [rows[lo:hi] for lo, hi in pairwise(self.offsets.tolist())]

    def to_padded_dense(self, length: int | None = None, padding: float = 0) -> Any:
        """(B, length) or (B, length, D): each bag from the left, cut at `length` or filled with `padding`.

        A Tensor where `values` is one. length: that of the longest bag unless given.
        """
        lengths = self.lengths
        length = int(lengths.max(initial=0)) if length is None else length
        if length < 0:
            raise JaggedError(f"to_padded_dense: length is {length}, wanted 0 or more")
        taken = np.arange(length) < lengths[:, None]
        position = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], lengths)
        kept = position < length
        if isinstance(self.values, Tensor):
            return _padded_tensor(self.values, kept=kept, taken=taken, padding=padding)
        return _padded(self.values, kept=kept, taken=taken, padding=padding)[0]

    def __repr__(self) -> str:
        shape = f"{len(self)} bags, {len(self.values)} values"
        if self.values.ndim > 1:
            return f"JaggedTensor({shape} of width {self.values.shape[1]})"
        return f"JaggedTensor({shape}: {_shown_bags(self.values, self.offsets)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class KeyedJaggedTensor:
    """F keyed id lists over a batch of B samples.

    keys:    F distinct names, in bag order.
    values:  (L,) int64 ids; all bags, concatenated. Narrower integers are widened.
    offsets: (F*B + 1,) int64, non-decreasing, from 0 to L.
    weights: (L,) float32 per-id weights, or None for all ones.
    """

    keys: tuple[str, ...]
    values: Ids
    offsets: Ids
    weights: Weights | None = None

    def __post_init__(self) -> None:
        keys = (self.keys,) if isinstance(self.keys, str) else tuple(self.keys)
        if len(set(keys)) < len(keys):
            raise JaggedError(f"keys are not distinct: {list(keys)}")
        values = _checked_ids(self.values)
        offsets = _checked_offsets(self.offsets, len(values))
        bags = len(offsets) - 1
        if bags % len(keys) if keys else bags:
            raise JaggedError(
                f"{bags} bags are not a whole number of samples of {len(keys)} keys {list(keys)}"
            )
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "weights", _checked_weights(self.weights, len(values)))

    @classmethod
    def from_lengths(
        cls, keys: Sequence[str], values: npt.ArrayLike, lengths: npt.ArrayLike, weights: Any = None
    ) -> Self:
        """Bags of `lengths` (F*B,) or (F, B)."""
        return cls(tuple(keys), _checked_ids(values), _offsets_of(lengths), weights)

    @classmethod
    def from_dict(cls, bags: Mapping[str, JaggedTensor | Sequence[Sequence[int]]]) -> Self:
        """{key: its B bags, a JaggedTensor or lists of ids}. All have weights, or none has."""
        held = {k: v if isinstance(v, JaggedTensor) else JaggedTensor.from_lists(v) for k, v in bags.items()}
        _same_batch({key: len(jagged) for key, jagged in held.items()})
        return cls._joined(tuple(held), list(held.values()))

    @classmethod
    def from_dense(cls, ids: Mapping[str, npt.ArrayLike]) -> Self:
        """{key: (B,) ids}: one id per bag."""
        columns = {key: _checked_ids(column, key) for key, column in ids.items()}
        _same_batch({key: len(column) for key, column in columns.items()})
        values = _concatenated(list(columns.values()))
        return cls(tuple(columns), values, np.arange(len(values) + 1))

    @classmethod
    def from_arrow(cls, batch: Any, keys: Sequence[str], *, weighted: bool = False) -> Self:
        """Integer columns `keys` of an Arrow record batch or table: lists, or one id per row.

        A null list is an empty bag; a null id is an InvalidIdError. weighted: column "key.weights" beside
        each key holds the weights, in the same lists. One copy, that of joining the columns.
        """
        columns = [_arrow_bags(batch, key) for key in keys]
        weights = [
            _arrow_weights(batch, key, jagged) for key, jagged in zip(keys, columns, strict=True) if weighted
        ]
        return cls._joined(tuple(keys), weights or columns)

    @classmethod
    def concat(cls, parts: Sequence[KeyedJaggedTensor]) -> Self:
        """The keys of all parts, one part after the other; their batches are of one size."""
        _same_batch(
            {f"part {i} ({', '.join(part.keys[:_SHOWN])})": part.batch_size for i, part in enumerate(parts)}
        )
        keys = tuple(key for part in parts for key in part.keys)
        return cls._joined(keys, [part._all() for part in parts])

    @classmethod
    def concat_batches(cls, parts: Sequence[KeyedJaggedTensor]) -> Self:
        """The samples of all parts, one part after the other; their keys are the same, in one order."""
        if not parts:
            raise JaggedError("concat_batches needs at least one part")
        keys = parts[0].keys
        for i, part in enumerate(parts):
            if part.keys != keys:
                raise JaggedError(
                    f"part {i} has keys {list(part.keys)}, wanted those of part 0, {list(keys)}"
                )
        return cls._joined(keys, [part[key] for key in keys for part in parts])

    @classmethod
    def _joined(cls, keys: tuple[str, ...], pieces: Sequence[JaggedTensor]) -> Self:
        """Bags of all pieces, in order."""
        weights = [piece.weights for piece in pieces if piece.weights is not None]
        if weights and len(weights) < len(pieces):
            raise JaggedError(
                f"{len(weights)} of {len(pieces)} parts have weights: give them to all or to none"
            )
        ends = np.cumsum([0, *(len(piece.values) for piece in pieces)])
        offsets = [np.zeros(1, np.int64)]
        offsets += [piece.offsets[1:] + end for piece, end in zip(pieces, ends[:-1], strict=True)]
        values = _concatenated([_checked_ids(piece.values) for piece in pieces])
        return cls(keys, values, np.concatenate(offsets), np.concatenate(weights) if weights else None)

    @property
    def batch_size(self) -> int:
        """B; 0 without keys."""
        return (len(self.offsets) - 1) // max(len(self.keys), 1)

    @property
    def lengths(self) -> Ids:
        """(F*B,) number of ids of each bag."""
        return np.diff(self.offsets)

    def __getitem__(self, key: str) -> JaggedTensor:
        """The bags of one key; ids and weights are views. KeyError if absent."""
        return self._bags(self._index(key), 1)

    def to_dict(self) -> dict[str, JaggedTensor]:
        """{key: its bags}."""
        return {key: self[key] for key in self.keys}

    def split(self, sizes: Sequence[int]) -> list[KeyedJaggedTensor]:
        """Its keys in consecutive groups of `sizes`; ids and weights are views."""
        if min(sizes, default=0) < 0 or sum(sizes) != len(self.keys):
            raise JaggedError(
                f"split: sizes are {list(sizes)}, wanted a sum of {len(self.keys)}, the number of keys"
            )
        return [
            self._group(end - size, size) for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True)
        ]

    def permute(self, order: Sequence[int]) -> KeyedJaggedTensor:
        """Key `order[0]`, then key `order[1]`, …; keys may be left out, but not repeated."""
        if not set(order) <= set(range(len(self.keys))):
            raise JaggedError(
                f"permute: order is {list(order)}, wanted positions from 0 to {len(self.keys) - 1}"
            )
        return self._joined(tuple(self.keys[f] for f in order), [self._bags(f, 1) for f in order])

    def select(self, lo: int, hi: int) -> KeyedJaggedTensor:
        """Samples lo … hi-1 of every key: one copy of their ids."""
        batch = self.batch_size
        if not 0 <= lo <= hi <= batch:
            raise JaggedError(f"select: samples {lo} to {hi}, wanted 0 ≤ lo ≤ hi ≤ {batch}")
        if hi - lo == batch:
            return self
        offsets = np.empty(len(self.keys) * (hi - lo) + 1, np.int64)
        kernels.select_offsets(self.offsets, batch, lo, hi, offsets)
        weights = None if self.weights is None else self._select(self.weights, lo, offsets)
        return KeyedJaggedTensor(self.keys, self._select(self.values, lo, offsets), offsets, weights)

    def to_arrow(self) -> Any:
        """Record batch: one list<int64> column per key, and "key.weights" of list<float> if weighted."""
        columns: dict[str, Any] = {}
        for key, jagged in self.to_dict().items():
            columns[key] = _arrow_lists(jagged.offsets, jagged.values)
            if jagged.weights is not None:
                columns[f"{key}.weights"] = _arrow_lists(jagged.offsets, jagged.weights)
        return pa.RecordBatch.from_pydict(columns)

    def _select(self, values: npt.NDArray[Any], lo: int, offsets: Ids) -> npt.NDArray[Any]:
        out = np.empty(offsets[-1], values.dtype)
        if len(offsets) > 1:
            kernels.select_values(values, self.offsets, self.batch_size, lo, offsets, out)
        return out

    def _index(self, key: str) -> int:
        try:
            return self.keys.index(key)
        except ValueError:
            raise KeyError(f"no key {key!r}; have {list(self.keys)}") from None

    def _bags(self, first: int, count: int) -> JaggedTensor:
        """The bags of `count` keys from `first` on."""
        batch = self.batch_size
        offsets = self.offsets[first * batch : (first + count) * batch + 1]
        lo, hi = offsets[0], offsets[-1]
        weights = None if self.weights is None else self.weights[lo:hi]
        return JaggedTensor(self.values[lo:hi], offsets - lo, weights)

    def _all(self) -> JaggedTensor:
        return JaggedTensor(self.values, self.offsets, self.weights)

    def _group(self, first: int, count: int) -> KeyedJaggedTensor:
        bags = self._bags(first, count)
        return KeyedJaggedTensor(self.keys[first : first + count], bags.values, bags.offsets, bags.weights)

    def __repr__(self) -> str:
        head = f"KeyedJaggedTensor({len(self.keys)} keys × {self.batch_size} samples, {len(self.values)} ids"
        lines = [
            f"\n  {key}: {_shown_bags(self[key].values, self[key].offsets)}" for key in self.keys[:_SHOWN]
        ]
        more = f"\n  … {len(self.keys) - _SHOWN} more keys" if len(self.keys) > _SHOWN else ""
        return head + ", weighted" * (self.weights is not None) + "".join(lines) + more + ")"


def _checked_ids(values: npt.ArrayLike, key: str | None = None) -> Ids:
    """`values` as contiguous int64; no copy where they are that already."""
    array = np.asarray(values)
    what = "ids" if key is None else f"ids of feature {key!r}"
    if array.ndim != 1:
        raise JaggedError(f"{what} have shape {array.shape}, wanted one axis (L,)")
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        raise InvalidIdError(
            f"{what} are {array.dtype} (the first is {array[0]!r}), wanted integers up to int64: "
            "encode or cast them when the data is prepared"
        )
    return np.ascontiguousarray(array, np.int64)


def _checked_offsets(offsets: npt.ArrayLike, size: int) -> Ids:
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


def _offsets_of(lengths: npt.ArrayLike) -> Ids:
    array = np.asarray(lengths).reshape(-1)
    if array.size and array.dtype.kind not in "iu":
        raise JaggedError(f"lengths are {array.dtype}, wanted integers")
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(array, out=offsets[1:], dtype=np.int64)
    return offsets


def _checked_weights(weights: npt.ArrayLike | None, size: int) -> Weights | None:
    if weights is None:
        return None
    array = np.ascontiguousarray(weights, np.float32)
    if array.shape != (size,):
        raise JaggedError(f"weights have shape {array.shape}, wanted ({size},): one per value")
    return array


def _same_batch(sizes: Mapping[str, int]) -> None:
    """JaggedError unless all sizes agree."""
    (first, wanted), *others = list(sizes.items()) or [("", 0)]
    for name, size in others:
        if size != wanted:
            raise JaggedError(f"{name!r} has {size} samples, but {first!r} has {wanted}")


def _concatenated(arrays: Sequence[Ids]) -> Ids:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)


def _padded(
    values: npt.NDArray[Any], *, kept: npt.NDArray[np.bool_], taken: npt.NDArray[np.bool_], padding: float
) -> tuple[npt.NDArray[Any], tuple[Pullback]]:
    """out[taken] = values[kept], `padding` elsewhere."""
    out = np.full(taken.shape + values.shape[1:], padding, values.dtype)
    out[taken] = values[kept]

    def pullback(g: npt.NDArray[Any]) -> npt.NDArray[Any]:
        grad = np.zeros_like(values)
        grad[kept] = g[taken]
        return grad

    return out, (pullback,)


_padded_tensor = op(_padded)


def _shown_bags(values: npt.NDArray[Any], offsets: Ids) -> str:
    """[7, 3] [] [2, 5] …"""
    bags = [values[lo:hi] for lo, hi in pairwise(offsets[: _SHOWN + 1].tolist())]
    shown = [np.array2string(bag, separator=", ", threshold=_SHOWN, edgeitems=2) for bag in bags]
    return " ".join(shown) + (" …" if len(offsets) > _SHOWN + 1 else "")


def _arrow_column(batch: Any, name: str) -> Any:
    """The one array of column `name`."""
    if name not in batch.schema.names:
        raise JaggedError(f"no column {name!r}; have {batch.schema.names}")
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _arrow_bags(batch: Any, key: str) -> JaggedTensor:
    """The bags of an integer column."""
    items, offsets = _arrow_items(_arrow_column(batch, key))
    if items.null_count and len(items) > 0:
        at = int(np.argmax(items.is_null().to_numpy(zero_copy_only=False)))
        sample = int(np.searchsorted(offsets, at, side="right")) - 1
        raise InvalidIdError(
            f"feature {key!r}, sample {sample}: the id is null, wanted an integer: "
            "fill or drop nulls when the data is prepared"
        )
    if not (pa.types.is_integer(items.type) or pa.types.is_null(items.type)):
        raise InvalidIdError(
            f"feature {key!r} is a column of {items.type}, wanted integers or lists of integers"
        )
    try:
        ids = items.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InvalidIdError(f"feature {key!r}: an id does not fit in int64: {error}") from None
    return JaggedTensor(ids.to_numpy(zero_copy_only=False), offsets)


def _arrow_weights(batch: Any, key: str, bags: JaggedTensor) -> JaggedTensor:
    """`bags` with the weights of column "key.weights"."""
    items, offsets = _arrow_items(_arrow_column(batch, f"{key}.weights"))
    if items.null_count or not np.array_equal(offsets, bags.offsets):
        raise JaggedError(
            f"column '{key}.weights' has nulls, or lists of other lengths than {key!r}: wanted one per id"
        )
    return JaggedTensor(bags.values, bags.offsets, items.to_numpy(zero_copy_only=False))


def _arrow_items(column: Any) -> tuple[Any, Ids]:
    """(all items, offsets of the rows) of a list column; of any other, each item is a row."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return column, np.arange(len(column) + 1)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return column.flatten(), _offsets_of(lengths.to_numpy(zero_copy_only=False))


def _arrow_lists(offsets: Ids, values: npt.NDArray[Any]) -> Any:
    large = len(values) > np.iinfo(np.int32).max
    lists = pa.LargeListArray if large else pa.ListArray
    return lists.from_arrays(pa.array(offsets.astype(np.int64 if large else np.int32)), pa.array(values))
