"""The row groups of a split: found, checked against the description, decoded one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tesserec.dataio.config import did_you_mean
from tesserec.dataio.dataset import DataError, Dataset, DatasetInfo


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Row group `index` of a Parquet file."""

    path: Path
    index: int
    rows: int
    metadata: Any

    def read(self, lo: int, hi: int, types: dict[str, Any], keep: tuple[str, ...]) -> DecodedRows:
        """Rows lo … hi-1: columns of `types` cast to them, and the `keep` columns. DataError when damaged."""
        try:
            with pq.ParquetFile(self.path, metadata=self.metadata, memory_map=True) as file:
                table = file.read_row_group(self.index, columns=[*types, *keep], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}, row group {self.index}: cannot be decoded: {error}") from error
        table = table.slice(lo, hi - lo)
        rows = DecodedRows(
            self, lo, hi - lo, {n: _array(table.column(n), t) for n, t in types.items()}, table
        )
        rows.check_nulls()
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class DecodedRows:
    """`rows` rows of a row group from its row `first` on: an Arrow array per column."""

    source: RowGroup
    first: int
    rows: int
    columns: dict[str, Any]
    table: Any

    def place(self, row: int) -> str:
        """Where row `row` of these stands, for messages."""
        return f"{self.source.path}, row group {self.source.index}, row {self.first + row}"

    def check_nulls(self) -> None:
        """DataError at the first null, also inside a list."""
        for name, column in self.columns.items():
            if column.null_count:
                row = pc.index(column.is_null(), True).as_py()
                raise DataError(f"{self.place(row)}, column {name!r}: null; fill or drop it when preparing")
            if pa.types.is_list(column.type) and column.values.null_count and column.flatten().null_count:
                value = pc.index(column.flatten().is_null(), True)
                row = pc.list_parent_indices(column)[value.as_py()].as_py()
                raise DataError(
                    f"{self.place(row)}, column {name!r}: null in the list; drop it when preparing"
                )


def find_row_groups(dataset: Dataset, split: str, *, keep: bool) -> list[RowGroup]:
    """Every row group of a split, in file order. DataError when files and description disagree."""
    found = []
    for path in dataset.files(split):
        try:
            metadata = pq.read_metadata(path, memory_map=True)
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file, but split {split!r} needs it; prepare the data again"
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable Parquet file: {error}") from error
        _check_schema(path, metadata.schema.to_arrow_schema(), dataset.info, keep)
        sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        found += [RowGroup(path, g, rows, metadata) for g, rows in enumerate(sizes)]
    rows, wanted = sum(group.rows for group in found), dataset.split(split).rows
    if rows != wanted:
        raise DataError(f"{dataset.path}: split {split!r} has {rows} rows, its description says {wanted}")
    return found


def column_types(info: DatasetInfo) -> dict[str, Any]:
    """Column → the Arrow type it is read as, for every column a model may read."""
    types = dict.fromkeys((*info.labels, *info.dense), pa.float32())
    types |= {
        feature.name: pa.list_(pa.int64()) if feature.is_list else pa.int64() for feature in info.sparse
    }
    if info.weight is not None:
        types[info.weight] = pa.float32()
    if info.group is not None:
        types[info.group] = pa.int64()
    return types


def _array(column: Any, wanted: Any) -> Any:
    """A table's column as one array of the wanted type."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return array if array.type.equals(wanted) else array.cast(wanted, safe=not pa.types.is_float32(wanted))


def _check_schema(path: Path, schema: Any, info: DatasetInfo, keep: bool) -> None:
    types = column_types(info)
    for name in (*types, *(info.keep if keep else ())):
        if name not in schema.names:
            raise DataError(
                f"{path}: no column {name!r}{did_you_mean(name, schema.names)}; prepare the data again"
            )
    for name, wanted in types.items():
        got = schema.field(name).type
        if not _converts(got, wanted):
            raise DataError(f"{path}, column {name!r}: wanted {wanted}, got {got}; prepare the data again")


def _converts(got: Any, wanted: Any) -> bool:
    """Whether values of one type become the other with their meaning kept (any integer is an id)."""
    if pa.types.is_list(wanted):
        lists = pa.types.is_list(got) or pa.types.is_large_list(got) or pa.types.is_fixed_size_list(got)
        return lists and bool(pa.types.is_integer(got.value_type))
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(got))
    return bool(pa.types.is_floating(got) or pa.types.is_integer(got) or pa.types.is_boolean(got))
