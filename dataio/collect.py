"""Statistics of a split in one streaming pass: row groups decode on threads, features count on threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tesserec.dataio.ahead import ahead
from tesserec.dataio.dataset import DataError, Dataset, DatasetInfo, SparseFeature, Split
from tesserec.dataio.row_counts import BOUNDS, MOST, Counts, RowCounter, row_counter
from tesserec.dataio.row_groups import DecodedRows, RowGroup, find_row_groups
from tesserec.dataio.stats import DataStats, Empties, FeatureStats, LengthCounts, rows_of

Mask = npt.NDArray[np.bool_]


def open_data(path: str | Path) -> Dataset:
    """A prepared folder, or a Parquet file whose integer columns are ids as they are. DataError."""
    path = Path(path)
    if path.is_dir():
        return Dataset.open(path)
    try:
        metadata = pq.read_metadata(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: wanted a prepared folder or a Parquet file of ids: {error}; prepare raw data first"
        ) from None
    features = [
        SparseFeature(f.name, MOST, lists) for f, lists in _id_columns(metadata.schema.to_arrow_schema())
    ]
    if not features:
        raise DataError(f"{path}: no column of integers, or of lists of them; prepare raw data first")
    splits = {"train": Split((path.name,), metadata.num_rows)}
    return Dataset(path.parent, DatasetInfo(path.name, sparse=tuple(features), splits=splits))


def collect_stats(
    dataset: Dataset,
    split: str = "train",
    *,
    rows: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataStats:
    """The statistics of a split, or of about `rows` of its rows, from row groups strewn evenly over it.

    progress: rows read so far, and to be read. Memory: a feature takes 4 bytes a row of its table and at most
    25 MiB, and a few row groups are held. DataError: a null, an id outside its table.
    """
    groups = find_row_groups(dataset, split, keep=False)
    chosen = _strewn(groups, rows)
    total = sum(group.rows for group in chosen)
    if not total:
        raise DataError(f"{dataset.path}: split {split!r} holds no rows")
    threads = threads or os.cpu_count() or 1
    features = [_Feature(spec) for spec in dataset.info.sparse]
    lists = [feature for feature in features if feature.spec.is_list]
    both = np.zeros((len(lists), len(lists)), np.int64)
    done = 0
    with ThreadPoolExecutor(threads) as pool, closing(_decoded(chosen, features, threads)) as pieces:
        for piece in pieces:
            for _ in pool.map(partial(_Feature.add, piece=piece), features):
                pass
            both += _both_empty([feature.last_empty for feature in lists])
            done += piece.rows
            progress(done, total)
        stats = dict(zip([f.spec.name for f in features], pool.map(_Feature.stats, features), strict=True))
    empties = Empties(tuple(feature.spec.name for feature in lists), rows_of(both))
    return DataStats((_words(dataset, split),), total, sum(group.rows for group in groups), stats, empties)


def _words(dataset: Dataset, split: str) -> str:
    """What was read."""
    bare = dataset.info.name.endswith(".parquet")
    return str(dataset.path / dataset.info.name) if bare else f"{dataset.path}, {split}"


class _Feature:
    """A feature being counted. last_empty: (B,) which bags of the rows added last are empty."""

    def __init__(self, spec: SparseFeature) -> None:
        self.spec = spec
        self.last_empty: Mask = np.zeros(0, np.bool_)
        self._counter: RowCounter = row_counter(spec.num_embeddings)
        self._bags, self._ids = np.zeros((2, len(BOUNDS) - 1), np.int64)
        self._largest = self._longest = 0

    @property
    def type(self) -> Any:
        """The Arrow type of its column."""
        return pa.list_(pa.int64()) if self.spec.is_list else pa.int64()

    def add(self, piece: DecodedRows) -> None:
        """Count some rows. DataError at the first id outside the table."""
        column = piece.columns[self.spec.name]
        ids = (column.flatten() if self.spec.is_list else column).to_numpy()
        if (wrong := self._counter.add(ids)) >= 0:
            row = int(pc.list_parent_indices(column)[wrong].as_py()) if self.spec.is_list else wrong
            wanted = f"an id in [0, {self.spec.num_embeddings})"
            raise DataError(
                f"{piece.place(row)}, column {self.spec.name!r}: wanted {wanted}, got {ids[wrong]}; "
                f"prepare the data again"
            )
        self._largest = max(self._largest, int(ids.max(initial=0)))
        if self.spec.is_list:
            self._add_lengths(np.diff(column.offsets.to_numpy()))
        else:
            self._bags[1] += len(ids)
            self._ids[1] += len(ids)
            self._longest = 1

    def stats(self) -> FeatureStats:
        """What was counted."""
        table = None if self.spec.num_embeddings == MOST else self.spec.num_embeddings
        used = max(1, int(np.flatnonzero(self._bags).max(initial=0)) + 1)
        bags, ids = tuple(self._bags[:used].tolist()), tuple(self._ids[:used].tolist())
        return FeatureStats(
            table, self._largest, LengthCounts(bags, ids, self._longest), self._counter.sketch()
        )

    def _add_lengths(self, lengths: npt.NDArray[np.int32]) -> None:
        counts = np.bincount(lengths)
        values = np.flatnonzero(counts)
        classes = np.searchsorted(BOUNDS, values, side="right") - 1
        np.add.at(self._bags, classes, counts[values])
        np.add.at(self._ids, classes, counts[values] * values)
        self._longest = max(self._longest, len(counts) - 1)
        self.last_empty = lengths == 0


def _decoded(
    groups: Sequence[RowGroup], features: Sequence[_Feature], threads: int
) -> Generator[DecodedRows, None, None]:
    """The id columns of each row group, a few of them ahead."""
    types = {feature.spec.name: feature.type for feature in features}
    reads = [partial(group.read, 0, group.rows, types, ()) for group in groups]
    return ahead(reads, workers=threads, depth=threads + 1)


def _strewn(groups: Sequence[RowGroup], rows: int | None) -> list[RowGroup]:
    """Row groups that hold about so many rows, at like distances; all of them for None."""
    there = sum(group.rows for group in groups)
    if rows is None or rows >= there:
        return list(groups)
    wanted = max(1, round(len(groups) * rows / there))
    return [groups[int((k + 0.5) * len(groups) / wanted)] for k in range(wanted)]


def _id_columns(schema: Any) -> Iterator[tuple[Any, bool]]:
    """Columns that can be ids, and whether they hold lists."""
    for column in schema:
        lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if pa.types.is_integer(column.type.value_type if lists else column.type):
            yield column, bool(lists)


def _both_empty(empty: Sequence[Mask]) -> Counts:
    """(B,) each → (F, F) how many samples are empty in both."""
    if not empty:
        return np.zeros((0, 0), np.int64)
    ones = np.stack(empty).astype(np.float32)  # whole numbers up to 2²⁴ are exact
    both: Counts = np.rint(ones @ ones.T).astype(np.int64)
    return both
