"""What a table is, before it is one: its name, its size, who reads it, and the values it starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, get_args

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
DataType = Literal["float32", "float64", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Clamp:
    """An unseen id is read as `row`, which the table keeps for them."""

    row: int


@dataclass(frozen=True, slots=True)
class Hash:
    """An unseen id is read as the row that a hash of it names."""


@dataclass(frozen=True, slots=True)
class Drop:
    """An unseen id is taken out of its bag."""


Unseen = Literal["error"] | Clamp | Hash | Drop  # what becomes of an id outside the table


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """A table of num_embeddings rows of width embedding_dim, read by the features `feature_names`.

    Ids run from 0 to num_embeddings - 1. init: see `Uniform`, `Normal`, `XavierNormal`, `Constant`; the
    values depend on the collection's seed, the table's name, and row and column, on nothing else.
    unseen: what becomes of other ids, for all features or {feature: …}: "error" (InvalidIdError), also where
    nothing is said, `Clamp(row)`, `Hash()` or `Drop()`. The collection counts them, see `unseen_ids`.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: tuple[str, ...]
    _: KW_ONLY
    data_type: DataType = "float32"
    init: Init = Uniform()
    unseen: Unseen | Mapping[str, Unseen] = field(default="error", hash=False)

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
        if self.data_type not in get_args(DataType):
            raise self._error("data_type", self.data_type, f"one of {', '.join(get_args(DataType))}")
        if not isinstance(self.init, Init):
            raise self._error("init", self.init, "Uniform(), Normal(std), XavierNormal() or Constant(value)")
        self._check_unseen()

    def unseen_policy(self, feature: str) -> Unseen:
        """What becomes of ids of `feature` that are outside the table."""
        return self.unseen.get(feature, "error") if isinstance(self.unseen, Mapping) else self.unseen

    def _check_unseen(self) -> None:
        policies = self.unseen if isinstance(self.unseen, Mapping) else {"": self.unseen}
        if isinstance(self.unseen, Mapping) and not policies.keys() <= set(self.feature_names):
            raise self._error("unseen", dict(self.unseen), f"keys among {', '.join(self.feature_names)}")
        for policy in policies.values():
            if policy != "error" and not isinstance(policy, Clamp | Hash | Drop):
                raise self._error("unseen", policy, "'error', Clamp(row), Hash() or Drop()")
            if isinstance(policy, Clamp) and not 0 <= policy.row < self.num_embeddings:
                raise self._error("unseen", policy, f"a row from 0 to {self.num_embeddings - 1}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type that rows are stored as; bfloat16, which numpy lacks, as its bits in uint16."""
        return np.dtype("uint16" if self.data_type == "bfloat16" else self.data_type)

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """Numpy type of outputs, gradients and optimizer state: float64 for float64 rows, else float32."""
        return np.dtype("float64" if self.data_type == "float64" else "float32")

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
    """TableError unless there is a table, their names are distinct and outputs would be of one type."""
    if not tables:
        raise TableError("a collection needs at least one table")
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise TableError(f"table {next(n for n in names if names.count(n) > 1)!r} is given more than once")
    if len({table.compute_dtype for table in tables}) > 1:
        given = ", ".join(f"{table.name!r} {table.data_type}" for table in tables)
        raise TableError(f"float64 tables of a collection cannot be beside others, got {given}")
