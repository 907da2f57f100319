"""Raw values of a request → the part of a model's input that is made of them.

What a fitted encoder does feature by feature with Arrow columns, this does for all features at once with the
few rows of a request, and to the same bits. Where it refuses a value, the encoder is asked and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.dataio.columns import MISSING, BadValue
from tesserec.dataio.dense import DenseEncoder
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.sparse import SparseEncoder
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.serve.cells import Cells, Source, Sources
from tesserec.serve.columns import Column, kind_of
from tesserec.serve.kernels import encode as kernels
from tesserec.serve.query import Part

Feature = DenseEncoder | SparseEncoder

_ENCODINGS = ("vocabulary", "hash", "integer", "bucketize")  # in the order of the kernels' numbers for them
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A part, and what was seen of each of `features`: dense ones, then sparse ones in the model's order.

    seen: (features, 3) int64: values that its vocabulary does not know; missing ones; the place, among the
    ids of the feature, of the first unknown one.
    """

    part: Part
    seen: npt.NDArray[np.int64]


class ListTooLong(BadValue):
    """A list with more elements than requests may have."""


class PartEncoder:
    """Encodes some raw columns of an encoder for a model.

    dense, sparse: where the features that read the columns stand among the model's, and places: among all,
    dense before sparse. list_length: at most.
    """

    def __init__(self, encoder: Encoder, features: Features, columns: Sequence[Column], list_length: int):
        places = {column.name: i for i, column in enumerate(columns)}
        order = {name: i for i, name in enumerate(features.sparse)}
        dense = [(i, f) for i, f in enumerate(encoder.dense) if f.spec.column in places]
        found = [f for f in encoder.sparse if f.spec.column in places and f.spec.name in order]
        sparse = sorted(found, key=lambda feature: order[feature.spec.name])
        self.columns = tuple(columns)
        self.features: list[Feature] = [*(f for _, f in dense), *sparse]
        self.dense = tuple(i for i, _ in dense)
        self.sparse = tuple(order[f.spec.name] for f in sparse)
        self.places = np.array([*self.dense, *(len(encoder.dense) + i for i in self.sparse)], np.int64)
        read = [_source(f, places[f.spec.column], columns[places[f.spec.column]]) for f in self.features]
        self._sources = Sources(read)
        self._list_length = list_length
        self._plan_numbers([f for _, f in dense], read[: len(dense)])
        self._plan_ids(sparse, read[len(dense) :])

    def _plan_numbers(self, dense: Sequence[DenseEncoder], read: Sequence[Source]) -> None:
        numbers = [source for source in self._sources.all if source.kind == "number"]
        at = [numbers.index(source) for source in read]
        rows = [_numbers_row(f, i, len(numbers)) for f, i in zip(dense, at, strict=True)]
        self._numbers = np.array(rows, kernels.DENSE)
        self._wants_logs = any(feature.spec.transform == "log1p" for feature in dense)

    def _plan_ids(self, sparse: Sequence[SparseEncoder], read: Sequence[Source]) -> None:
        self._keys = tuple(feature.spec.name for feature in sparse)
        self._memory = [_memory(feature) for feature in sparse]  # of which the plan has addresses
        at = [self._sources.all.index(source) for source in read]
        rows = [_ids_row(*row) for row in zip(sparse, at, self._memory, strict=True)]
        self._ids = np.array(rows, kernels.FEATURE)
        lists = self._sources.array["list"][self._ids["source"]]
        self._singles = int(np.count_nonzero(lists < 0))
        self._list_readers = np.bincount(lists[lists >= 0], minlength=self._sources.num_lists)

    def encode(self, values: Sequence[Sequence[Any]], num_rows: int) -> Encoded:
        """`values[c]`, those of column c → num_rows rows. Raises BadValue, whose `row` is the place."""
        try:
            return self._encode(self._sources.of_values(values, num_rows), num_rows)
        except BadValue as error:
            columns = {c.name: c.arrow(given) for c, given in zip(self.columns, values, strict=True)}
            raise self._explained(error, columns) from None

    def encode_arrow(self, columns: Mapping[str, Any], num_rows: int) -> Encoded:
        """The same for Arrow columns of any types that an encoder takes. Raises SchemaError."""
        try:
            return self._encode(self._sources.of_arrow(columns, num_rows), num_rows)
        except BadValue as error:
            raise self._explained(error, columns) from None

    def _encode(self, cells: Cells, num_rows: int) -> Encoded:
        num_dense = len(self.dense)
        seen = np.zeros((len(self.features), 3), np.int64)
        dense = np.empty((num_rows, num_dense), np.float32)
        if num_dense:
            numbers = cells.numbers
            if self._wants_logs:
                numbers = np.concatenate([numbers, _signed_log(numbers)])
            bad = kernels.encode_numbers(self._numbers, num_rows, numbers, seen, dense)
            self._check(bad, 0)
        ids = self._bags(cells, num_rows, seen[num_dense:]) if self._keys else None
        return Encoded(Part(dense, ids), seen)

    def _bags(self, cells: Cells, num_rows: int, seen: npt.NDArray[np.int64]) -> KeyedJaggedTensor:
        room = self._singles * num_rows
        if self._sources.num_lists:
            self._check_lists(cells.lengths)
            room += int((np.maximum(cells.lengths, 0).sum(1) + num_rows) @ self._list_readers)
        values = np.empty(room, np.int64)
        offsets = np.empty(len(self._keys) * num_rows + 1, np.int64)
        given = (cells.integers, cells.numbers, cells.texts, cells.spans, cells.lengths)
        bad = kernels.encode_ids(self._sources.array, self._ids, num_rows, *given, values, offsets, seen)
        self._check(bad, len(self.dense))
        return KeyedJaggedTensor(self._keys, values[: offsets[-1]], offsets)

    def _check(self, bad: int, first: int) -> None:
        """What a kernel refused, counting from feature `first`, should the encoder not say more of it."""
        if bad >= 0:
            raise BadValue(self.features[first + bad].spec.column, 0, MISSING, "larger integers")

    def _check_lists(self, lengths: npt.NDArray[np.int64]) -> None:
        if lengths.max(initial=0) > self._list_length:
            place, row = np.argwhere(lengths > self._list_length)[0].tolist()
            source = [source for source in self._sources.all if source.is_list][place]
            got, wanted = f"{lengths[place, row]} elements", f"at most {self._list_length}"
            raise ListTooLong(source.name, row, got, wanted)

    def _explained(self, error: BadValue, columns: Mapping[str, Any]) -> BadValue:
        """What the encoder says of the first value that it refuses."""
        if isinstance(error, ListTooLong):
            return error
        for feature in self.features:
            try:
                feature.encode(columns[feature.spec.column])
            except BadValue as found:
                return found
        return error


def _numbers_row(feature: DenseEncoder, source: int, num_numbers: int) -> tuple[Any, ...]:
    """What the kernel needs of a dense feature; the logarithms of all numbers come after all numbers."""
    fill = np.float64(np.nan if feature.fill is None else feature.fill)
    if feature.spec.transform == "log1p":
        return (num_numbers + source, _signed_log(fill), feature.shift, feature.scale)
    return (source, fill, feature.shift, feature.scale)


def _source(feature: Feature, place: int, column: Column) -> Source:
    if isinstance(feature, DenseEncoder):
        return Source(place, column.name, column.kind, "number")
    delimiter = feature.spec.delimiter
    return Source(place, column.name, column.kind, kind_of(feature), feature.is_list, delimiter)


def _memory(feature: SparseEncoder) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The keys and values of a vocabulary, or the boundaries of buckets and nothing."""
    if feature.vocabulary is not None:
        return feature.vocabulary.table.slots
    return np.array(feature.boundaries, np.float64), np.empty(0)


def _ids_row(
    feature: SparseEncoder, source: int, memory: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> tuple[Any, ...]:
    """What the kernel needs of a sparse feature."""
    spec, policy = feature.spec, feature.spec.missing_policy(is_list=feature.is_list)
    return (
        source,
        _ENCODINGS.index(spec.encoding),
        feature.num_embeddings,
        spec.seed,
        policy == "error",
        policy == "oov",
        _NO_LIMIT if spec.max_length is None else spec.max_length,
        *(array.ctypes.data for array in memory),
        len(memory[0]),
    )


def _signed_log(values: Any) -> Any:
    """sign(x)·log(1 + |x|), as encoders take it."""
    return np.copysign(np.log1p(np.abs(values)), values)
