"""Keys of 64 bits, counted in bounded memory, and the ids that the frequent ones get.

An integer is its own key; a text's key is its XXH64. No Python object per id: tens of millions of ids cost 16
to 20 bytes each. (Two texts of one column share a key with probability n²/2⁶⁵: 3e-6 for ten million texts.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tesserec.dataio.columns import Keys, Mask
from tesserec.dataio.kernels import table as kernels

_MAX_LOAD = 0.75


class KeyTable:
    """A map from 64-bit keys to non-zero 32-bit numbers: 12 bytes a slot, at most 3/4 of them used."""

    def __init__(self, expected: int = 0) -> None:
        self._make(int(expected / _MAX_LOAD) + 1024)
        self._used = 0

    @classmethod
    def over(cls, keys: Keys, numbers: npt.NDArray[np.uint32], used: int) -> KeyTable:
        """The table with these `slots`, not copied, of which so many are used. Nothing can be added to it."""
        table = cls.__new__(cls)
        table._keys, table._values, table._used, table._limit = keys, numbers, used, 0
        return table

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._keys.nbytes + self._values.nbytes

    @property
    def slots(self) -> tuple[Keys, npt.NDArray[np.uint32]]:
        """The keys and the numbers of all slots, for kernels; views, good until the table grows."""
        return self._keys, self._values

    def count(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Add 1 to the number of every key → where in `keys` the new ones first stand."""
        return self._add(keys, kernels.count)

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

    def _add(self, keys: Keys, kernel: Any) -> npt.NDArray[np.int64]:
        new = np.empty(len(keys), np.int64)
        done, before = 0, self._used
        while True:
            room = (self._keys, self._values, self._used, self._limit)
            done, self._used = kernel(keys, done, *room, new[self._used - before :])
            if done == len(keys):
                return new[: self._used - before]
            self._grow()

    def _grow(self) -> None:
        old_keys, old_values = self._keys, self._values
        self._make(len(old_keys) * 2 if len(old_keys) < 1 << 22 else len(old_keys) * 3 // 2)
        kernels.place(old_keys, old_values, self._keys, self._values)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Known keys → ids 1 … size in order of falling count (ties by key); every other key → 0, the OOV id.

    `file` (Arrow IPC) holds one row per known id, in order: key int64, count uint32, and the token itself
    when keys are hashes of text. It alone makes the vocabulary; tokens and counts stay on the disk until
    asked for.
    """

    table: KeyTable
    file: Path

    @classmethod
    def open(cls, file: Path) -> Vocabulary:
        """The vocabulary that `file` holds."""
        return cls.from_keys(read_arrow(file)["key"].combine_chunks().to_numpy(), file)

    @classmethod
    def from_keys(cls, keys: Keys, file: Path) -> Vocabulary:
        """The vocabulary in which keys[i] has id i + 1."""
        table = KeyTable(expected=len(keys))
        table.put(keys, np.arange(1, len(keys) + 1, dtype=np.uint32))
        return cls(table, file)

    def __len__(self) -> int:
        return len(self.table)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """(n,) keys → (n,) ids."""
        return self.table.find(keys)

    def rows(self) -> pa.Table:
        """One row per known id: key, count and (of texts) token; mapped from the disk."""
        return read_arrow(self.file)


class VocabularyFitter:
    """Counts keys, writes the tokens behind them to `file` as they first appear, and makes a Vocabulary."""

    def __init__(self, file: Path) -> None:
        self.counted = KeyTable()
        self._file = file
        self._spill_file = file.with_suffix(".spill")
        self._spill: Any = None

    def add(self, keys: Keys, taken: Mask, texts: Any | None) -> None:
        """Count keys[taken]; `texts` (Arrow) stand behind all keys, None when integers are their own keys."""
        new = self.counted.count(keys[taken])
        if texts is None or not len(new):
            return
        rows = np.flatnonzero(taken)[new]
        tokens = texts.take(pa.array(rows)).cast(pa.large_string())
        batch = pa.record_batch({"key": keys[rows], "token": tokens})
        if self._spill is None:
            self._spill = pa.ipc.new_file(str(self._spill_file), batch.schema)
        self._spill.write_batch(batch)

    def finish(self, *, min_count: int, max_size: int | None) -> Vocabulary:
        """Known are keys counted at least `min_count` times, the `max_size` most frequent of them."""
        keys, counts = self.counted.entries()
        self.counted = KeyTable()
        frequent = counts >= min_count
        keys, counts = keys[frequent], counts[frequent]
        order = np.lexsort((keys, ~counts))[:max_size]
        keys, counts = keys[order], counts[order]
        vocabulary = Vocabulary.from_keys(keys, self._file)
        columns = {"key": pa.array(keys), "count": pa.array(counts)}
        if self._spill is not None:
            columns["token"] = self._tokens(vocabulary)
        write_arrow(self._file, pa.table(columns))
        return vocabulary

    def _tokens(self, vocabulary: Vocabulary) -> Any:
        """The tokens of ids 1 …; null for the id of missing values."""
        self._spill.close()
        spilled = read_arrow(self._spill_file)
        ids = vocabulary.find(spilled["key"].combine_chunks().to_numpy())
        place = np.full(len(vocabulary), -1, np.int64)
        place[ids[ids > 0] - 1] = np.flatnonzero(ids > 0)
        tokens = spilled["token"].take(pa.array(place, mask=place < 0))
        self._spill_file.unlink()
        return tokens


def read_arrow(file: Path) -> pa.Table:
    """The Arrow IPC file as a table that stays on the disk until touched."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def write_arrow(file: Path, table: pa.Table) -> None:
    """Write an Arrow IPC file."""
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)
