"""What is in a data set, raw or prepared: one streaming pass, one report per column."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.columns import column_of, is_text, key_kind, keys_of, numbers
from tesserec.dataio.dataset import Dataset, DatasetInfo
from tesserec.dataio.lists import Lists, holds_lists
from tesserec.dataio.raw import read_raw, sample_raw
from tesserec.dataio.schema import Format, RawType, Schema
from tesserec.dataio.statistics import IdCounter, IdStats, NumberSketch, NumberStats


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """One column. role: label, weight, group, dense, sparse or kept; without a schema a guess.

    missing: share of the rows. ids: of texts, lists and integers. numbers: of numbers. lengths: of lists.
    """

    name: str
    role: str
    type: str
    missing: float
    ids: IdStats | None
    numbers: NumberStats | None
    lengths: NumberStats | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """rows: in all; splits: rows of each split of a prepared data set, empty for raw files."""

    path: str
    rows: int
    splits: dict[str, int]
    columns: tuple[ColumnReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Column:
    """A column being read."""

    name: str
    role: str
    delimiter: str | None = None
    type: str = "null"
    missing: int = 0
    ids: IdCounter = field(default_factory=IdCounter)
    numbers: NumberSketch = field(default_factory=NumberSketch)
    lengths: NumberSketch = field(default_factory=NumberSketch)
    names: dict[int, str] = field(default_factory=dict)
    has: set[str] = field(default_factory=set)

    def add(self, column: Any) -> None:
        self.type = str(column.type)
        if holds_lists(column.type) or self.delimiter is not None:
            self._add_lists(column)
        elif is_text(column.type) or pa.types.is_boolean(column.type):
            self.missing += self._add_ids(column)
        else:
            self._add_numbers(column)

    def _add_lists(self, column: Any) -> None:
        lists = Lists.of(column, self.delimiter, None)
        self.has.add("lengths")
        self.missing += int(lists.missing.sum())
        self.lengths.add(lists.lengths)
        self._add_ids(lists.values)

    def _add_ids(self, column: Any) -> int:
        """Count the ids; how many are missing."""
        self.has.add("ids")
        keys, missing = keys_of(column, key_kind(column.type, self.name, None), self.name)
        if is_text(column.type) and not self.names:
            texts = (
                pc.value_counts(column).sort(by="counts", order="descending").field("values").slice(0, 512)
            )
            named, _ = keys_of(texts, "string", self.name)
            self.names = dict(zip(named.tolist(), texts.to_pylist(), strict=True))
        self.ids.add(keys[~missing])
        return int(missing.sum())

    def _add_numbers(self, column: Any) -> None:
        if pa.types.is_integer(column.type) and self.role not in ("label", "weight", "dense"):
            self._add_ids(column)
        values = numbers(column, self.name)
        missing = np.isnan(values)
        self.missing += int(missing.sum())
        if self.role != "sparse" and self.role != "group":
            self.has.add("numbers")
            self.numbers.add(values[~missing])

    def report(self, rows: int) -> ColumnReport:
        return ColumnReport(
            self.name,
            self.role,
            self.type,
            self.missing / max(rows, 1),
            self.ids.stats(self.names) if "ids" in self.has else None,
            self.numbers.stats() if "numbers" in self.has else None,
            self.lengths.stats() if "lengths" in self.has else None,
        )


def inspect_data(
    path: str | Path, schema: Schema | None = None, progress: Callable[[int], None] = lambda rows: None
) -> Inspection:
    """Statistics of a raw file (any kind that `prepare` reads) or of a prepared folder.

    schema: tells the roles of raw columns and the delimiters of lists. progress: rows read so far. Memory: at
    most 2^20 ids per column are counted exactly. DataError, SchemaError.
    """
    path = Path(path)
    if path.is_dir():
        return _inspect_dataset(Dataset.open(path), progress)
    columns, types = _raw_columns(path, schema)
    text = Format() if schema is None else schema.format
    rows = _read(read_raw([path], types, text), columns, progress)
    return Inspection(str(path), rows, {}, tuple(column.report(rows) for column in columns))


def _inspect_dataset(dataset: Dataset, progress: Callable[[int], None]) -> Inspection:
    info = dataset.info
    columns = [_Column(name, role) for name, role in _roles(info).items()]
    types: dict[str, RawType] = dict.fromkeys((column.name for column in columns), "string")
    files = [file for split in info.splits for file in dataset.files(split)]
    rows = _read(read_raw(files, types), columns, progress)
    splits = {name: split.rows for name, split in info.splits.items()}
    return Inspection(str(dataset.path), rows, splits, tuple(column.report(rows) for column in columns))


def _read(batches: Iterator[Any], columns: list[_Column], progress: Callable[[int], None]) -> int:
    """Take every batch, columns on threads; how many rows there were."""
    rows = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for raw in batches:
            with raw.located():
                plain = [column_of(raw.batch, column.name) for column in columns]
                list(pool.map(_Column.add, columns, plain))
            rows += raw.batch.num_rows
            progress(rows)
    return rows


def _roles(info: DatasetInfo) -> dict[str, str]:
    roles = dict.fromkeys(info.labels, "label")
    roles |= {name: role for name, role in ((info.weight, "weight"), (info.group, "group")) if name}
    roles |= dict.fromkeys(info.dense, "dense") | {feature.name: "sparse" for feature in info.sparse}
    return roles | dict.fromkeys(info.keep, "kept")


def _raw_columns(path: Path, schema: Schema | None) -> tuple[list[_Column], Mapping[str, RawType]]:
    if schema is None:
        kinds = {f.name: _raw_type(f.type) for f in sample_raw(path).schema}
        guessed = {"string": "sparse", "int": "integer", "float": "dense"}
        return [_Column(name, guessed[kind]) for name, kind in kinds.items()], kinds
    columns = [_Column(label.column, "label") for label in schema.labels]
    columns += [_Column(n, r) for n, r in ((schema.weight, "weight"), (schema.group, "group")) if n]
    columns += [_Column(dense.column, "dense") for dense in schema.dense]
    columns += [_Column(sparse.column, "sparse", sparse.delimiter) for sparse in schema.sparse]
    columns += [_Column(keep.column, "kept") for keep in schema.keep]
    return columns, schema.columns()


def _raw_type(kind: Any) -> RawType:
    """How a column of a text file is read that looks like `kind`."""
    if pa.types.is_integer(kind):
        return "int"
    return "float" if pa.types.is_floating(kind) else "string"
