"""Raw files of any kind → Arrow batches of bounded size, each knowing where it came from.

Kinds, by the end of the file's name: .parquet · .arrow .feather .ipc (Arrow IPC) · .inter (RecBole, joined
with the .user and .item files beside it) · anything else is delimited text, .gz .zst .bz2 unpacked as it is
read. Columns of text files have the types that the schema says, never what their first rows look like.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from tesserec.dataio.columns import BadValue, keys_of
from tesserec.dataio.config import did_you_mean
from tesserec.dataio.schema import Format, RawType, SchemaError
from tesserec.dataio.vocabulary import KeyTable

_BATCH_ROWS = 1 << 16
_BLOCK_BYTES = 1 << 22
_IPC = (".arrow", ".feather", ".ipc")
_ARROW = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "timestamp": pa.timestamp("us")}
_WANTED = {"string": "UTF-8 text", "int": "an integer", "float": "a number", "timestamp": "an ISO 8601 time"}


@dataclass(frozen=True, slots=True, eq=False)
class RawBatch:
    """Rows of a file, in order. first_row: the place of the first, as `unit` counts (lines from 1)."""

    batch: pa.RecordBatch
    file: Path
    first_row: int
    unit: str

    @contextmanager
    def located(self) -> Iterator[None]:
        """Give a BadValue of this batch, raised inside, its file and line."""
        try:
            yield
        except BadValue as error:
            where = f"{self.file}, {self.unit} {self.first_row + error.row}"
            raise SchemaError(f"{where}, {error}") from None


def read_raw(
    files: Sequence[str | Path],
    columns: Mapping[str, RawType],
    text: Format | None = None,
    *,
    optional: Collection[str] = (),
) -> Iterator[RawBatch]:
    """Stream `columns` of all files in order; those named in `optional` may be absent. SchemaError."""
    text = Format() if text is None else text
    for file in map(Path, files):
        if not file.is_file():
            raise SchemaError(f"{file}: no such file")
        if file.suffix == ".parquet":
            yield from _read_parquet(file, columns, optional)
        elif file.suffix in _IPC:
            yield from _read_ipc(file, columns, optional)
        elif file.suffix == ".inter":
            yield from _read_recbole(file, columns, optional, text)
        else:
            yield from _read_text(_open_text(file, columns, optional, text), columns, text)


def sample_raw(file: str | Path) -> pa.Table:
    """The first rows of a file with all columns; types in text files as those rows look. SchemaError."""
    path = Path(file)
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")
    if path.suffix == ".inter":
        raise SchemaError(f"{path}: start from the ready schema `movielens`, made for RecBole files")
    try:
        return pa.Table.from_batches([next(_sample_batches(path))])
    except StopIteration:
        raise SchemaError(f"{path}: holds no rows") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(f"{path}: cannot be read: {error}") from None


def _sample_batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from pa.parquet.ParquetFile(path).iter_batches(_BATCH_ROWS)
    elif path.suffix in _IPC:
        yield from _ipc_batches(pa.memory_map(str(path)))
    else:
        delimiter = "\t" if "\t" in _first_line(path) else ","
        with pa.input_stream(str(path), compression="detect") as stream:
            reading = pa.csv.ReadOptions(block_size=_BLOCK_BYTES)
            parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            yield from pa.csv.open_csv(stream, reading, parsing)


def _choose(
    file: Path, have: Sequence[str], columns: Mapping[str, RawType], optional: Collection[str]
) -> list[str]:
    """The wanted columns that `file` has. SchemaError for one that it must have."""
    for column in columns:
        if column not in have and column not in optional:
            hint = did_you_mean(column, have)
            raise SchemaError(f"{file}: no column {column!r}{hint} (columns: {', '.join(have)})")
    return [column for column in columns if column in have]


def _read_parquet(
    file: Path, columns: Mapping[str, RawType], optional: Collection[str]
) -> Iterator[RawBatch]:
    try:
        with pa.parquet.ParquetFile(file) as source:
            chosen = _choose(file, source.schema_arrow.names, columns, optional)
            row = 0
            for batch in source.iter_batches(_BATCH_ROWS, columns=chosen):
                yield RawBatch(batch, file, row, "row")
                row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(f"{file}: cannot be read as Parquet: {error}") from None


def _read_ipc(file: Path, columns: Mapping[str, RawType], optional: Collection[str]) -> Iterator[RawBatch]:
    try:
        with pa.memory_map(str(file)) as source:
            row = 0
            for whole in _ipc_batches(source):
                chosen = whole.select(_choose(file, whole.schema.names, columns, optional))
                for low in range(0, whole.num_rows, _BATCH_ROWS):
                    yield RawBatch(chosen.slice(low, _BATCH_ROWS), file, row + low, "row")
                row += whole.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(f"{file}: cannot be read as Arrow IPC: {error}") from None


def _ipc_batches(source: Any) -> Iterator[pa.RecordBatch]:
    """Batches of the file format (which starts with a magic word) or of the stream format."""
    if source.read(6) != b"ARROW1":
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    reader = pa.ipc.open_file(source)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


@dataclass(frozen=True, slots=True)
class _TextFile:
    """A delimited text file whose columns are known."""

    path: Path
    delimiter: str
    names: tuple[str, ...]
    has_header: bool
    lists: frozenset[str] = frozenset()  # columns of lists, parted by spaces


def _open_text(
    file: Path, columns: Mapping[str, RawType], optional: Collection[str], text: Format
) -> _TextFile:
    """Find the delimiter and the names of the columns. SchemaError when they cannot be known."""
    line = _first_line(file)
    delimiter = text.delimiter or ("\t" if "\t" in line else ",")
    fields = next(csv.reader([line], delimiter=delimiter), [])
    needed = [column for column in columns if column not in optional]
    if set(needed) <= set(fields) or not text.columns:
        _choose(file, fields, columns, optional)
        names, has_header = fields, True
    else:
        names, has_header = _headerless_names(file, fields, optional, text), False
        _choose(file, names, columns, optional)
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise SchemaError(f"{file}: two columns are called {twice[0]!r}; rename one")
    return _TextFile(file, delimiter, tuple(names), has_header)


def _headerless_names(file: Path, fields: list[str], optional: Collection[str], text: Format) -> list[str]:
    """`format.columns`, or these without the optional ones: test files often lack labels."""
    without = [name for name in text.columns if name not in optional]
    for names in (list(text.columns), without):
        if len(fields) == len(names):
            return names
    raise SchemaError(
        f"{file}, line 1: {len(fields)} fields, but format.columns of the schema names {len(text.columns)}, "
        f"and the line is no header either; correct format.columns or format.delimiter"
    )


def _first_line(file: Path) -> str:
    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            start = stream.read(1 << 20)
        line = str(start.split(b"\n", 1)[0], "utf-8-sig").rstrip("\r")
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(f"{file}: cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise SchemaError(
            f"{file}, line 1: invalid UTF-8; convert the file, for example with iconv"
        ) from None
    if not line:
        raise SchemaError(f"{file}: the file is empty or its first line is")
    return line


def _read_text(source: _TextFile, columns: Mapping[str, RawType], text: Format) -> Iterator[RawBatch]:
    types = {name: columns[name] for name in columns if name in source.names}
    row = 2 if source.has_header else 1
    try:
        with pa.input_stream(str(source.path), compression="detect") as stream:
            for batch in _csv_batches(stream, source, types, text):
                yield RawBatch(_with_lists(batch, source.lists), source.path, row, "line")
                row += batch.num_rows
    except OSError as error:
        raise SchemaError(f"{source.path}: cannot be read after line {row}: {error}") from None
    except pa.ArrowInvalid:
        _raise_with_line(source, types, text)


def _csv_batches(
    stream: Any, source: _TextFile, types: Mapping[str, RawType], text: Format, threads: bool = True
) -> Iterator[pa.RecordBatch]:
    reading = pa.csv.ReadOptions(
        use_threads=threads,
        block_size=_BLOCK_BYTES,
        column_names=list(source.names),
        skip_rows=int(source.has_header),
    )
    converting = pa.csv.ConvertOptions(
        column_types={name: _ARROW[raw_type] for name, raw_type in types.items()},
        include_columns=list(types),
        null_values=list(text.nulls),
        strings_can_be_null=True,
    )
    parsing = pa.csv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True)
    yield from pa.csv.open_csv(stream, reading, parsing, converting)


def _with_lists(batch: pa.RecordBatch, lists: Collection[str]) -> pa.RecordBatch:
    for name in set(batch.schema.names).intersection(lists):
        position = batch.schema.get_field_index(name)
        parted = pc.split_pattern(batch.column(position).cast(pa.string()), " ")
        batch = batch.set_column(position, name, parted)
    return batch


def _raise_with_line(source: _TextFile, types: Mapping[str, RawType], text: Format) -> NoReturn:
    """Read again without threads: only so does Arrow tell the line of what it cannot convert."""
    try:
        with pa.input_stream(str(source.path), compression="detect") as stream:
            for _ in _csv_batches(stream, source, types, text, threads=False):
                pass
    except pa.ArrowInvalid as error:
        raise SchemaError(_explain(str(error), source, types)) from None
    raise SchemaError(f"{source.path}: changed while it was read")


def _explain(message: str, source: _TextFile, types: Mapping[str, RawType]) -> str:
    line = re.search(r"Row #(\d+)", message)
    where = f"{source.path}, line {line[1]}" if line else str(source.path)
    width = re.search(r"Expected (\d+) columns, got (\d+)", message)
    if width:
        return f"{where}: {width[2]} fields, wanted {width[1]} as in line 1; correct or remove the line"
    column = re.search(r"CSV column #(\d+)", message)
    if not column:
        return f"{where}: {message}"
    name = source.names[int(column[1])]
    value = re.search(r"invalid value '(.*)'", message, re.DOTALL)
    got = repr(value[1]) if value else "invalid UTF-8"
    return (
        f"{where}, column {name!r}: got {got}, wanted {_WANTED[types[name]]}; correct the line, or name such "
        f"texts in format.nulls of the schema if they mean missing"
    )


def _read_recbole(
    file: Path, columns: Mapping[str, RawType], optional: Collection[str], text: Format
) -> Iterator[RawBatch]:
    """Interactions, with the columns of the .user and .item files looked up by their first column."""
    inter = _open_atomic(file)
    paths = [path for path in (file.with_suffix(".user"), file.with_suffix(".item")) if path.is_file()]
    sides = [_open_atomic(path) for path in paths]
    names = [*inter.names, *(name for side in sides for name in side.names)]
    chosen = _choose(file, names, columns, optional)
    joined = [_Lookup(side, [n for n in chosen if n not in inter.names], columns, text) for side in sides]
    keys: dict[str, RawType] = {look.key: columns.get(look.key, "string") for look in joined if look.wanted}
    for raw in _read_text(inter, {**keys, **columns}, text):
        arrays = {name: raw.batch.column(name) for name in chosen if name in inter.names}
        for look in joined:
            arrays |= look.take(raw.batch)
        batch = pa.record_batch({name: arrays[name] for name in chosen})
        yield RawBatch(batch, raw.file, raw.first_row, raw.unit)


def _open_atomic(file: Path) -> _TextFile:
    """A RecBole file: tab-separated, with a header of `name:type`; `…_seq` types are lists."""
    fields = [field.partition(":") for field in _first_line(file).split("\t")]
    names = tuple(name for name, _, _ in fields)
    lists = frozenset(name for name, _, kind in fields if kind.endswith("_seq"))
    return _TextFile(file, "\t", names, True, lists)


class _Lookup:
    """The wanted columns of a .user or .item file, by its first column."""

    def __init__(
        self, side: _TextFile, wanted: list[str], columns: Mapping[str, RawType], text: Format
    ) -> None:
        self.key = side.names[0]
        self.wanted = [name for name in wanted if name in side.names]
        if not self.wanted:
            return
        types = {self.key: columns.get(self.key, "string")} | {name: columns[name] for name in self.wanted}
        batches = [raw.batch for raw in _read_text(side, types, text)]
        if not batches:
            raise SchemaError(f"{side.path}: holds no rows")
        self._rows = pa.Table.from_batches(batches).combine_chunks()
        keys, _ = keys_of(self._rows[self.key].combine_chunks(), "string", self.key)
        self._places = KeyTable(expected=len(keys))
        self._places.number(keys)
        if len(self._places) != len(keys):
            raise SchemaError(f"{side.path}: a value of column {self.key!r} stands in two rows; remove one")

    def take(self, batch: pa.RecordBatch) -> dict[str, Any]:
        """The wanted columns for the rows of `batch`; null where the key is unknown."""
        if not self.wanted:
            return {}
        keys, _ = keys_of(batch.column(self.key), "string", self.key)
        places = self._places.find(keys) - 1
        found = pa.array(places, mask=places < 0)
        return {name: self._rows[name].take(found).combine_chunks() for name in self.wanted}
