"""Deltas: what training has changed in a model, as files in order, and a follower that takes them over.

    VERSION/deltas/000000001.arrow, 000000002.arrow, …

A file is an Arrow IPC stream, followed by the CRC-32 of all its bytes in text. Its rows are rows of tables
(`name`, `row`, `values`), then dense arrays (`name`, `dtype`, `shape`, `data`); which delta it is, says the
metadata of its schema. Each names the checksum of the one before, the first that of the artefact's manifest:
no file can be left out, come twice, or belong to another model unnoticed.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tesserec.autograd.module import Module
from tesserec.dataio.atomic import atomic_file
from tesserec.embeddings.collection import dense_state, named_collections
from tesserec.embeddings.kernels.replace import own_pages, replace_rows
from tesserec.embeddings.pool import Pool, PoolTable

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

FORMAT = 1
KEY = b"tesserec.delta"
MARK = b"CRC-32 "
TRAILER = len(MARK) + 8  # bytes after the stream


class DeltaError(ValueError):
    """A delta that is damaged, out of order, or not of this model."""


@dataclass(frozen=True, slots=True)
class Header:
    """Which delta it is. base: checksum of the artefact's manifest; previous: of the delta before, or `base`.

    step: the last training step in it; newest: when that ended, in seconds since 1970. last: whether training
    ended there.
    """

    sequence: int
    base: str
    previous: str
    step: int
    newest: float
    last: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What has changed in a model.

    tables: {table, by its name in the model's state: (rows (U,) increasing, values (U, D) float32)}, U > 0.
    dense: {name in the model's state: array}.
    """

    header: Header
    tables: Mapping[str, tuple[Rows, Array]]
    dense: Mapping[str, Array]


def delta_path(folder: Path, sequence: int) -> Path:
    """Where that delta of the artefact `folder` lies."""
    return folder / "deltas" / f"{sequence:09d}.arrow"


def base_checksum(folder: Path) -> str:
    """What the first delta of the artefact `folder` names as the one before."""
    return _checksum((folder / "manifest.json").read_bytes())


def write_delta(folder: Path, delta: Delta) -> str:
    """Write a delta of the artefact `folder`, durably -> its checksum."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _schema(delta.header)) as stream:
        for batch in _batches(delta):
            stream.write_batch(batch)
    content = sink.getvalue()
    checksum = _checksum(content)
    with atomic_file(delta_path(folder, delta.header.sequence)) as path, path.open("wb") as file:
        file.write(content)
        file.write(MARK + checksum.encode())
    return checksum


def read_delta(path: Path) -> tuple[Delta, str]:
    """(what `write_delta` wrote, its checksum). DeltaError where it is not that."""
    content = memoryview(path.read_bytes())
    content, trailer = content[:-TRAILER], bytes(content[-TRAILER:])
    checksum = _checksum(content)
    if trailer != MARK + checksum.encode():
        raise DeltaError(f"{path}: damaged: the file ends with {trailer!r}, wanted {MARK.decode()}{checksum}")
    with pa.ipc.open_stream(content) as stream:
        header = _header(path, stream.schema)
        return _delta(header, stream), checksum


class Refreshable(Protocol):
    """An engine, as far as a follower knows it."""

    def refresh(self) -> None:
        """Dense parameters or buffers have changed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Replaced:
    """Rows (U,) of a pool's `data`, as bytes (R, stride), and what they are to be."""

    data: Array
    rows: Rows
    new: Array


class Follower:
    """Takes over the deltas of a version, in order. One thread polls; anyone may read the attributes.

    sequence: of the last one applied, 0 before the first. newest: when the newest training step that is
    served ended, seconds since 1970. problem: why it stands still, "" when it does not.
    """

    def __init__(self, folder: Path, model: Module, engine: Refreshable, lock: AbstractContextManager[Any]):
        """folder: the artefact. lock: held while a delta is written into the model that `engine` scores with.

        The arrays of `model` are written to, and are as the artefact has them.
        """
        self._folder, self._engine, self._lock = folder, engine, lock
        self._tables = dict(_tables(model))
        self._dense = dense_state(model)
        self._base = self._checksum = base_checksum(folder)
        self._refused = (0, 0)  # of the file that is the problem: when it was written, its size
        self._ended = not self._deltas.is_dir()
        self._listed = 0  # when what is in `_deltas` last changed, as far as it was looked at
        self.sequence, self.problem = 0, ""
        self.newest = (folder / "manifest.json").stat().st_mtime
        self._warm_up()

    def poll(self) -> int:
        """Apply what has come -> how many deltas that was. A bad one is a `problem` until it is replaced."""
        count = 0
        while self._next():
            count += 1
        return count

    def staleness(self) -> float:
        """Seconds since the newest training step that is served; 0 where training has ended, or never was."""
        return 0.0 if self._ended else max(0.0, time.time() - self.newest)

    @property
    def _deltas(self) -> Path:
        return self._folder / "deltas"

    def _next(self) -> bool:
        """Apply the next delta -> whether there was one, and nothing was wrong with it."""
        path = delta_path(self._folder, self.sequence + 1)
        try:
            stat = path.stat()
        except FileNotFoundError:
            self.problem = self._gap(path)
            return False
        found = stat.st_mtime_ns, stat.st_size
        if found == self._refused:
            return False
        try:
            self._apply(path)
        except (ValueError, OSError, pa.ArrowException) as error:
            self.problem, self._refused = str(error), found
            return False
        self.problem = ""
        return True

    def _gap(self, path: Path) -> str:
        """What is wrong with there being no `path`: nothing, unless there are later ones."""
        changed = self._deltas.stat().st_mtime_ns if self._deltas.is_dir() else 0
        if changed == self._listed:
            return self.problem
        self._listed = changed
        later = [other.name for other in self._deltas.glob("*.arrow") if other.name > path.name]
        return f"{path}: missing, but there is {min(later)}; wanted all from 1 on" if later else ""

    def _apply(self, path: Path) -> None:
        delta, checksum = read_delta(path)
        self._check_place(path, delta.header)
        replaced = [self._replaced(path, *item) for item in delta.tables.items()]
        for name, array in delta.dense.items():
            self._check_dense(path, name, array)
        self._write(replaced, delta.dense)
        self.sequence, self._checksum = delta.header.sequence, checksum
        self.newest, self._ended = delta.header.newest, delta.header.last

    def _write(self, replaced: Sequence[_Replaced], dense: Mapping[str, Array]) -> None:
        """Write to the model, all at once to whoever holds the lock."""
        for part in replaced:
            own_pages(part.data, part.rows, np.uint8(0))
        with self._lock:
            for part in replaced:
                replace_rows(part.new, part.rows, part.data)
            for name, array in dense.items():
                self._dense[name][...] = array
            if dense:
                self._engine.refresh()

    def _warm_up(self) -> None:
        """Compile kernels, which would hold up requests later."""
        for pool in {pool for pool, _ in self._tables.values()}:
            rows = np.empty(0, np.int64)
            values = np.empty((0, pool.tables[0].config.embedding_dim), np.float32)
            self._write([_Replaced(_bytes(pool.data), rows, _bytes(pool.as_stored(values)))], {})

    def _check_place(self, path: Path, header: Header) -> None:
        """DeltaError unless it is the delta after the last one."""
        wanted = {"sequence": self.sequence + 1, "base": self._base, "previous": self._checksum}
        for name, value in wanted.items():
            if getattr(header, name) != value:
                raise DeltaError(f"{path}: {name} is {getattr(header, name)}, wanted {value}")

    def _replaced(self, path: Path, name: str, new: tuple[Rows, Array]) -> _Replaced:
        """What of which pool is to be replaced. DeltaError for rows that the table cannot have."""
        if name not in self._tables:
            raise DeltaError(f"{path}: table {name!r}, wanted one of {', '.join(self._tables)}")
        (pool, table), (rows, values) = self._tables[name], new
        wanted = table.config.num_embeddings, table.config.embedding_dim
        if values.shape[1:] != wanted[1:]:
            raise DeltaError(
                f"{path}: table {name!r} has rows of width {values.shape[1]}, wanted {wanted[1]}"
            )
        if rows[0] < 0 or rows[-1] >= wanted[0] or (np.diff(rows) <= 0).any():
            raise DeltaError(
                f"{path}: table {name!r} has rows {rows.min()} to {rows.max()}, wanted 0 to {wanted[0] - 1}, "
                "increasing"
            )
        if not np.isfinite(values).all():
            bad = int(rows[np.isfinite(values).all(axis=1).argmin()])
            raise DeltaError(f"{path}: table {name!r}, row {bad} has a value that is not finite")
        data, stored = _bytes(pool.data), _bytes(pool.as_stored(values))
        return _Replaced(data, rows + table.first_row, stored)

    def _check_dense(self, path: Path, name: str, array: Array) -> None:
        own = self._dense.get(name)
        if own is None:
            raise DeltaError(f"{path}: dense array {name!r}, which the model does not have")
        if (array.dtype, array.shape) != (own.dtype, own.shape):
            raise DeltaError(f"{path}: {name} is {array.dtype} {array.shape}, wanted {own.dtype} {own.shape}")
        if not np.isfinite(array).all():
            raise DeltaError(f"{path}: {name} has a value that is not finite")


def _tables(model: Module) -> Iterator[tuple[str, tuple[Pool, PoolTable]]]:
    """(table, by its name in the model's state, where it lies) of all."""
    for prefix, collection in named_collections(model):
        for pool in collection.pools:
            for table in pool.tables:
                yield prefix + table.config.name, (pool, table)


def _bytes(rows: Array) -> Array:
    """(R, stride) u1: the rows as they lie in memory; a view."""
    return rows.view(np.uint8)


def _checksum(content: Any) -> str:
    return f"{zlib.crc32(content):08x}"


def _schema(header: Header) -> Any:
    text = pa.dictionary(pa.int32(), pa.string())
    columns = {
        "name": text,
        "row": pa.int64(),
        "values": pa.large_list(pa.float32()),
        "dtype": pa.string(),
        "shape": pa.list_(pa.int64()),
        "data": pa.large_binary(),
    }
    about = json.dumps({"format": FORMAT, **asdict(header)})
    return pa.schema(columns.items(), {KEY: about.encode()})


def _batches(delta: Delta) -> Iterator[Any]:
    """One for the rows of each table, one for all dense arrays."""
    schema, names = _schema(delta.header), pa.array([*delta.tables, *delta.dense], pa.string())
    kinds = {field.name: field.type for field in schema}
    for number, (rows, values) in enumerate(delta.tables.values()):
        offsets = pa.array(np.arange(len(rows) + 1) * values.shape[1])
        flat = pa.array(values.astype(np.float32, copy=False).reshape(-1))
        filled = {
            "name": pa.DictionaryArray.from_arrays(np.full(len(rows), number, np.int32), names),
            "row": pa.array(rows),
            "values": pa.LargeListArray.from_arrays(offsets, flat),
        }
        yield _batch(len(rows), filled, schema, kinds)
    if delta.dense:
        arrays = list(delta.dense.values())
        numbers = np.arange(len(delta.tables), len(names), dtype=np.int32)
        filled = {
            "name": pa.DictionaryArray.from_arrays(numbers, names),
            "dtype": pa.array([array.dtype.str for array in arrays]),
            "shape": pa.array([array.shape for array in arrays], kinds["shape"]),
            "data": pa.array([array.tobytes() for array in arrays], kinds["data"]),
        }
        yield _batch(len(arrays), filled, schema, kinds)


def _batch(length: int, filled: Mapping[str, Any], schema: Any, kinds: Mapping[str, Any]) -> Any:
    """A batch of these columns; the others are null."""
    columns = [filled.get(name, pa.nulls(length, kind)) for name, kind in kinds.items()]
    return pa.record_batch(columns, schema)


def _header(path: Path, schema: Any) -> Header:
    about = json.loads((schema.metadata or {}).get(KEY, b"{}"))
    if about.pop("format", None) != FORMAT:
        raise DeltaError(f"{path}: no delta of format {FORMAT}; this is another file, or of another Tesserec")
    return Header(**about)


def _delta(header: Header, stream: Any) -> Delta:
    tables: dict[str, tuple[Rows, Array]] = {}
    dense: dict[str, Array] = {}
    for batch in stream:
        if batch.column("row").null_count:
            columns = (batch.column(name).to_pylist() for name in ("name", "dtype", "shape", "data"))
            for name, dtype, shape, data in zip(*columns, strict=True):
                dense[name] = np.frombuffer(data, dtype).reshape(shape)
        else:
            rows, values = (
                np.array(column) for column in (batch.column("row"), batch.column("values").flatten())
            )
            tables[batch.column("name")[0].as_py()] = rows, values.reshape(len(rows), -1)
    return Delta(header, tables, dense)
