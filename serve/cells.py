"""The values of a request's columns, laid out by kind for the kernels (tesserec.serve.kernels.encode)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.columns import cast, is_text, keys_of, numbers
from tesserec.dataio.lists import Lists
from tesserec.serve.columns import ARROW, FILLER, Kind, cut
from tesserec.serve.kernels import encode as kernels

_KINDS: tuple[Kind, ...] = ("int", "number", "text")  # in the order of the kernels' numbers for them
_to_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Source:
    """What features read: the values of column number `column`, `given` as one kind, made into `kind`."""

    column: int
    name: str
    given: Kind
    kind: Kind
    is_list: bool = False
    delimiter: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its cells are the column's values as they are."""
        return self.given == self.kind and not self.is_list


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The cells of all sources, kind by kind; spans: (begin, end) of each text; lengths: (lists, n)."""

    integers: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float64]
    texts: npt.NDArray[np.uint8]
    spans: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class Sources:
    """Distinct sources, in the kernels' order; `array` describes them to kernels."""

    def __init__(self, sources: Iterable[Source]):
        distinct = dict.fromkeys(sources)
        self.all = sorted(distinct, key=lambda s: (_KINDS.index(s.kind), not s.is_plain))
        lists = [source for source in self.all if source.is_list]
        places = [lists.index(source) if source.is_list else -1 for source in self.all]
        kinds = [_KINDS.index(source.kind) for source in self.all]
        self.array = np.array(list(zip(kinds, places, strict=True)), kernels.SOURCE)
        self.num_lists = len(lists)
        self._plain = {k: [s.column for s in self.all if s.kind == k and s.is_plain] for k in _KINDS}
        self._others = {k: [s for s in self.all if s.kind == k and not s.is_plain] for k in _KINDS}

    def of_values(self, values: Sequence[Sequence[Any]], num_rows: int) -> Cells:
        """Python values of each column → cells."""
        lengths: list[list[int]] = []
        ints, floats, texts = (self._gather(kind, values, lengths) for kind in _KINDS)
        return Cells(
            _array(ints, "int", np.int64),
            _array(floats, "number", np.float64),
            *_texts(texts),
            np.array(lengths, np.int64).reshape(self.num_lists, num_rows),
        )

    def of_arrow(self, columns: Mapping[str, Any], num_rows: int) -> Cells:
        """Arrow columns, with all types that an Encoder takes → cells. Raises BadValue, SchemaError."""
        lengths = np.empty((self.num_lists, num_rows), np.int64)
        flat: dict[Kind, list[Any]] = {"int": [np.empty(0, np.int64)], "number": [np.empty(0)]}
        texts = [pa.array([], pa.large_binary())]
        for source, place in zip(self.all, self.array["list"], strict=True):
            column = columns[source.name]
            if source.is_list:
                lists = Lists.of(column, source.delimiter, None)
                column, lengths[place] = lists.values, np.where(lists.missing, -1, lists.lengths)
            if source.kind == "text":
                texts.append(_as_text(column, source.name))
            else:
                flat[source.kind].append(_converted(column, source.kind, source.name))
        ints, floats = (np.concatenate(pieces) for pieces in flat.values())
        return Cells(ints, floats, *_spans(pa.concat_arrays(texts)), lengths)

    def _gather(self, kind: Kind, values: Sequence[Sequence[Any]], lengths: list[list[int]]) -> list[Any]:
        pieces: list[Sequence[Any]] = [values[column] for column in self._plain[kind]]
        pieces += [_cells(source, values[source.column], lengths) for source in self._others[kind]]
        return list(chain.from_iterable(pieces))


def _cells(source: Source, values: Sequence[Any], lengths: list[list[int]]) -> Sequence[Any]:
    """The cells of a source that is not plain; those of lists add to `lengths`."""
    if source.is_list:
        lists = [cut(value, source.delimiter) for value in values]
        lengths.append([-1 if one is None else len(one) for one in lists])
        values = list(chain.from_iterable(filter(None, lists)))
    if source.given == source.kind:
        return values
    held = [None if value is None or value == FILLER[source.given] else value for value in values]
    if source.given == "text":
        held = [None if value is None else str(value) for value in held]
    cells: list[Any] = _converted(pa.array(held, ARROW[source.given]), source.kind, source.name).tolist()
    return cells


def _converted(column: Any, kind: Kind, name: str) -> npt.NDArray[Any]:
    return keys_of(column, "int", name)[0] if kind == "int" else numbers(column, name)


def _array(cells: list[Any], kind: Kind, dtype: Any) -> npt.NDArray[Any]:
    """Numbers and None as an array. Packed by `struct`: twice as fast as numpy reads a list."""
    out: Any = np.empty(len(cells), dtype)
    layout = f"{len(cells)}{out.dtype.char.replace('l', 'q')}"
    try:
        struct.pack_into(layout, out, 0, *cells)
    except struct.error:
        filler = FILLER[kind]
        struct.pack_into(layout, out, 0, *(filler if cell is None else cell for cell in cells))
    return np.asarray(out)


def _texts(cells: list[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Texts, integers and None → bytes, and the spans of each. Written as JSON: that is the fastest way."""
    spans = np.empty((len(cells), 2), np.int64)
    data = _to_json(cells)
    if b"\\" in data:
        return _spans(pa.array([None if c is None else str(c).encode() for c in cells], pa.large_binary()))
    written = np.frombuffer(data, np.uint8)
    kernels.find_texts(written, spans)
    return written, spans


def _as_text(column: Any, name: str) -> Any:
    text = column if is_text(column.type) else cast(column, pa.string(), name, "a text")
    return text.cast(pa.large_binary())


def _spans(column: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Texts as large_binary → their bytes, and the span of each, empty for a null."""
    _, offsets, data = pc.fill_null(column, b"").buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
    return np.frombuffer(data or b"", np.uint8), np.stack([ends[:-1], ends[1:]], axis=1)
