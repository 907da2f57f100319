"""Jagged (ragged) id features: one flat value buffer and one offset buffer, like an Arrow list column.

Layout, the same everywhere in this project: F keys by B samples, key-major. Bag `f * B + b` is
`values[offsets[f * B + b] : offsets[f * B + b + 1]]`, the ids of key f in sample b. A key may hold fewer bags
than there are samples, and say by inverse indices which bag each sample has: one user, many candidates.

Everything here is a frozen view: nothing is cached and nothing mutates. Constructors check what they are
given, so that no kernel has to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tesserec.autograd import ops
from tesserec.autograd.tensor import Tensor, as_tensor
from tesserec.embeddings.arrow import arrow_lists, column_bags, record_batch, weighted_bags
from tesserec.embeddings.bags import (
    SHOWN,
    Array,
    Ids,
    InvalidIdError,
    JaggedError,
    JaggedTensor,
    Weights,
    checked_ids,
    checked_offsets,
    checked_weights,
    numbers_of,
    offsets_of,
    same_batch,
    shown_bags,
    taken,
)
from tesserec.embeddings.kernels import jagged as kernels

__all__ = ["Ids", "InvalidIdError", "JaggedError", "JaggedTensor", "KeyedJaggedTensor", "Weights"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class KeyedJaggedTensor:
    """F keyed id lists over a batch of B samples.

    keys:     F distinct names, in bag order.
    values:   (L,) int64 or int32 ids; all bags, concatenated. Other integers are widened to int64.
    offsets:  (N + 1,) int64, non-decreasing, from 0 to L; N = F·B bags without `inverse`.
    weights:  (L,) float32 per-id weights, an array or a Tensor, which gets a gradient; None for all ones.
    inverse:  {key: (B,) integers}: sample b of `key` has its bag number inverse[key][b]. A key that is not
              here has B bags.
    num_bags: (F,) bags of each key; only to be given with `inverse`.
    """

    keys: tuple[str, ...]
    values: Ids
    offsets: Ids
    weights: Weights | None = None
    inverse: Mapping[str, Ids] = field(default_factory=dict)
    num_bags: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        keys = (self.keys,) if isinstance(self.keys, str) else tuple(self.keys)
        if len(set(keys)) < len(keys):
            raise JaggedError(f"keys are not distinct: {list(keys)}")
        values = checked_ids(self.values)
        offsets = checked_offsets(self.offsets, len(values))
        bags = len(offsets) - 1
        inverse, num_bags = dict(self.inverse), tuple(self.num_bags)
        if inverse or num_bags:
            inverse = _checked_inverse(keys, inverse, num_bags, bags)
        elif bags % len(keys) if keys else bags:
            raise JaggedError(
                f"{bags} bags are not a whole number of samples of {len(keys)} keys {list(keys)}"
            )
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "weights", checked_weights(self.weights, len(values)))
        object.__setattr__(self, "inverse", inverse)
        object.__setattr__(self, "num_bags", num_bags or (bags // max(len(keys), 1),) * len(keys))

    @classmethod
    def from_lengths(
        cls, keys: Sequence[str], values: npt.ArrayLike, lengths: npt.ArrayLike, weights: Any = None
    ) -> Self:
        """Bags of `lengths` (F*B,) or (F, B)."""
        return cls(tuple(keys), checked_ids(values), offsets_of(lengths), weights)

    @classmethod
    def from_dict(
        cls,
        bags: Mapping[str, JaggedTensor | Sequence[Sequence[int]]],
        inverse: Mapping[str, npt.ArrayLike] | None = None,
    ) -> Self:
        """{key: its bags, a JaggedTensor or lists of ids}. All have weights, or none has.

        inverse: see the class; the keys in it may have any number of bags.
        """
        held = {k: v if isinstance(v, JaggedTensor) else JaggedTensor.from_lists(v) for k, v in bags.items()}
        places = {key: np.asarray(index) for key, index in (inverse or {}).items()}
        same_batch({key: len(places.get(key, jagged)) for key, jagged in held.items()})
        return cls._joined(tuple(held), list(held.values()), places)

    @classmethod
    def from_dense(cls, ids: Mapping[str, npt.ArrayLike]) -> Self:
        """{key: (B,) ids}: one id per bag."""
        columns = {key: checked_ids(column, key) for key, column in ids.items()}
        same_batch({key: len(column) for key, column in columns.items()})
        values = _concatenated(list(columns.values()))
        return cls(tuple(columns), values, np.arange(len(values) + 1))

    @classmethod
    def from_arrow(cls, batch: Any, keys: Sequence[str], *, weighted: bool = False) -> Self:
        """Integer columns `keys` of an Arrow record batch or table: lists, or one id per row.

        A null list is an empty bag; a null id is an InvalidIdError. weighted: column "key.weights" beside
        each key holds the weights, in the same lists. One copy, that of joining the columns.
        """
        read = weighted_bags if weighted else column_bags
        return cls._joined(tuple(keys), [read(batch, key) for key in keys])

    @classmethod
    def concat(cls, parts: Sequence[KeyedJaggedTensor]) -> Self:
        """The keys of all parts, one part after the other; their batches are of one size."""
        same_batch(
            {f"part {i} ({', '.join(part.keys[:SHOWN])})": part.batch_size for i, part in enumerate(parts)}
        )
        inverse = {key: index for part in parts for key, index in part.inverse.items()}
        pieces = [part[key] for part in parts for key in part.keys]
        return cls._joined(tuple(key for part in parts for key in part.keys), pieces, inverse)

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
        shared = [key for key in keys if any(key in part.inverse for part in parts)]
        inverse = {key: _joined_inverse(parts, key) for key in shared}
        return cls._joined(keys, [part[key] for key in keys for part in parts], inverse)

    @classmethod
    def _joined(
        cls, keys: tuple[str, ...], pieces: Sequence[JaggedTensor], inverse: Mapping[str, Ids] | None = None
    ) -> Self:
        """Bags of all pieces, in order; as many pieces of each key."""
        weights = [piece.weights for piece in pieces if piece.weights is not None]
        if weights and len(weights) < len(pieces):
            raise JaggedError(
                f"{len(weights)} of {len(pieces)} parts have weights: give them to all or to none"
            )
        ends = np.cumsum([0, *(len(piece.values) for piece in pieces)])
        offsets = [np.zeros(1, np.int64)]
        offsets += [piece.offsets[1:] + end for piece, end in zip(pieces, ends[:-1], strict=True)]
        values = _concatenated([checked_ids(piece.values) for piece in pieces])
        num_bags: tuple[int, ...] = ()
        if inverse:
            each = len(pieces) // len(keys)
            num_bags = tuple(sum(map(len, pieces[f * each : (f + 1) * each])) for f in range(len(keys)))
        joined = _joined_weights(weights) if weights else None
        return cls(keys, values, np.concatenate(offsets), joined, inverse or {}, num_bags)

    @property
    def batch_size(self) -> int:
        """B; 0 without keys."""
        for index in self.inverse.values():
            return len(index)
        return self.num_bags[0] if self.keys else 0

    @property
    def lengths(self) -> Ids:
        """(N,) number of ids of each bag."""
        return np.diff(self.offsets)

    @property
    def starts(self) -> Ids:
        """(F + 1,) the first bag of each key, and N."""
        return np.cumsum((0, *self.num_bags))

    def __getitem__(self, key: str) -> JaggedTensor:
        """The bags of one key, as they are stored; ids and weights are views. KeyError if absent."""
        return self._bags(self._index(key))

    def to_dict(self) -> dict[str, JaggedTensor]:
        """{key: its bags}."""
        return {key: self[key] for key in self.keys}

    def expand(self) -> KeyedJaggedTensor:
        """The same samples without `inverse`: every key has B bags, those that samples share repeated."""
        if not self.inverse:
            return self
        pieces = [
            self[key].take(self.inverse[key]) if key in self.inverse else self[key] for key in self.keys
        ]
        return self._joined(self.keys, pieces)

    def split(self, sizes: Sequence[int]) -> list[KeyedJaggedTensor]:
        """Its keys in consecutive groups of `sizes`; ids and weights are views."""
        if min(sizes, default=0) < 0 or sum(sizes) != len(self.keys):
            raise JaggedError(
                f"split: sizes are {list(sizes)}, wanted a sum of {len(self.keys)}, the number of keys"
            )
        return [
            self._group(end - size, end) for size, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True)
        ]

    def permute(self, order: Sequence[int]) -> KeyedJaggedTensor:
        """Key `order[0]`, then key `order[1]`, …; keys may be left out, but not repeated."""
        if not set(order) <= set(range(len(self.keys))):
            raise JaggedError(
                f"permute: order is {list(order)}, wanted positions from 0 to {len(self.keys) - 1}"
            )
        keys = tuple(self.keys[f] for f in order)
        return self._joined(keys, [self._bags(f) for f in order], self._inverse_of(keys))

    def select(self, lo: int, hi: int) -> KeyedJaggedTensor:
        """Samples lo … hi-1 of every key: one copy of their ids. Of shared bags, only those they have."""
        batch = self.batch_size
        if not 0 <= lo <= hi <= batch:
            raise JaggedError(f"select: samples {lo} to {hi}, wanted 0 ≤ lo ≤ hi ≤ {batch}")
        if hi - lo == batch:
            return self
        if self.inverse:
            return self._select_shared(lo, hi)
        offsets = np.empty(len(self.keys) * (hi - lo) + 1, np.int64)
        kernels.select_offsets(self.offsets, batch, lo, hi, offsets)
        weights: Any = self.weights
        if isinstance(weights, Tensor):
            weights = taken(weights, self._select(np.arange(len(weights)), lo, offsets))
        elif weights is not None:
            weights = self._select(weights, lo, offsets)
        return KeyedJaggedTensor(self.keys, self._select(self.values, lo, offsets), offsets, weights)

    def compact(self) -> KeyedJaggedTensor:
        """The same samples, without the shared bags that none of them has."""
        counts = [np.bincount(index, minlength=len(self[key])) for key, index in self.inverse.items()]
        if all(count.all() for count in counts):
            return self
        return self._select_shared(0, self.batch_size)

    def with_weights(self, weights: Any) -> KeyedJaggedTensor:
        """The same ids with other weights: (L,) float32, an array or a Tensor."""
        return KeyedJaggedTensor(self.keys, self.values, self.offsets, weights, self.inverse, self.num_bags)

    def to_arrow(self) -> Any:
        """Record batch: one list column per key, and "key.weights" of list<float> if weighted."""
        columns: dict[str, Any] = {}
        for key, jagged in self.expand().to_dict().items():
            columns[key] = arrow_lists(jagged.offsets, jagged.values)
            if jagged.weights is not None:
                columns[f"{key}.weights"] = arrow_lists(jagged.offsets, numbers_of(jagged.weights))
        return record_batch(columns)

    def _select(self, values: Array, lo: int, offsets: Ids) -> Array:
        out = np.empty(offsets[-1], values.dtype)
        if len(offsets) > 1:
            kernels.select_values(values, self.offsets, self.batch_size, lo, offsets, out)
        return out

    def _select_shared(self, lo: int, hi: int) -> KeyedJaggedTensor:
        pieces, inverse = [], {}
        for key, bags in self.to_dict().items():
            if key in self.inverse:
                kept, inverse[key] = np.unique(self.inverse[key][lo:hi], return_inverse=True)
                pieces.append(bags.take(kept))
            else:
                pieces.append(bags.slice(lo, hi))
        return self._joined(self.keys, pieces, inverse)

    def _index(self, key: str) -> int:
        try:
            return self.keys.index(key)
        except ValueError:
            raise KeyError(f"no key {key!r}; have {list(self.keys)}") from None

    def _bags(self, first: int, last: int | None = None) -> JaggedTensor:
        """The bags of key `first`, or of keys first … last-1."""
        lo = sum(self.num_bags[:first])
        hi = lo + sum(self.num_bags[first : first + 1 if last is None else last])
        offsets = self.offsets[lo : hi + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        weights = None if self.weights is None else self.weights[begin:end]
        return JaggedTensor(self.values[begin:end], offsets - begin, weights)

    def _group(self, first: int, last: int) -> KeyedJaggedTensor:
        bags, keys = self._bags(first, last), self.keys[first:last]
        inverse = self._inverse_of(keys)
        num_bags = self.num_bags[first:last] if inverse else ()
        return KeyedJaggedTensor(keys, bags.values, bags.offsets, bags.weights, inverse, num_bags)

    def _inverse_of(self, keys: Sequence[str]) -> dict[str, Ids]:
        return {key: index for key, index in self.inverse.items() if key in keys}

    def __repr__(self) -> str:
        head = f"KeyedJaggedTensor({len(self.keys)} keys × {self.batch_size} samples, {len(self.values)} ids"
        lines = [f"\n  {key}{self._shared(key)}: {shown_bags(self[key])}" for key in self.keys[:SHOWN]]
        more = f"\n  … {len(self.keys) - SHOWN} more keys" if len(self.keys) > SHOWN else ""
        return head + ", weighted" * (self.weights is not None) + "".join(lines) + more + ")"

    def _shared(self, key: str) -> str:
        return f" ({len(self[key])} shared bags)" if key in self.inverse else ""


def _checked_inverse(
    keys: tuple[str, ...], inverse: Mapping[str, Any], num_bags: tuple[int, ...], bags: int
) -> dict[str, Ids]:
    """`inverse` as int64, if it, `num_bags` and the number of bags fit together."""
    if len(num_bags) != len(keys) or sum(num_bags) != bags or min(num_bags, default=0) < 0:
        raise JaggedError(
            f"num_bags are {num_bags}, wanted one for each of {len(keys)} keys, in all the offsets' {bags}"
        )
    held = dict(zip(keys, num_bags, strict=True))
    checked = {}
    for key, given in inverse.items():
        index = np.asarray(given)
        if key not in held:
            raise JaggedError(f"inverse has {key!r}, which is no key; have {list(keys)}")
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise JaggedError(
                f"inverse of {key!r} is {index.dtype} {index.shape}, wanted integers (samples,)"
            )
        if index.size and not (index.min() >= 0 and index.max() < held[key]):
            raise JaggedError(
                f"inverse of {key!r} reaches from {index.min()} to {index.max()}, "
                f"wanted 0 to {held[key] - 1}, the numbers of its bags"
            )
        checked[key] = np.ascontiguousarray(index, np.int64)
    same_batch({key: len(checked.get(key, range(count))) for key, count in held.items()})
    return checked


def _joined_inverse(parts: Sequence[KeyedJaggedTensor], key: str) -> Ids:
    """Which bag of `key` each sample has when the bags of all parts stand one part after the other."""
    firsts = np.cumsum([0, *(len(part[key]) for part in parts)])
    indices = [part.inverse.get(key, np.arange(part.batch_size)) for part in parts]
    return np.concatenate([index + first for index, first in zip(indices, firsts[:-1], strict=True)])


def _joined_weights(weights: Sequence[Any]) -> Any:
    if any(isinstance(w, Tensor) for w in weights):
        return ops.concat(*(as_tensor(w) for w in weights), axis=0)
    return np.concatenate(weights)


def _concatenated(arrays: Sequence[Ids]) -> Ids:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)
