"""The manifest of an artefact: what it is, which files hold it, and what their bytes add up to."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tesserec import __version__

FORMAT = "tesserec artefact"
VERSION = 1
FILE = "manifest.json"
_PIECE = 1 << 20  # bytes that are read and summed while they are in cache
AGAIN = "copy the artefact again, or export it again"


class ArtefactError(ValueError):
    """An artefact that cannot be used, or cannot be made; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class FileSum:
    """What a file is: its bytes, and their CRC-32."""

    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class TableRows:
    """A table of a pool: rows lo … hi-1. name: that of its array in the model's state."""

    name: str
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class PoolFile:
    """The file of a pool: a .npy array of `shape` and `dtype`, and a few bytes after it.

    data_type: what its rows are, such as "int8"; embedding_dim: the width of its tables. offset: bytes before
    the first row. crc32: of each `block_bytes` bytes of the file.
    """

    file: str
    data_type: str
    embedding_dim: int
    dtype: str
    shape: tuple[int, int]
    tables: tuple[TableRows, ...]
    offset: int
    size: int
    block_bytes: int
    crc32: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.shape[0] * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.shape[1] * int(self.dtype[2:])

    def tables_of(self, block: int) -> list[str]:
        """The tables that have bytes in a block."""
        first, last = (edge * self.block_bytes - self.offset for edge in (block, block + 1))
        return [t.name for t in self.tables if t.lo * self.row_bytes < last and first < t.hi * self.row_bytes]


@dataclass(frozen=True, slots=True)
class Histogram:
    """counts[i] scores were in [edges[i], edges[i + 1]); the edges run from 0 to 1."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


NO_SCORES = Histogram((0.0, 1.0), (0,))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artefact says of itself; see `Artefact`. files: what is no table, by path."""

    name: str
    created: str
    data_type: str
    model: dict[str, Any]
    metrics: dict[str, Any]
    candidate_id: str | None
    candidate_columns: tuple[str, ...]
    histogram: Histogram
    deviation: float
    pools: tuple[PoolFile, ...]
    files: dict[str, FileSum]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; its checksum is that of all else in it."""
    dumped = TypeAdapter(Manifest).dump_python(manifest, mode="json")
    values = {"format": FORMAT, "version": VERSION, "tesserec": __version__, **dumped}
    (folder / FILE).write_text(signed(values), encoding="utf-8")


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """(the manifest of the artefact at `folder`, its checksum). ArtefactError."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        found, checksum = (values["format"], values["version"]), values.pop("checksum")
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtefactError(f"{path}: not an artefact's manifest; {AGAIN}") from None
    if found != (FORMAT, VERSION):
        raise ArtefactError(f"{path}: {found[0]!r} version {found[1]!r}, wanted {FORMAT!r} version {VERSION}")
    if text != signed(values):
        raise ArtefactError(f"{path}: its checksum is wrong; {AGAIN}")
    fields = {key: value for key, value in values.items() if key not in ("format", "version", "tesserec")}
    try:
        return TypeAdapter(Manifest).validate_python(fields), checksum
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtefactError(f"{path}: damaged at {where}: {first['msg']}; {AGAIN}") from None


def check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """ArtefactError unless the files are there and have these sizes."""
    for name, wanted in sizes.items():
        with reading(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
        if size != wanted:
            raise ArtefactError(f"{folder / name}: {size} bytes, wanted {wanted}; {AGAIN}")


def file_sum(path: Path) -> FileSum:
    """The size and CRC-32 of a file."""
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        return FileSum(size, sum_of(file, size))


def check_file(path: Path, wanted: FileSum) -> None:
    """ArtefactError unless a file has this size and CRC-32."""
    _check(path, file_sum(path), wanted)


def read_checked(path: Path, wanted: FileSum) -> bytes:
    """The content of a small file. ArtefactError unless it has this size and CRC-32."""
    with reading(path) as file:
        data = file.read()
    _check(path, FileSum(len(data), zlib.crc32(data)), wanted)
    return data


@contextmanager
def reading(path: Path) -> Iterator[io.FileIO]:
    """The file, open. ArtefactError where that, or reading it, fails."""
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None


def sum_of(file: io.FileIO, size: int) -> int:
    """The CRC-32 of the next `size` bytes, or of as many as there are."""
    crc, buffer = 0, memoryview(bytearray(min(size, _PIECE)))
    while size and (got := file.readinto(buffer[:size])):
        crc, size = zlib.crc32(buffer[:got], crc), size - got
    return crc


def signed(values: Mapping[str, Any]) -> str:
    """The text of the manifest: the values, and a checksum of them."""
    checksum = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps({**values, "checksum": checksum}, indent=1, allow_nan=False) + "\n"


def _check(path: Path, found: FileSum, wanted: FileSum) -> None:
    if found != wanted:
        got = f"{found.size} bytes, CRC-32 {found.crc32:08x}"
        raise ArtefactError(f"{path}: {got}, wanted {wanted.size}, {wanted.crc32:08x}; {AGAIN}")
