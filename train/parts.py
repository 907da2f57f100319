"""A rectangle of a large array on disk: a plain .npy file whose rows have a checksum block by block.

A block is what is read, checked and written at once, each by any thread: so a reader can take any rows and
columns out of a file, into any memory, with a bounded buffer, and still no unchecked byte passes.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.pool import Rows
from tesserec.sharding.plan import Rectangle, Span, intersection

BLOCK = 1 << 24  # bytes of a block: as many whole rows as fit, but one at least
_PIECE = 1 << 20  # bytes that are summed and copied while they are in cache
DAMAGED = "the file is damaged: remove this checkpoint's folder, then --resume continues from the one before"

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """The file that holds rows x cols of an array; cols is None for arrays of shape (R,).

    file: its path in the checkpoint; size: its bytes. crc32: of its header, then of each `block_rows` rows;
    empty in checkpoints of version 1.
    """

    file: str
    rows: Span
    cols: Span | None
    size: int
    block_rows: int
    crc32: tuple[int, ...]

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Part:
        """The part whose `to_json` was read back."""
        cols = read["cols"]
        spans = tuple(read["rows"]), None if cols is None else tuple(cols)
        return cls(read["file"], *spans, read["size"], read["block_rows"], tuple(read["crc32"]))

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @property
    def rectangle(self) -> Rectangle:
        """(rows, cols), with one column for (R,)."""
        return self.rows, self.cols or (0, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """(number of rows, number of columns)."""
        (top, bottom), (left, right) = self.rectangle
        return bottom - top, right - left

    def block(self, number: int) -> Span:
        """The rows of a block, counted in the table."""
        first = self.rows[0] + number * self.block_rows
        return first, min(first + self.block_rows, self.rows[1])

    def blocks(self, rows: Span) -> range:
        """Numbers of the blocks that have any of `rows`, which share some with this part."""
        lo, hi = max(rows[0], self.rows[0]) - self.rows[0], min(rows[1], self.rows[1]) - self.rows[0]
        return range(lo // self.block_rows, -(-hi // self.block_rows))


def rows_of_block(values: Rows) -> int:
    """How many rows of `values` make a block."""
    return max(1, BLOCK // _row_bytes(values))


def part_file(path: str, rows: Span, cols: Span | None, shape: Sequence[int]) -> str:
    """The file of a rectangle of the array `path`: `path.npy` for the whole, else what is cut is named."""
    spans = (("rows", rows), ("cols", cols or (0, 0)))
    cut = [
        f"{name}{span[0]}-{span[1]}" for (name, span), n in zip(spans, shape, strict=False) if span != (0, n)
    ]
    return f"{path}{'@' * bool(cut)}{'.'.join(cut)}.npy"


def write_parts(folder: Path, wanted: Sequence[tuple[str, Span, Span | None, Rows]]) -> list[Part]:
    """Write the values of each (file, rows, cols, values), durably -> the parts."""
    begun = [_begin(folder, *one) for one in wanted]
    values = [one[3] for one in wanted]
    blocks = [(i, number) for i, part in enumerate(begun) for number in part.blocks(part.rows)]
    sums = parallel_map(
        lambda block: _write_block(folder, begun[block[0]], values[block[0]], block[1]), blocks
    )
    parallel_map(lambda part: _flush(folder / part.file), begun)
    crc32 = [list(part.crc32) for part in begun]
    for (i, _), crc in zip(blocks, sums, strict=True):
        crc32[i].append(crc)
    return [replace(part, crc32=tuple(found)) for part, found in zip(begun, crc32, strict=True)]


class PartReader:
    """A part's file, for checked reading on any threads."""

    def __init__(self, folder: Path, part: Part, dtype: np.dtype[Any]):
        """CheckpointError unless the file is there, has its size, and begins as it was written."""
        self.path, self.part, self.dtype = folder / part.file, part, dtype
        with _reading(self.path):
            size = self.path.stat().st_size
        if size != part.size:
            raise CheckpointError(f"{self.path}: {size} bytes, wanted {part.size}; {DAMAGED}")
        self.row_bytes = part.shape[1] * dtype.itemsize
        self.header_bytes = size - part.shape[0] * self.row_bytes
        if part.crc32:
            self._check(self._read(0, np.empty(self.header_bytes, np.uint8)), part.crc32[0])

    def read(self, block: int, rectangle: Rectangle, out: Array) -> None:
        """Fill what a block has of `rectangle` of the table, where `out` (n, w) is that rectangle."""
        held = self.part.block(block), self.part.rectangle[1]
        shared = intersection(held, rectangle)
        if shared is None:
            return
        target = out[_inside(rectangle, shared)]
        if shared == held and target.flags.c_contiguous:
            self._read_block(block, target)
        else:
            target[...] = self._read_block(block)[_inside(held, shared)]

    def check(self, block: int) -> None:
        """CheckpointError unless a block is as it was written."""
        self._read_block(block)

    def check_whole(self, crc32: int) -> None:
        """CheckpointError unless `crc32` is that of the whole file."""
        found, buffer = 0, np.empty(BLOCK, np.uint8)
        for lo in range(0, self.part.size, BLOCK):
            found = self._read(lo, buffer[: self.part.size - lo], found)
        self._check(found, crc32)

    def _read_block(self, block: int, out: Array | None = None) -> Array:
        lo, hi = self.part.block(block)
        rows = np.empty((hi - lo, self.part.shape[1]), self.dtype) if out is None else out
        crc = self._read(self.header_bytes + (lo - self.part.rows[0]) * self.row_bytes, _bytes_of(rows))
        if self.part.crc32:
            self._check(crc, self.part.crc32[1 + block])
        return rows

    def _read(self, offset: int, out: Bytes, crc: int = 0) -> int:
        """Fill `out` with what stands at `offset` -> its CRC-32, continued from `crc`."""
        with _reading(self.path), open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            for piece in _pieces(out):
                filled = 0
                while filled < len(piece) and (got := file.readinto(piece[filled:].data)):
                    filled += got
                if filled < len(piece):
                    raise CheckpointError(f"{self.path}: ends early; {DAMAGED}")
                crc = zlib.crc32(piece.data, crc)
        return crc

    def _check(self, found: int, wanted: int) -> None:
        if found != wanted:
            raise CheckpointError(f"{self.path}: CRC-32 {found:08x}, wanted {wanted:08x}; {DAMAGED}")


def read_bytes(path: Path, size: int, crc32: int) -> bytes:
    """The content of a file. CheckpointError unless it has this size and CRC-32."""
    with _reading(path):
        data = path.read_bytes()
    if (len(data), zlib.crc32(data)) != (size, crc32):
        raise CheckpointError(
            f"{path}: {len(data)} bytes, CRC-32 {zlib.crc32(data):08x}, wanted {size}, {crc32:08x}; {DAMAGED}"
        )
    return data


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _begin(folder: Path, file: str, rows: Span, cols: Span | None, values: Rows) -> Part:
    """Make the file, with its header -> the part, without checksums of blocks."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, described | {"shape": values.shape})
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header.getvalue())
    size = header.tell() + values.shape[0] * _row_bytes(values)
    return Part(file, rows, cols, size, rows_of_block(values), (zlib.crc32(header.getvalue()),))


def _row_bytes(values: Rows) -> int:
    return values.dtype.itemsize * math.prod(values.shape[1:])


def _write_block(folder: Path, part: Part, values: Rows, number: int) -> int:
    """Write a block where it belongs -> its CRC-32."""
    lo, hi = (row - part.rows[0] for row in part.block(number))
    block = np.ascontiguousarray(values[lo:hi])
    after = (part.shape[0] - lo) * (block.nbytes // (hi - lo))
    crc = 0
    with open(folder / part.file, "r+b") as file:
        file.seek(part.size - after)
        for piece in _pieces(_bytes_of(block)):
            file.write(piece.data)
            crc = zlib.crc32(piece.data, crc)
    return crc


def _pieces(data: Bytes) -> Iterator[Bytes]:
    return (data[lo : lo + _PIECE] for lo in range(0, len(data), _PIECE))


def _bytes_of(array: Array) -> Bytes:
    """The memory of a C-contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8)


def _inside(whole: Rectangle, inner: Rectangle) -> tuple[slice, slice]:
    """Where `inner` is in an array that is `whole`."""
    (rows, cols), ((top, _), (left, _)) = inner, whole
    return slice(rows[0] - top, rows[1] - top), slice(cols[0] - left, cols[1] - left)


def _flush(path: Path) -> None:
    """Onto the disk; each rank sees to its own files, which another host could not."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
