"""Ids as features: one id per row, or a list of them; fitted on training rows, applied to any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tesserec.dataio.columns import (
    MISSING,
    BadValue,
    Floats,
    KeyKind,
    Keys,
    Mask,
    hash_integers,
    key_kind,
    keys_of,
    numbers,
    refuse,
)
from tesserec.dataio.lists import Lists, holds_lists
from tesserec.dataio.schema import SchemaError, Sparse
from tesserec.dataio.vocabulary import Vocabulary, VocabularyFitter

Ids = npt.NDArray[np.int64]
_SAMPLE = 1 << 17


@dataclass(frozen=True, slots=True, eq=False)
class SparseEncoder:
    """Raw column → ids in [0, num_embeddings), or lists of them."""

    spec: Sparse
    is_list: bool
    kind: KeyKind
    num_embeddings: int
    vocabulary: Vocabulary | None = None
    boundaries: tuple[float, ...] = ()

    def encode(self, column: Any) -> Any:
        """Raw column → Arrow int64 or list<int64>, without nulls. BadValue."""
        policy = self.spec.missing_policy(is_list=self.is_list)
        if not self.is_list:
            refuse_missing = policy == "error"
            return pa.array(self._ids(column, refuse_missing))
        lists = Lists.of(column, self.spec.delimiter, self.spec.max_length)
        if policy == "error":
            refuse(lists.missing, column, self.spec.column, _NO_MISSING)
        try:
            ids = self._ids(lists.values, refuse_missing=False)
        except BadValue as error:
            raise error.at_row(int(lists.rows()[error.row])) from None
        return lists.with_ids(ids, fill=0 if policy == "oov" else None)

    @property
    def state(self) -> dict[str, Any]:
        """What was fitted, apart from the vocabulary."""
        names = ("is_list", "kind", "num_embeddings", "boundaries")
        return {name: getattr(self, name) for name in names}

    def _ids(self, column: Any, refuse_missing: bool) -> Ids:
        """Single values → ids."""
        spec = self.spec
        if spec.encoding == "bucketize":
            return self._buckets(column, refuse_missing)
        seed = spec.seed if spec.encoding == "hash" else 0
        keys, missing = keys_of(column, self.kind, spec.column, seed)
        if refuse_missing:
            refuse(missing, column, spec.column, _NO_MISSING)
        if self.vocabulary is not None:
            return self.vocabulary.find(keys)
        if spec.encoding == "hash":
            return self._hashed(keys, missing)
        refuse((keys < 0) | (keys >= self.num_embeddings), column, spec.column, self._range)
        return keys

    def _hashed(self, keys: Keys, missing: Mask) -> Ids:
        if self.kind == "int":
            keys = hash_integers(keys, self.spec.seed)
        else:
            keys[missing] = hash_integers(np.array([MISSING]), self.spec.seed)
        return (keys.view(np.uint64) % np.uint64(self.num_embeddings)).astype(np.int64)

    def _buckets(self, column: Any, refuse_missing: bool) -> Ids:
        values = numbers(column, self.spec.column)
        missing = np.isnan(values)
        if refuse_missing:
            refuse(missing, column, self.spec.column, _NO_MISSING)
        return np.where(missing, 0, 1 + np.searchsorted(self.boundaries, values, side="right"))

    @property
    def _range(self) -> str:
        return (
            f"an id from 0 to {self.num_embeddings - 1}: `encoding: integer` takes ids as they are; state a "
            f"larger `size`, or `encoding: vocabulary`"
        )


class SparseFitter:
    """Streams a column's training rows into what its encoding needs; then makes the encoder.

    `file` is where a vocabulary goes.
    """

    def __init__(self, spec: Sparse, file: Path) -> None:
        self.spec = spec
        self.is_list = False
        self._kind: KeyKind | None = None
        self._vocabulary = VocabularyFitter(file)
        self._largest = 0
        self._sample = _Sample()

    @property
    def nbytes(self) -> int:
        """Bytes of the counting table."""
        return self._vocabulary.counted.nbytes

    def update(self, column: Any, rows: Keys, train: Mask) -> None:
        """See one batch: its rows' numbers, and which of them train."""
        if self._kind is None:
            self._settle(column.type)
        if self.spec.encoding == "bucketize" and self.spec.buckets is not None:
            self._sample.add(numbers(column, self.spec.column), rows, train)
        if self.spec.encoding not in ("vocabulary", "integer"):
            return
        if self.is_list:
            lists = Lists.of(column, self.spec.delimiter, self.spec.max_length)
            column, train = lists.values, np.repeat(train, lists.lengths)
        self._learn(column, train)

    def finish(self) -> SparseEncoder:
        """The fitted encoder."""
        spec = self.spec
        kind: KeyKind = self._kind or "string"
        if spec.encoding == "vocabulary":
            known = self._vocabulary.finish(min_count=spec.min_count, max_size=spec.max_size)
            return SparseEncoder(spec, self.is_list, kind, len(known) + 1, vocabulary=known)
        if spec.encoding == "bucketize":
            boundaries = spec.boundaries or self._sample.boundaries(spec.buckets or 1)
            return SparseEncoder(spec, False, kind, len(boundaries) + 2, boundaries=boundaries)
        size = spec.buckets if spec.encoding == "hash" else spec.size
        return SparseEncoder(spec, self.is_list, kind, size or self._largest + 1)

    def _settle(self, column_type: Any) -> None:
        """Learn from the first batch whether the column holds lists, and what its keys are."""
        spec = self.spec
        self.is_list = spec.delimiter is not None or holds_lists(column_type)
        try:
            spec.missing_policy(is_list=self.is_list)
        except ValueError as error:
            raise SchemaError(str(error)) from None
        if spec.max_length is not None and not self.is_list:
            raise SchemaError(
                f"column {spec.column!r}: `max_length` is of lists, but this holds {column_type}"
            )
        if spec.encoding == "bucketize":
            self._kind = "int"
        else:
            element = column_type.value_type if holds_lists(column_type) else column_type
            wanted: KeyKind | None = "int" if spec.encoding == "integer" else spec.type
            self._kind = key_kind(element, spec.column, wanted)

    def _learn(self, column: Any, train: Mask) -> None:
        """Count the keys of single values, or find the largest of them."""
        assert self._kind is not None
        keys, missing = keys_of(column, self._kind, self.spec.column)
        if self.spec.encoding == "integer":
            self._largest = max(self._largest, int(keys.max(initial=0)))
            return
        if self.spec.missing_policy(is_list=self.is_list) != "own":
            train = train & ~missing
        self._vocabulary.add(keys, train, column if self._kind == "string" else None)


class _Sample:
    """A fixed pseudo-random choice of training values: those whose row number hashes lowest."""

    def __init__(self) -> None:
        self._values = np.zeros(0)
        self._order = np.zeros(0, np.uint64)

    def add(self, values: Floats, rows: Keys, train: Mask) -> None:
        taken = train & ~np.isnan(values)
        self._values = np.concatenate([self._values, values[taken]])
        self._order = np.concatenate([self._order, hash_integers(rows[taken]).view(np.uint64)])
        if len(self._values) > 2 * _SAMPLE:
            self._shrink()

    def boundaries(self, buckets: int) -> tuple[float, ...]:
        """The inner quantiles, each once."""
        self._shrink()
        if not len(self._values):
            return ()
        inner = np.linspace(0, 1, buckets + 1)[1:-1]
        return tuple(float(edge) for edge in np.unique(np.quantile(self._values, inner)))

    def _shrink(self) -> None:
        if len(self._values) > _SAMPLE:
            lowest = np.argpartition(self._order, _SAMPLE)[:_SAMPLE]
            self._values, self._order = self._values[lowest], self._order[lowest]


_NO_MISSING = "a value (`missing: error` in the schema refuses missing ones)"
