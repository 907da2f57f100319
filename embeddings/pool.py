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
from tesserec.embeddings.config import Constant, EmbeddingConfig, Normal, Uniform, check_tables
from tesserec.embeddings.kernels import init as kernels

Array = npt.NDArray[Any]

_LINE = 64  # bytes: rows that begin where a cache line does cost one miss less
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

    bounds: (T + 1,) int64, the first row of each table, and R.
    """

    __slots__ = ("bounds", "tables")

    def __init__(self, tables: Sequence[EmbeddingConfig], *, seed: int):
        """Tables of one width and data type, filled as their `init` says; see `initialize`."""
        check_tables(tables)
        sizes = [table.num_embeddings for table in tables]
        self.bounds: npt.NDArray[np.int64] = np.cumsum([0, *sizes])
        firsts = self.bounds[:-1].tolist()
        self.tables = tuple(PoolTable(t, first) for t, first in zip(tables, firsts, strict=True))
        shape = int(self.bounds[-1]), tables[0].embedding_dim
        super().__init__(aligned(shape, tables[0].dtype, np.empty), requires_grad=True)
        for table in tables:
            initialize(self.table(table.name), table, seed=seed)

    def table(self, name: str) -> Array:
        """(num_embeddings, D) view of table `name`. KeyError if it is not here."""
        for table in self.tables:
            if table.config.name == name:
                return self.data[table.rows]
        raise KeyError(f"no table {name!r}; have {[table.config.name for table in self.tables]}")

    def __repr__(self) -> str:
        names = ", ".join(table.config.name for table in self.tables)
        return f"Pool(shape={self.shape}, dtype={self.dtype}, tables: {names})"


def initialize(rows: Array, table: EmbeddingConfig, *, seed: int, first_row: int = 0) -> None:
    """Fill `rows` (n, D), the rows of `table` from `first_row` on, with their first values.

    A value is a function of (seed, table name, row, column): neither the number of threads nor how rows are
    shared out changes it.
    """
    fill = _filler(table, seed)
    step = max(1, _PIECE // table.embedding_dim)
    parallel_map(lambda lo: fill(rows[lo : lo + step], first_row + lo), range(0, len(rows), step))


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


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any], allocate: Callable[..., Array]) -> Array:
    """`allocate(shape, dtype)`, beginning at a cache line. allocate: np.empty or np.zeros."""
    size, spare = int(np.prod(shape)), _LINE // dtype.itemsize
    memory = allocate(size + spare, dtype)
    skip = -memory.ctypes.data % _LINE // dtype.itemsize
    return memory[skip : skip + size].reshape(shape)
