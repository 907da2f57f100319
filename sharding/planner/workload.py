"""Workload: what a training step has to do, as plain numbers; no model and no data are needed to write one.

A workload file, the YAML of a `WorkloadFile`, stands for tables that have no data yet:

    batch_size: 65536
    tables:
      - {name: user, rows: 200_000_000, dim: 128, zipf: 1.05}
      - {name: item, rows: 1_000_000, dim: 64, length: 20, count: 10}     # a family: item.0 … item.9
    dense: {parameters: 3_000_000, flops: 6_000_000}
    optimizer: rowwise_adagrad
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le, MinLen

from tesserec.embeddings import row_optim
from tesserec.sharding.codecs import Name as CodecName
from tesserec.sharding.plan import Shape
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.grids import STRICT

DataType = Literal["float32", "float64", "float16", "bfloat16"]
ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}

Positive = Annotated[int, Gt(0)]
Numbers = npt.NDArray[np.float64]


class WorkloadError(ValueError):
    """A workload that cannot be. args: the message, then the path of the key that is wrong."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature that reads a table: how many ids its bags have, and which."""

    name: str
    lengths: Lengths
    frequencies: Frequencies


@dataclass(frozen=True, eq=False)
class Table:
    """A table, by its name in plans ("inputs.vectors.C1"), and the features that read it.

    pooled: a bag becomes one vector; else every id does. mean: the one vector is a mean, not a sum.
    """

    name: str
    rows: int
    dim: int
    data_type: DataType = "float32"
    _: KW_ONLY
    pooled: bool = True
    mean: bool = False
    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        for feature in self.features:
            if abs(feature.frequencies.rows - self.rows) > 1e-6 * self.rows:
                raise WorkloadError(
                    f"table {self.name!r} has {self.rows} rows, but the frequencies of {feature.name!r} are "
                    f"of {feature.frequencies.rows:.0f}: use frequencies.resized({self.rows})"
                )

    @property
    def shape(self) -> Shape:
        """(R, D)."""
        return self.rows, self.dim

    @property
    def item_bytes(self) -> int:
        """Of an element as it is stored."""
        return ITEM_BYTES[self.data_type]

    @property
    def compute_bytes(self) -> int:
        """Of an element of vectors, gradients and optimizer state: half types are computed in float32."""
        return max(4, self.item_bytes)

    @cached_property
    def mean_length(self) -> float:
        """Ids of a sample, of all features."""
        return sum(feature.lengths.mean for feature in self.features)

    @property
    def vectors(self) -> float:
        """Of a sample: one for each feature, or for each id."""
        return float(len(self.features)) if self.pooled else self.mean_length

    @cached_property
    def frequencies(self) -> Frequencies:
        """Those of all features together."""
        if len(self.features) == 1:
            return self.features[0].frequencies
        return Frequencies.mixed([(f.lengths.mean, f.frequencies) for f in self.features])


@dataclass(frozen=True)
class RowOptimizer:
    """What a row optimizer keeps: `element_slots` numbers for each element of a row, `row_slots` for the row.

    whole_rows: its formula looks at whole rows, so those that hold some columns have to tell the others:
    `told_slots` numbers for each column, the gradient among them.
    """

    name: str = "rowwise_adagrad"
    element_slots: int = 0
    row_slots: int = 1
    told_slots: int = 1

    @property
    def whole_rows(self) -> bool:
        return self.told_slots > 0

    def row_bytes(self, width: Numbers | int, itemsize: int = 4) -> Any:
        """State of one row of `width` columns, whose numbers have `itemsize` bytes."""
        return itemsize * (self.element_slots * width + self.row_slots)

    @classmethod
    def of(cls, name: str, made: row_optim.RowOptimizer) -> RowOptimizer:
        """What the engine's own optimizer keeps, with the options that it was made with."""
        rows = len(made.row_slots)
        return cls(name, len(made.slots) - rows, rows, len(made.looks_at()))

    @classmethod
    def named(cls, name: str) -> RowOptimizer:
        """The one of `ROW_OPTIMIZERS`, with its usual options. KeyError where there is none."""
        kinds: Mapping[str, Callable[..., row_optim.RowOptimizer]] = row_optim.ROW_OPTIMIZERS
        return cls.of(name, kinds[name]([], lr=1.0))


@dataclass(frozen=True)
class Dense:
    """The dense model: all that is no table, from the vectors of a sample to its loss.

    parameters:       numbers; state_numbers: what their optimizer keeps for each (Adam: 2). float32.
    flops:            of one sample, forward; backward takes twice that.
    seconds:          of one sample, forward and backward, on one thread of this machine, where measured.
    activation_bytes: of one sample, what forward keeps for backward and what backward makes.
    columns:          dense features of a sample.
    """

    parameters: int = 0
    flops: float = 0.0
    seconds: float | None = None
    activation_bytes: float = 0.0
    state_numbers: int = 2
    columns: int = 0
    sharded: bool = False  # ZeRO: each rank keeps a part
    bucket_bytes: int = 4 << 20


@dataclass(frozen=True, eq=False)
class Workload:
    """One training step of `batch_size` samples, of all ranks together.

    forward, backward: the codecs of vectors and of their gradients. slice_size: samples of a slice.
    reads_data: batches are decoded from files beside the step, in so many `streams` (0: as many as ranks), of
    which ranks decode their own, at least one; a decoded buffer holds `buffer_rows` samples of the
    `epoch_rows` of all streams (0: more than plenty).
    bitwise: sums do not depend on the plan, to the last bit.
    ahead: ids of the next batch travel while this one is computed.
    replica_groups: groups of ranks that each hold all tables, averaged every `sync_every` steps.
    """

    tables: tuple[Table, ...]
    batch_size: int
    _: KW_ONLY
    optimizer: RowOptimizer = RowOptimizer()
    dense: Dense = Dense()
    forward: CodecName = "fp32"
    backward: CodecName = "fp32"
    slice_size: int = 512
    reads_data: bool = True
    streams: int = 0
    buffer_rows: int = 262_144
    epoch_rows: int = 0
    ahead: bool = True
    bitwise: bool = False
    replica_groups: int = 1
    sync_every: int = 1

    def shapes(self) -> dict[str, Shape]:
        """{table: (R, D)}, as `ShardingPlan.check` wants it."""
        return {table.name: table.shape for table in self.tables}

    @cached_property
    def by_name(self) -> dict[str, Table]:
        """{name: table}."""
        return {table.name: table for table in self.tables}

    @property
    def num_features(self) -> int:
        return sum(len(table.features) for table in self.tables)

    def fingerprint(self) -> str:
        """Twelve hex digits that change with anything a plan's cost depends on."""
        told = json.dumps([_numbers_of(table) for table in self.tables])
        rest = json.dumps([self.batch_size, asdict(self.optimizer), asdict(self.dense), *self._options()])
        return hashlib.sha256((told + rest).encode()).hexdigest()[:12]

    def _options(self) -> tuple[Any, ...]:
        wire = self.forward, self.backward, self.replica_groups, self.sync_every
        data = self.reads_data, self.streams, self.buffer_rows, self.epoch_rows
        return *wire, *data, self.slice_size, self.ahead, self.bitwise


def _numbers_of(table: Table) -> list[Any]:
    own = [table.name, table.rows, table.dim, table.data_type, table.pooled, table.mean]
    for feature in table.features:
        lengths, found = feature.lengths, feature.frequencies
        arrays = lengths.values, lengths.chances, found.counts, found.shares
        own += [feature.name, found.ordered, *(array.round(12).tolist() for array in arrays)]
    return own


@dataclass(frozen=True)
class TableEntry:
    """A table, or a family of `count` alike, named name.0, name.1, …, each read by one feature.

    length: mean ids of a bag; spread: "fixed" (all have it), or "poisson".
    zipf: the exponent of how frequent the k-th most frequent row is, 0 for all alike. ordered: frequent rows
    come first, as where vocabularies are sorted by count; else they are strewn over the table, as by hashes.
    """

    __pydantic_config__ = STRICT

    name: str
    rows: Positive
    dim: Positive
    length: Annotated[float, Gt(0), Le(1e5)] = 1.0
    spread: Literal["fixed", "poisson"] = "fixed"
    zipf: Annotated[float, Ge(0), Le(4)] = 0.0
    ordered: bool = True
    data_type: DataType = "float32"
    pooled: bool = True
    count: Positive = 1

    @property
    def names(self) -> list[str]:
        """Of the tables of the family."""
        return [self.name] if self.count == 1 else [f"{self.name}.{k}" for k in range(self.count)]

    def tables(self) -> Iterator[Table]:
        """The tables of the family."""
        ids = (
            Frequencies.zipf(self.rows, self.zipf, self.ordered)
            if self.zipf
            else Frequencies.uniform(self.rows)
        )
        lengths = Lengths.fixed(self.length) if self.spread == "fixed" else Lengths.poisson(self.length)
        for name in self.names:
            feature = Feature(name, lengths, ids)
            yield Table(name, self.rows, self.dim, self.data_type, pooled=self.pooled, features=(feature,))


@dataclass(frozen=True)
class DenseEntry:
    """The dense model of a workload file: see `Dense`."""

    __pydantic_config__ = STRICT

    parameters: Annotated[int, Ge(0)] = 0
    flops: Annotated[float, Ge(0)] = 0.0
    seconds: Annotated[float, Gt(0)] | None = None
    activation_bytes: Annotated[float, Ge(0)] = 0.0
    state_numbers: Annotated[int, Ge(0)] = 2
    columns: Annotated[int, Ge(0)] = 0
    sharded: bool = False


@dataclass(frozen=True)
class WorkloadFile:
    """What a workload file holds. batch_size: samples of all ranks together."""

    __pydantic_config__ = STRICT

    batch_size: Positive
    tables: Annotated[list[TableEntry], MinLen(1)]
    dense: DenseEntry = field(default_factory=DenseEntry)
    optimizer: str = "rowwise_adagrad"
    forward: CodecName = "fp32"
    backward: CodecName = "fp32"
    slice_size: Positive = 512
    reads_data: bool = False

    def __post_init__(self) -> None:
        """WorkloadError for two tables of one name, or an optimizer that there is not."""
        seen: set[str] = set()
        for i, entry in enumerate(self.tables):
            names = set(entry.names)
            if names & seen:
                raise WorkloadError(f"a second {min(names & seen)!r}: names must differ", "tables", i, "name")
            seen |= names
        if self.optimizer not in row_optim.ROW_OPTIMIZERS:
            known = ", ".join(row_optim.ROW_OPTIMIZERS)
            raise WorkloadError(f"no optimizer {self.optimizer!r}; have {known}", "optimizer")

    def workload(self) -> Workload:
        """The workload."""
        return Workload(
            tuple(table for entry in self.tables for table in entry.tables()),
            self.batch_size,
            optimizer=RowOptimizer.named(self.optimizer),
            dense=Dense(**asdict(self.dense)),
            forward=self.forward,
            backward=self.backward,
            slice_size=self.slice_size,
            reads_data=self.reads_data,
        )
