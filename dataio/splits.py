"""Which rows train, validate and test: settled before anything is fitted, so that nothing leaks.

`fit_split` reads the few columns a split depends on, if any, and returns a pure function of a batch and its
row numbers. The answer does not depend on how the rows were cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.columns import Floats, Keys, column_of, hash_integers, keys_of, numbers, refuse
from tesserec.dataio.kernels import table as kernels
from tesserec.dataio.raw import RawBatch
from tesserec.dataio.schema import (
    AnySplit,
    ColumnSplit,
    LeaveOneOut,
    RatioSplit,
    RawType,
    TimeSplit,
    split_columns,
)
from tesserec.dataio.vocabulary import KeyTable

SPLITS = ("train", "valid", "test")
Codes = npt.NDArray[np.uint8]  # positions in SPLITS
Assign = Callable[[pa.RecordBatch, Keys], Codes]  # (batch, its row numbers (n,)) → (n,)
Read = Callable[[Mapping[str, RawType]], Iterable[tuple[RawBatch, Keys]]]


def fit_split(split: AnySplit, read: Read) -> Assign:
    """The split as a function (batch, row numbers) → codes. `read` streams columns of all rows."""
    if isinstance(split, RatioSplit):
        return _by_ratio(split)
    if isinstance(split, TimeSplit):
        return _by_time(split, read)
    if isinstance(split, ColumnSplit):
        return _by_column(split)
    return _leave_one_out(split, read)


def _by_ratio(split: RatioSplit) -> Assign:
    edges = [split.train if split.valid or split.test else 1.0, 1 - split.test]

    def assign(batch: pa.RecordBatch, rows: Keys) -> Codes:
        high = hash_integers(rows, split.seed).view(np.uint64) >> np.uint64(11)
        return _codes(high.astype(np.float64) * 2.0**-53, edges)

    return assign


def _codes(values: Floats, edges: list[float]) -> Codes:
    """0 below the first edge, 1 below the second, else 2."""
    codes: Codes = np.searchsorted(edges, values, side="right").astype(np.uint8)
    return codes


def _by_time(split: TimeSplit, read: Read) -> Assign:
    if split.valid_from is not None and split.test_from is not None:
        edges = [_as_number(split.valid_from), _as_number(split.test_from)]
    else:
        edges = _time_edges(split, read)

    def assign(batch: pa.RecordBatch, rows: Keys) -> Codes:
        return _codes(_times(batch, split.column), edges)

    return assign


def _times(batch: pa.RecordBatch, name: str) -> Floats:
    times = numbers(column_of(batch, name), name)
    refuse(np.isnan(times), column_of(batch, name), name, "a time, which splits the rows")
    return times + 0.0  # -0.0 and 0.0 are one time


def _as_number(cut: float | datetime) -> float:
    """A cut in the unit of `numbers`: microseconds since 1970 for a time, by default UTC."""
    if not isinstance(cut, datetime):
        return float(cut)
    return cut.replace(tzinfo=cut.tzinfo or UTC).timestamp() * 1e6


def _time_edges(split: TimeSplit, read: Read) -> list[float]:
    """The times at which validation and test begin, so that shares are as near as whole times allow."""
    counted = KeyTable()
    for raw, _ in read({split.column: split.type}):
        with raw.located():
            counted.count(_times(raw.batch, split.column).view(np.int64))
    keys, counts = counted.entries()
    times = keys.view(np.float64)
    order = np.argsort(times)
    before = np.concatenate([[0], np.cumsum(counts[order], dtype=np.int64)])
    starts = np.append(times[order], np.inf)
    wanted = np.array([split.train, 1 - split.test]) * before[-1]
    return [float(starts[np.abs(before - rows).argmin()]) for rows in wanted]


def _by_column(split: ColumnSplit) -> Assign:
    names = pa.array(SPLITS)

    def assign(batch: pa.RecordBatch, rows: Keys) -> Codes:
        column = column_of(batch, split.column)
        found = pc.index_in(column.cast(pa.string()), value_set=names)
        unknown = found.is_null().to_numpy(zero_copy_only=False)
        refuse(unknown, column, split.column, "train, valid or test")
        codes: Codes = found.to_numpy(zero_copy_only=False).astype(np.uint8)
        return codes

    return assign


def _leave_one_out(split: LeaveOneOut, read: Read) -> Assign:
    groups = KeyTable()
    last, before, seen = np.empty((0, 2)), np.empty((0, 2)), np.empty(0, np.int64)
    for raw, rows in read(split_columns(split)):
        with raw.located():
            keys = _group_keys(raw.batch, split.group)
            times = _times(raw.batch, split.time) if split.time else rows.astype(np.float64)
        groups.number(keys)
        last, before = _grown(last, len(groups), -np.inf), _grown(before, len(groups), -np.inf)
        seen = _grown(seen, len(groups), 0)
        kernels.keep_last_two(groups.find(keys), times, rows, last, before, seen)

    def assign(batch: pa.RecordBatch, rows: Keys) -> Codes:
        group = groups.find(_group_keys(batch, split.group)) - 1
        test = (last[group, 1] == rows) & (seen[group] > 1)
        valid = (before[group, 1] == rows) & (seen[group] > 2)
        codes: Codes = test.astype(np.uint8) * np.uint8(2) + valid
        return codes

    return assign


def _grown(array: Any, size: int, value: float) -> Any:
    """The array, or one with room to spare when `size` rows do not fit."""
    if size <= len(array):
        return array
    room = np.full((size + len(array) // 2, *array.shape[1:]), value, array.dtype)
    room[: len(array)] = array
    return room


def _group_keys(batch: pa.RecordBatch, name: str) -> Keys:
    column = column_of(batch, name)
    keys, missing = keys_of(column, "int" if pa.types.is_integer(column.type) else "string", name)
    refuse(missing, column, name, "a group, whose last row is left out")
    return keys
