"""What a table is, before it is one: its name, its size, who reads it, and the values it starts with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np


class TableError(ValueError):
    """A table that cannot be, or tables that cannot be together; the message names the table."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform in [-bound, bound); bound is 1/√num_embeddings unless given."""

    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Normal:
    """N(0, std²)."""

    std: float


@dataclass(frozen=True, slots=True)
class XavierNormal:
    """N(0, 2/(num_embeddings + embedding_dim)). Glorot & Bengio 2010, section 4.2.1."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Every element is `value`."""

    value: float


Init = Uniform | Normal | XavierNormal | Constant


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """A table of num_embeddings rows of width embedding_dim, read by the features `feature_names`.

    Ids run from 0 to num_embeddings - 1. init: see `Uniform`, `Normal`, `XavierNormal`, `Constant`; the
    values depend on the collection's seed, the table's name, and row and column, on nothing else.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: tuple[str, ...]
    _: KW_ONLY
    data_type: Literal["float32", "float64"] = "float32"
    init: Init = Uniform()

    def __post_init__(self) -> None:
        names = self.feature_names
        if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
            raise self._error("feature_names", names, "one or more names, ('user', …)")
        object.__setattr__(self, "feature_names", tuple(names))
        if len(set(names)) < len(names):
            raise self._error("feature_names", names, "distinct names")
        if not 1 <= self.num_embeddings < 2**32:
            raise self._error("num_embeddings", self.num_embeddings, "1 to 2³² - 1 rows")
        if self.embedding_dim < 1:
            raise self._error("embedding_dim", self.embedding_dim, "1 or more")
        if self.data_type not in ("float32", "float64"):
            raise self._error("data_type", self.data_type, "'float32' or 'float64'")
        if not isinstance(self.init, Init):
            raise self._error("init", self.init, "Uniform(), Normal(std), XavierNormal() or Constant(value)")

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """`data_type` as numpy names it."""
        return np.dtype(self.data_type)

    def _error(self, field: str, got: object, wanted: str) -> TableError:
        return TableError(f"table {self.name!r}: {field} is {got!r}, wanted {wanted}")


@dataclass(frozen=True, slots=True)
class EmbeddingBagConfig(EmbeddingConfig):
    """A table whose rows are pooled: each bag becomes the sum or the mean of its rows; an empty bag, zeros.

    With per-id weights, "sum" is Σ w·row and "mean" is that over the number of ids, not over Σ w.
    """

    pooling: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        EmbeddingConfig.__post_init__(self)  # no super(): slots make a new class
        if self.pooling not in ("sum", "mean"):
            raise self._error("pooling", self.pooling, "'sum' or 'mean'")


def check_tables(tables: Sequence[EmbeddingConfig]) -> None:
    """TableError unless there is a table, their names are distinct and they are of one data type."""
    if not tables:
        raise TableError("a collection needs at least one table")
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise TableError(f"table {next(n for n in names if names.count(n) > 1)!r} is given more than once")
    types = {table.data_type: table.name for table in tables}
    if len(types) > 1:
        given = ", ".join(f"{name!r} {data_type}" for data_type, name in types.items())
        raise TableError(f"tables of one collection are of one data_type, got {given}")
