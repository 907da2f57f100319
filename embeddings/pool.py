"""Pool: the tables of one width and data type, stacked in one matrix, so that one kernel serves them all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Tensor
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.allocation import aligned, is_planning, planning
from tesserec.embeddings.config import (
    Constant,
    DataType,
    EmbeddingConfig,
    Normal,
    TableError,
    Uniform,
    check_tables,
)
from tesserec.embeddings.kernels import init as kernels
from tesserec.embeddings.kernels.lookup import pool_bags
from tesserec.embeddings.kernels.rows import load_rows, store_rows, stored
from tesserec.embeddings.spans import Span

Array = npt.NDArray[Any]

_PIECE = 1 << 20  # elements filled by one task


class Rows(Protocol):
    """What gives arrays when it is cut by rows: an array, or something that makes them when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """A rectangle of a table, which is all of the table that a pool has: `rows` by `cols`, half-open."""

    table: EmbeddingConfig
    rows: Span
    cols: Span

    @classmethod
    def whole(cls, table: EmbeddingConfig) -> Self:
        """All of `table`."""
        return cls(table, (0, table.num_embeddings), (0, table.embedding_dim))

    @property
    def config(self) -> EmbeddingConfig:
        """The rectangle as a table of its own: its ids begin at 0, and are not looked at again."""
        if self == Origin.whole(self.table):
            return self.table
        (top, bottom), (left, right) = self.rows, self.cols
        return replace(
            self.table,
            name=f"{self.table.name}[{top}:{bottom}, {left}:{right}]",
            num_embeddings=bottom - top,
            embedding_dim=right - left,
            unseen="error",
        )


@dataclass(frozen=True, slots=True)
class PoolTable:
    """A table and where it lies: rows first_row … first_row + num_embeddings - 1 of its pool.

    origin: the rectangle of a table that it is; of `config` itself unless the table is sharded.
    """

    config: EmbeddingConfig
    first_row: int
    origin: Origin

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.config.num_embeddings)


class Pool(Tensor):
    """The rows (R, D) of `tables`, one table after the other. Its gradient is always a RowGrad.

    bounds: (T + 1,) int64, the first row of each table, and R. data: of type `config.dtype`, so that bfloat16
    rows are uint16 bits; `data_type` says which. Outputs and gradients are of type `compute_dtype`.
    """

    __slots__ = ("bounds", "is_sharded", "tables")

    def __init__(
        self,
        tables: Sequence[EmbeddingConfig],
        *,
        seed: int | None,
        origins: Sequence[Origin] | None = None,
    ):
        """Tables of one width and data type, filled as `initialize` says if there is a seed.

        origins: where `tables` are rectangles of other tables, which ones; `tables` are then their `config`.
        The pool then `is_sharded`: what its collection has beside them is elsewhere.
        """
        check_tables(tables)
        self.is_sharded = origins is not None
        origins = [Origin.whole(table) for table in tables] if origins is None else origins
        sizes = [table.num_embeddings for table in tables]
        self.bounds: npt.NDArray[np.int64] = np.cumsum([0, *sizes])
        firsts = self.bounds[:-1].tolist()
        self.tables = tuple(PoolTable(*item) for item in zip(tables, firsts, origins, strict=True))
        shape = int(self.bounds[-1]), tables[0].embedding_dim
        dtype = tables[0].dtype
        super().__init__(aligned(shape, dtype, np.empty), requires_grad=True, dtype=dtype)
        if seed is not None and not is_planning():
            for table in self.tables:
                initialize(self.data[table.rows], table.origin, seed=seed)

    @classmethod
    def over(cls, tables: Sequence[EmbeddingConfig], rows: Array) -> Pool:
        """The pool of `tables` whose data are `rows` (R, D), not copied, without gradients."""
        with planning():
            pool = Pool(tables, seed=None)
        if (rows.shape, rows.dtype) != (pool.shape, pool.dtype):
            raise TableError(
                f"{pool}: its rows are {rows.shape} {rows.dtype}, wanted {pool.shape} {pool.dtype}"
            )
        pool.data, pool.requires_grad = rows, False
        return pool

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

    def values(self, rows: slice | npt.NDArray[np.int64]) -> Array:
        """(n, D) of type `compute_dtype`: a copy of some rows, as the numbers that they stand for."""
        stack = self.stored[rows]
        values = np.empty((len(stack), self.tables[0].config.embedding_dim), self.compute_dtype)
        load_rows(stack, values)
        return values

    def as_stored(self, values: Array) -> Array:
        """`values` (n, D) as rows of `data`, each the nearest that they can hold."""
        rows = np.empty(values.shape, self.data.dtype)
        store_rows(values.astype(self.compute_dtype, copy=False), stored(rows))
        return rows

    def __repr__(self) -> str:
        names = ", ".join(table.config.name for table in self.tables)
        return f"Pool(shape={self.shape}, dtype={self.data_type}, tables: {names})"


def initialize(rows: Array, origin: Origin, *, seed: int) -> None:
    """Fill `rows` (n, D), the rectangle `origin` of a table, with their first values.

    A value is a function of (seed, table name, row, column) in that table: neither the number of threads nor
    how the table is shared out changes it. float16 and bfloat16 rows hold the nearest they can to the float32
    values.
    """
    fill, first_row = _filler(origin, seed), origin.rows[0]
    step = max(1, _PIECE // rows.shape[1])

    def fill_piece(lo: int) -> None:
        piece = rows[lo : lo + step]
        if rows.dtype.kind == "f" and rows.itemsize >= 4:
            fill(piece, first_row + lo)
        else:
            values = np.empty(piece.shape, np.float32)
            fill(values, first_row + lo)
            store_rows(values, stored(piece))

    parallel_map(fill_piece, range(0, len(rows), step))


def _filler(origin: Origin, seed: int) -> Callable[[Array, int], None]:
    """fill(rows, the first one's number in the table)."""
    table, column = origin.table, origin.cols[0]
    init, key = table.init, stream_key(seed, table.name)
    if isinstance(init, Constant):
        return lambda rows, first: rows.fill(init.value)
    if isinstance(init, Uniform):
        bound = table.num_embeddings**-0.5 if init.bound is None else init.bound
        return lambda rows, first: kernels.fill_uniform(rows, key, first, column, bound)
    xavier = (2 / (table.num_embeddings + table.embedding_dim)) ** 0.5
    std = init.std if isinstance(init, Normal) else xavier
    return lambda rows, first: kernels.fill_normal(rows, key, first, column, std)


def stream_key(seed: int, name: str) -> np.uint64:
    """64 bits that name the random stream of a table."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
