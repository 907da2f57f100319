"""Tables for inference, in a fraction of the memory: integers of 8, 4 or 2 bits, or half-precision floats.

A row of integers is codes with a scale and a bias of its own; a value is scale·code + bias. Lookups pool the
codes themselves: no row is ever widened in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.allocation import LINE, aligned
from tesserec.embeddings.collection import named_collections
from tesserec.embeddings.config import TableError
from tesserec.embeddings.kernels import quantize as kernels
from tesserec.embeddings.kernels.codes import GROUP, HEADER
from tesserec.embeddings.kernels.rows import store_rows
from tesserec.embeddings.pool import Pool

Array = npt.NDArray[Any]
AnyModule = TypeVar("AnyModule", bound=Module)
FloatType = Literal["float32", "float16", "bfloat16"]
QuantizedType = Literal["int8", "int4", "int2", FloatType]

BITS: Mapping[str, int] = {"int8": 8, "int4": 4, "int2": 2}
_PIECE = 1 << 20  # elements that one task converts
_KERNELS = {8: kernels.pool_bags_8, 4: kernels.pool_bags_4, 2: kernels.pool_bags_2}


class QuantizedPool(Pool):
    """The rows of a pool as `bits`-bit codes: data (R, stride) uint8. It is read, never trained."""

    __slots__ = ("bits",)

    def __init__(self, pool: Pool, bits: int):
        """TableError for a row with a value that is not finite."""
        shape = len(pool), row_bytes(pool.tables[0].config.embedding_dim, bits)
        size = shape[0] * shape[1] + LINE  # kernels read past the last row
        memory = aligned((size,), np.dtype(np.uint8), np.empty)
        self._take(pool, memory[:-LINE].reshape(shape), bits)
        parallel_map(lambda rows: self._fill(pool, rows), list(_pieces(pool)))

    @classmethod
    def over_codes(cls, pool: Pool, codes: Array, bits: int) -> QuantizedPool:
        """The tables of `pool`, with rows that are `codes`: (R, stride) uint8, not copied.

        Behind the last row there are LINE more bytes that may be read.
        """
        wanted = len(pool), row_bytes(pool.tables[0].config.embedding_dim, bits)
        if codes.shape != wanted or codes.dtype != np.uint8:
            raise TableError(f"{pool}: its codes are {codes.shape} {codes.dtype}, wanted {wanted} uint8")
        made = cls.__new__(cls)
        made._take(pool, codes, bits)
        return made

    def _take(self, pool: Pool, codes: Array, bits: int) -> None:
        self.bounds, self.tables, self.is_sharded, self.bits = pool.bounds, pool.tables, pool.is_sharded, bits
        Tensor.__init__(self, codes, dtype=np.uint8)

    def _fill(self, pool: Pool, rows: slice) -> None:
        values = pool.values(rows).astype(np.float32, copy=False)
        bad = kernels.quantize_rows(values, self.bits, self.data[rows])
        if bad >= 0:
            row = rows.start + bad
            table = next(table for table in reversed(self.tables) if table.first_row <= row)
            raise TableError(
                f"table {table.config.name!r}: row {row - table.first_row} cannot be quantized: it has a "
                "value that is not finite, or is beyond ±1e38"
            )

    @property
    def data_type(self) -> Any:
        """How rows are stored: "int8", "int4" or "int2"."""
        return f"int{self.bits}"

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """The type of outputs."""
        return np.dtype(np.float32)

    @property
    def stored(self) -> Array:
        """There are no such rows. TypeError."""
        raise TypeError("quantized tables are for inference, without gradients: compute inside no_grad()")

    def pool_bags(self, lanes: Array, lo: int, hi: int, out: Array) -> None:
        _KERNELS[self.bits](self.data, self.tables[0].config.embedding_dim, lanes, lo, hi, out)

    def values(self, rows: slice | npt.NDArray[np.int64]) -> Array:
        codes = self.data[rows]
        values = np.empty((len(codes), self.tables[0].config.embedding_dim), np.float32)
        kernels.dequantize_rows(codes, self.bits, values)
        return values

    def as_stored(self, values: Array) -> Array:
        """`values` (n, D) as rows of `data`. TableError for one with a value that is not finite."""
        rows = np.empty((len(values), self.data.shape[1]), np.uint8)
        bad = kernels.quantize_rows(values.astype(np.float32, copy=False), self.bits, rows)
        if bad >= 0:
            raise TableError(f"a row cannot be quantized: it has a value beyond ±1e38: {values[bad]}")
        return rows


def row_bytes(width: int, bits: int) -> int:
    """Bytes of a row of `width` codes: header, codes, and up to 3 to make it a multiple of 4."""
    full, rest = divmod(width, GROUP)
    return -(-(HEADER + full * 2 * bits + min(rest, 2 * bits)) // 4) * 4


def quantize(model: AnyModule, data_type: QuantizedType) -> AnyModule:
    """A copy of a model, or of a collection, whose tables are stored as `data_type`, for inference.

    It is in evaluation mode and gives what `model` would, if its tables held what `data_type` can hold.
    Tables so narrow that integers would not be smaller than float32 are float32. The copy shares nothing
    with `model`. TableError for a row with a value that is not finite.
    """
    if data_type not in get_args(QuantizedType):
        raise TableError(f"data_type is {data_type!r}, wanted one of {', '.join(get_args(QuantizedType))}")
    pools = (pool for _, collection in named_collections(model) for pool in collection.pools)
    return with_pools(model, {pool: _converted(pool, data_type) for pool in pools})


def with_pools(model: AnyModule, pools: Mapping[Pool, Pool]) -> AnyModule:
    """A copy of a model in evaluation mode that has other pools in place of its own, {its own: the other}.

    The tables are the same ones, stored in whatever way. It shares nothing else with `model`.
    """
    memo: dict[int, Any] = {id(pool): other for pool, other in pools.items()}
    return copy.deepcopy(model, memo).eval()


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the values of a table are from those of another one.

    max: the greatest difference. rms: its root mean square. relative: that over the root mean square of the
    values. row_bytes: of the table, and before.
    """

    table: str
    data_type: str
    num_embeddings: int
    embedding_dim: int
    row_bytes: int
    row_bytes_before: int
    max: float
    rms: float
    relative: float


def deviations(model: Module, converted: Module) -> list[Deviation]:
    """For each table of `converted`, `model` by `quantize`: its size, and how far off its values are."""
    pairs = zip(named_collections(model), named_collections(converted), strict=True)
    return [
        _deviation(prefix + table.config.name, a, b, table.rows)
        for (prefix, before), (_, after) in pairs
        for a, b in zip(before.pools, after.pools, strict=True)
        for table in a.tables
    ]


def _deviation(name: str, before: Pool, after: Pool, rows: slice) -> Deviation:
    def compare(piece: slice) -> tuple[float, float, float]:
        wanted = before.values(piece).astype(np.float64)
        off = after.values(piece) - wanted
        return float(np.abs(off).max()), float(np.square(off).sum()), float(np.square(wanted).sum())

    greatest, squares, total = zip(*parallel_map(compare, list(_pieces(before, rows))), strict=True)
    width = before.tables[0].config.embedding_dim
    count = (rows.stop - rows.start) * width
    return Deviation(
        name,
        after.data_type,
        rows.stop - rows.start,
        width,
        after.data.strides[0],
        before.data.strides[0],
        max(greatest),
        (sum(squares) / count) ** 0.5,
        (sum(squares) / sum(total)) ** 0.5 if sum(total) else 0.0,
    )


def _converted(pool: Pool, data_type: QuantizedType) -> Pool:
    if data_type == "float32" or data_type == "float16" or data_type == "bfloat16":
        return _cast(pool, data_type)
    width, bits = pool.tables[0].config.embedding_dim, BITS[data_type]
    return QuantizedPool(pool, bits) if row_bytes(width, bits) < 4 * width else _cast(pool, "float32")


def _cast(pool: Pool, data_type: FloatType) -> Pool:
    """The pool as floats of another type, each value rounded to the nearest."""
    tables = [replace(table.config, data_type=data_type) for table in pool.tables]
    result = Pool(tables, seed=None)
    result.requires_grad = False
    rows = result.stored
    parallel_map(lambda piece: store_rows(pool.values(piece), rows[piece]), list(_pieces(pool)))
    return result


def _pieces(pool: Pool, rows: slice | None = None) -> Iterator[slice]:
    """`rows`, all unless given, in pieces that are worth a task of their own."""
    start, stop = (rows.start, rows.stop) if rows else (0, len(pool))
    step = max(1, _PIECE // pool.tables[0].config.embedding_dim)
    return (slice(lo, min(lo + step, stop)) for lo in range(start, stop, step))
