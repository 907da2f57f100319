"""Pool: the tables of one width and data type, stacked in one matrix, so that one kernel serves them all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Tensor
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.allocation import aligned, is_planning
from tesserec.embeddings.config import Constant, DataType, EmbeddingConfig, Normal, Uniform, check_tables
from tesserec.embeddings.kernels import init as kernels
from tesserec.embeddings.kernels.lookup import pool_bags
from tesserec.embeddings.kernels.rows import load_rows, store_rows, stored

Array = npt.NDArray[Any]

_PIECE = 1 << 20  # elements filled by one task


@dataclass(frozen=True, slots=True)
class PoolTable:
    """A table and where it lies: rows first_row … first_row + num_embeddings - 1 of its pool."""

    config: EmbeddingConfig
    first_row: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.config.num_embeddings)


class Pool(Tensor):
    """The rows (R, D) of `tables`, one table after the other. Its gradient is always a RowGrad.

    bounds: (T + 1,) int64, the first row of each table, and R. data: of type `config.dtype`, so that bfloat16
    rows are uint16 bits; `data_type` says which. Outputs and gradients are of type `compute_dtype`.
    """

    __slots__ = ("bounds", "tables")

    def __init__(self, tables: Sequence[EmbeddingConfig], *, seed: int | None):
        """Tables of one width and data type, filled as `initialize` says if there is a seed."""
        check_tables(tables)
        sizes = [table.num_embeddings for table in tables]
        self.bounds: npt.NDArray[np.int64] = np.cumsum([0, *sizes])
        firsts = self.bounds[:-1].tolist()
        self.tables = tuple(PoolTable(t, first) for t, first in zip(tables, firsts, strict=True))
        shape = int(self.bounds[-1]), tables[0].embedding_dim
        dtype = tables[0].dtype
        super().__init__(aligned(shape, dtype, np.empty), requires_grad=True, dtype=dtype)
        if seed is not None and not is_planning():
            for table in tables:
                initialize(self.table(table.name), table, seed=seed)

    @property
    def data_type(self) -> DataType:
        """How rows are stored: "float32", "float64", "float16" or "bfloat16"."""
        return self.tables[0].config.data_type

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """The type of outputs, gradients and optimizer state."""
        return self.tables[0].config.compute_dtype

    def table(self, name: str) -> Array:
        """(num_embeddings, D) view of table `name`. KeyError if it is not here."""
        for table in self.tables:
            if table.config.name == name:
                return self.data[table.rows]
        raise KeyError(f"no table {name!r}; have {[table.config.name for table in self.tables]}")

    @property
    def stored(self) -> Array:
        """(R, D) `data` as kernels take it that read and write single rows; see `kernels/rows.py`."""
        rows: Array = stored(self.data)
        return rows

    def pool_bags(self, lanes: Array, lo: int, hi: int, out: Array) -> None:
        """Write bags lo … hi-1 of every lane to its columns of `out` (B, ΣD); see `kernels/lookup.py`."""
        pool_bags(self.stored, lanes, lo, hi, out)

    def values(self, rows: slice) -> Array:
        """(n, D) of type `compute_dtype`: a copy of some rows, as the numbers that they stand for."""
        stack = self.stored[rows]
        values = np.empty((len(stack), self.tables[0].config.embedding_dim), self.compute_dtype)
        load_rows(stack, values)
        return values

    def __repr__(self) -> str:
        names = ", ".join(table.config.name for table in self.tables)
        return f"Pool(shape={self.shape}, dtype={self.data_type}, tables: {names})"


def initialize(rows: Array, table: EmbeddingConfig, *, seed: int, first_row: int = 0) -> None:
    """Fill `rows` (n, D), the rows of `table` from `first_row` on, with their first values.

    A value is a function of (seed, table name, row, column): neither the number of threads nor how rows are
    shared out changes it. float16 and bfloat16 rows hold the nearest they can to the float32 values.
    """
    fill = _filler(table, seed)
    step = max(1, _PIECE // table.embedding_dim)

    def fill_piece(lo: int) -> None:
        piece = rows[lo : lo + step]
        if rows.dtype.kind == "f" and rows.itemsize >= 4:
            fill(piece, first_row + lo)
        else:
            values = np.empty(piece.shape, np.float32)
            fill(values, first_row + lo)
            store_rows(values, stored(piece))

    parallel_map(fill_piece, range(0, len(rows), step))


def _filler(table: EmbeddingConfig, seed: int) -> Callable[[Array, int], None]:
    """fill(rows, their first row)."""
    init, key = table.init, stream_key(seed, table.name)
    if isinstance(init, Constant):
        return lambda rows, first: rows.fill(init.value)
    if isinstance(init, Uniform):
        bound = table.num_embeddings**-0.5 if init.bound is None else init.bound
        return lambda rows, first: kernels.fill_uniform(rows, key, first, bound)
    xavier = (2 / (table.num_embeddings + table.embedding_dim)) ** 0.5
    std = init.std if isinstance(init, Normal) else xavier
    return lambda rows, first: kernels.fill_normal(rows, key, first, std)


def stream_key(seed: int, name: str) -> np.uint64:
    """64 bits that name the random stream of a table."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
