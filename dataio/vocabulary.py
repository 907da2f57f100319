"""Keys of 64 bits, counted in bounded memory, and the ids that the frequent ones get.

An integer is its own key; a text's key is its XXH64. No Python object per id: tens of millions of them cost 16 to 20
bytes each. (Two texts of one column share a key with probability n²/2⁶⁵: 3e-6 for ten million texts.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tesserec.dataio.kernels import hashing
from tesserec.dataio.kernels import table as kernels

Keys = npt.NDArray[np.int64]
MISSING = np.iinfo(np.int64).min  # the key of a null
_MAX_LOAD = 0.75


class KeyTable:
    """A map from 64-bit keys to non-zero 32-bit numbers: 12 bytes a slot, at most 3/4 of them used."""

    def __init__(self, expected: int = 0) -> None:
        self._make(int(expected / _MAX_LOAD) + 1024)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._keys.nbytes + self._values.nbytes

    def count(self, keys: Keys) -> None:
        """Add 1 to the number of every key."""
        self._add(keys, kernels.count)

    def number(self, keys: Keys) -> None:
        """Give each new key the next number: 1, 2, … in order of first appearance."""
        self._add(keys, kernels.number)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """(n,) keys → (n,) numbers, 0 for a key that is not there."""
        out = np.empty(len(keys), np.int64)
        kernels.find(keys, self._keys, self._values, out)
        return out

    def put(self, keys: Keys, values: npt.NDArray[np.uint32]) -> None:
        """Put new distinct keys and their non-zero numbers in; the table was made for as many."""
        kernels.place(keys, values, self._keys, self._values)
        self._used += len(keys)

    def entries(self) -> tuple[Keys, npt.NDArray[np.uint32]]:
        """All keys and their numbers, in no useful order."""
        used = self._values != 0
        return self._keys[used], self._values[used]

    def _make(self, capacity: int) -> None:
        self._keys = np.zeros(capacity, np.int64)
        self._values = np.zeros(capacity, np.uint32)
        self._limit = int(capacity * _MAX_LOAD)

    def _add(self, keys: Keys, kernel: Any) -> None:
        while True:
            taken, self._used = kernel(keys, self._keys, self._values, self._used, self._limit)
            if taken == len(keys):
                return
            keys = keys[taken:]
            old_keys, old_values = self._keys, self._values
            self._make(len(old_keys) * 2 if len(old_keys) < 1 << 22 else len(old_keys) * 3 // 2)
            kernels.place(old_keys, old_values, self._keys, self._values)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Known keys → ids 1 … size in order of falling count (ties by key); every other key → 0, the OOV id.

    `counts[i]` is how often id i + 1 was seen when fitted.
    """

    table: KeyTable
    counts: npt.NDArray[np.uint32]

    @classmethod
    def from_counts(cls, counted: KeyTable, *, min_count: int = 1, max_size: int | None = None) -> Vocabulary:
        """Keep keys seen at least `min_count` times, the `max_size` most frequent of them."""
        keys, counts = counted.entries()
        frequent = counts >= min_count
        keys, counts = keys[frequent], counts[frequent]
        order = np.lexsort((keys, ~counts))[:max_size]
        return cls.from_keys(keys[order], counts[order])

    @classmethod
    def from_keys(cls, keys: Keys, counts: npt.NDArray[np.uint32]) -> Vocabulary:
        """The vocabulary in which keys[i] has id i + 1."""
        table = KeyTable(expected=len(keys))
        table.put(keys, np.arange(1, len(keys) + 1, dtype=np.uint32))
        return cls(table, counts)

    def keys(self) -> Keys:
        """The key of id i + 1 at position i."""
        keys, ids = self.table.entries()
        ordered = np.empty_like(keys)
        ordered[ids.astype(np.int64) - 1] = keys
        return ordered


def text_keys(column: Any, seed: int = 0) -> Keys:
    """Arrow text → XXH64 of each as int64; the key of a null means nothing."""
    wide = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    if not (wide or pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
        column = column.cast(pa.string())
    _, offsets, data = column.buffers()
    out = np.zeros(len(column), np.uint64)
    if len(column):
        ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[column.offset :][: len(column) + 1]
        raw = np.frombuffer(data if data is not None else b"", np.uint8)
        hashing.hash_strings(raw, ends, np.uint64(seed), out)
    return out.view(np.int64)


def integer_hashes(values: npt.NDArray[np.int64], seed: int = 0) -> Keys:
    """(n,) integers → XXH64 of the eight bytes of each, as int64."""
    out = np.empty(len(values), np.uint64)
    hashing.hash_integers(values, np.uint64(seed), out)
    return out.view(np.int64)
