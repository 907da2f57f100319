"""Tables on disk: written block by block, mapped into memory, and checked by reading them.

A file is a .npy array and 64 bytes, since kernels of integer codes read past the last row. Processes that map
it share one copy of it in memory: the system's cache of the file. A process that writes to a row gets a copy
of that page for itself; nothing goes back to the file.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.allocation import LINE
from tesserec.embeddings.pool import Rows
from tesserec.serve.manifest import AGAIN, ArtefactError, PoolFile, reading, sum_of

BLOCK = 1 << 24
_MAP_NORESERVE = 0x4000  # Linux's: pages that are never written need no room in swap
_MADV_POPULATE_READ = 22  # Linux's, from 5.14 on

Array = npt.NDArray[Any]


def write_rows(path: Path, rows: Rows) -> tuple[int, int, int, tuple[int, ...]]:
    """Write (R, D) rows -> `offset`, `size`, `block_bytes` and `crc32` of their `PoolFile`."""
    sums: list[int] = []
    filled = crc = 0
    with open(path, "wb") as file:
        for data in _bytes_of(rows):
            file.write(data)
            while data:
                piece = data[: BLOCK - filled]
                data, filled, crc = data[len(piece) :], filled + len(piece), zlib.crc32(piece, crc)
                if filled == BLOCK:
                    sums.append(crc)
                    filled = crc = 0
        size = file.tell()
    return len(_header(rows)), size, BLOCK, (*sums, crc) if filled else tuple(sums)


def map_file(path: Path, size: int) -> mmap.mmap:
    """The bytes of a file; writable, but only for this process. ArtefactError unless it has this size."""
    flags, access = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise ArtefactError(f"{path}: {found} bytes, wanted {size}; {AGAIN}")
            return mmap.mmap(file.fileno(), size, flags=flags, prot=access)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be mapped: {error.strerror}; {AGAIN}") from None


def map_rows(path: Path, described: PoolFile) -> Array:
    """(R, D) the rows of a file, none of which is read yet; writable, but only for this process.

    ArtefactError unless the file has the size and the array that are `described`.
    """
    mapped = map_file(path, described.size)
    rows = np.frombuffer(
        mapped, described.dtype, described.nbytes // int(described.dtype[2:]), described.offset
    )
    rows = rows.reshape(described.shape)
    if mapped[: described.offset] != _header(rows):
        raise ArtefactError(f"{path}: not the array of {described.shape} that was written; {AGAIN}")
    return rows


def populate(rows: Array, stop: Callable[[], bool]) -> None:
    """Bring mapped rows to where no request has to wait for them: a page that is first touched costs more
    than the row in it. Before each block, `stop` ends it. Does nothing where the system cannot.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    first, last = rows.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE, rows.ctypes.data + rows.nbytes
    for at in range(first, last, BLOCK):
        if madvise is None or stop():
            return
        size = ctypes.c_size_t(min(BLOCK, last - at))
        if madvise(ctypes.c_void_p(at), size, _MADV_POPULATE_READ):  # lets go of the interpreter meanwhile
            return


def verify_rows(
    path: Path, described: PoolFile, each: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    """Read a file, a block at a time. ArtefactError for one that is not as it was written.

    each: called with the bytes of every block that was read; before one, `stop` ends it.
    """
    with reading(path) as file:
        for number, wanted in enumerate(described.crc32):
            if stop():
                return
            size = min(described.block_bytes, described.size - number * described.block_bytes)
            found = sum_of(file, size)
            if found != wanted:
                where = f"block {number}, of tables {', '.join(described.tables_of(number))}"
                raise ArtefactError(f"{path}: {where}: CRC-32 {found:08x}, wanted {wanted:08x}; {AGAIN}")
            each(size)


def _bytes_of(rows: Rows) -> Iterator[memoryview]:
    """The file, in pieces of about a block."""
    yield memoryview(_header(rows))
    step = max(1, BLOCK // (rows.shape[1] * rows.dtype.itemsize))
    for lo in range(0, rows.shape[0], step):
        yield np.ascontiguousarray(rows[lo : lo + step]).reshape(-1).view(np.uint8).data
    yield memoryview(bytes(LINE))


def _header(rows: Rows) -> bytes:
    """What a .npy file begins with: a multiple of 64 bytes, so that rows are as aligned as in memory."""
    header = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": rows.shape,
    }
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()
