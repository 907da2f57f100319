"""Checkpoints under another plan, and tables as files of their own: read block by block, written as it comes.

Any checkpoint loads under any plan, so training never needs this. But a checkpoint whose rectangles are those
of the plan is read with no byte in vain, and a table in one file is good for other tools.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tesserec.dataio.atomic import atomic_file
from tesserec.dataio.config import did_you_mean
from tesserec.embeddings.pool import Rows
from tesserec.sharding.plan import Shape, ShardingPlan, Span
from tesserec.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    Content,
    Rect,
    array_path,
    save_checkpoint,
    table_of,
)
from tesserec.train.parts import Array, rows_of_block, write_parts

BFLOAT16 = np.dtype("uint16")  # as the bits of which tables of it are stored


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A rectangle of an array in a checkpoint; cut by rows it is read, and checked."""

    checkpoint: Checkpoint
    path: str
    rows: Span
    cols: Span | None

    @classmethod
    def whole(cls, checkpoint: Checkpoint, path: str) -> StoredRows:
        """All of the array at `path`."""
        shape = checkpoint.arrays[path].shape
        return cls(checkpoint, path, (0, shape[0]), (0, shape[1]) if len(shape) > 1 else None)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(span[1] - span[0] for span in (self.rows, self.cols) if span)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.checkpoint.arrays[self.path].dtype

    def __getitem__(self, rows: slice, /) -> Array:
        lo, hi, _ = rows.indices(self.shape[0])
        out = np.empty((hi - lo, *self.shape[1:]), self.dtype)
        span = self.rows[0] + lo, self.rows[0] + hi
        shape = self.checkpoint.arrays[self.path].shape
        self.checkpoint.fill([(self.path, Rect(out, span, self.cols, shape))])
        return out


@dataclass(frozen=True, slots=True)
class _Widened:
    """bfloat16 rows, which few tools know, as float32."""

    rows: Rows
    dtype = np.dtype("float32")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __getitem__(self, rows: slice, /) -> Array:
        return (self.rows[rows].astype(np.uint32) << 16).view(np.float32)


def table_shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """{table: (R, D)} of a checkpoint, as `ShardingPlan.check` and `make_plan` take them."""
    tables = {table_of(p): a.shape for p, a in checkpoint.arrays.items() if p.startswith("tables/")}
    return {table: (shape[0], shape[1]) for table, shape in tables.items()}


def reshard(checkpoint: Checkpoint, plan: ShardingPlan, output: Path) -> None:
    """Write `checkpoint` to the folder `output`, with the rectangles of `plan`; PlanError if it does not fit.

    Takes the memory of a few blocks for each thread, however large the tables are.
    """
    plan.check(table_shapes(checkpoint))
    arrays = {path: list(_rects(checkpoint, plan, path)) for path in checkpoint.arrays}
    save_checkpoint(output, Content(checkpoint.state(), checkpoint.dense(), arrays))


def export_table(checkpoint: Checkpoint, table: str, output: Path) -> str:
    """Write a table to `output`, .npy, .parquet or .safetensors -> its full name.

    table: its name in the model's state, or its own, where there is one of it. Parquet has columns `id` and
    `vector`. bfloat16 stays so in safetensors only; in the others it becomes float32.
    """
    if output.suffix not in _WRITERS:
        raise CheckpointError(f"{output}: the name must end in one of {', '.join(_WRITERS)}")
    name = find_table(checkpoint, table)
    rows = StoredRows.whole(checkpoint, array_path("tables", name))
    with atomic_file(output) as temporary:
        _WRITERS[output.suffix](temporary, name, rows)
    return name


def find_table(checkpoint: Checkpoint, table: str) -> str:
    """The full name of the table called `table`, in full or for short. CheckpointError for none, or two."""
    names = list(table_shapes(checkpoint))
    if table in names:
        return table
    found = [name for name in names if name.endswith(f".{table}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{checkpoint.path}: table {table!r} may be any of {', '.join(found)}")
    raise CheckpointError(f"{checkpoint.path}: no table {table!r}{did_you_mean(table, names)}")


def _rects(checkpoint: Checkpoint, plan: ShardingPlan, path: str) -> Iterator[Rect]:
    """The rectangles of an array; what is known of whole rows goes with their first columns."""
    shape = checkpoint.arrays[path].shape
    for rows, cols in plan.rectangles(table_of(path)):
        if len(shape) == 2:
            yield Rect(StoredRows(checkpoint, path, rows, cols), rows, cols, shape)
        elif cols[0] == 0:
            yield Rect(StoredRows(checkpoint, path, rows, None), rows, None, shape)


def _write_npy(path: Path, name: str, rows: StoredRows) -> None:
    values = _Widened(rows) if rows.dtype == BFLOAT16 else rows
    write_parts(path.parent, [(path.name, rows.rows, rows.cols, values)])


def _write_parquet(path: Path, name: str, rows: StoredRows) -> None:
    values = _Widened(rows) if rows.dtype == BFLOAT16 else rows
    vector = pa.list_(pa.from_numpy_dtype(values.dtype), rows.shape[1])
    schema = pa.schema({"id": pa.int64(), "vector": vector}, metadata={"table": name})
    with pq.ParquetWriter(path, schema, use_dictionary=False) as file:
        for lo, block in _blocks(values):
            ids, vectors = np.arange(lo, lo + len(block)), pa.array(block.reshape(-1))
            columns = [pa.array(ids), pa.FixedSizeListArray.from_arrays(vectors, type=vector)]
            file.write_table(pa.table(columns, schema=schema))


def _write_safetensors(path: Path, name: str, rows: StoredRows) -> None:
    """The format is the length of a JSON header, padded to whole words, the header, and the bytes."""
    kind = "BF16" if rows.dtype == BFLOAT16 else f"F{rows.dtype.itemsize * 8}"
    size = math.prod(rows.shape) * rows.dtype.itemsize
    described = json.dumps({name: {"dtype": kind, "shape": rows.shape, "data_offsets": [0, size]}}).encode()
    header = described + b" " * (-len(described) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, block in _blocks(rows):
            file.write(block.data)


def _blocks(rows: Rows) -> Iterator[tuple[int, Array]]:
    step = rows_of_block(rows)
    return ((lo, rows[lo : lo + step]) for lo in range(0, rows.shape[0], step))


_WRITERS: dict[str, Callable[[Path, str, StoredRows], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
