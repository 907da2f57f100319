"""A column of lists as one flat column and the length of each list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.columns import Mask, is_text, null_mask

Lengths = npt.NDArray[np.int64]


def holds_lists(column_type: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(column_type) for is_kind in kinds)


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """values: every element, flat; lengths: (n,) of each list; missing: (n,) where there was no list."""

    values: Any
    lengths: Lengths
    missing: Mask

    @classmethod
    def of(cls, column: Any, delimiter: str | None, max_length: int | None) -> Lists:
        """Lists, or texts cut at `delimiter`. Null and empty elements go, then all past `max_length`."""
        missing = null_mask(column)
        if is_text(column.type):
            missing = missing | pc.fill_null(pc.equal(column, ""), True).to_numpy(zero_copy_only=False)
            column = pc.split_pattern(column, delimiter)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        lists = cls(column.flatten(), lengths.astype(np.int64), missing)
        lists = lists._keep(~_is_absent(lists.values))
        return lists if max_length is None else lists._keep(lists._positions() < max_length)

    def rows(self) -> Lengths:
        """The row of each element."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def with_ids(self, ids: Lengths, fill: int | None) -> Any:
        """list<int64> of ids in place of the values; a missing list becomes [fill], or empty."""
        lengths = self.lengths
        if fill is not None:
            ids = np.insert(ids, self._starts()[self.missing], fill)
            lengths = lengths + self.missing
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))

    def _starts(self) -> Lengths:
        return np.cumsum(self.lengths) - self.lengths

    def _positions(self) -> Lengths:
        """Of each element: its place in its list."""
        return np.arange(len(self.values)) - np.repeat(self._starts(), self.lengths)

    def _keep(self, kept: Mask) -> Lists:
        if kept.all():
            return self
        lengths = np.bincount(self.rows()[kept], minlength=len(self.lengths))
        return Lists(self.values.filter(pa.array(kept)), lengths, self.missing)


def _is_absent(values: Any) -> Mask:
    absent = null_mask(values)
    if is_text(values.type):
        absent = absent | (pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False) == 0)
    return absent
