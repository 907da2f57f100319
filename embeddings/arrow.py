"""Arrow columns as bags and back: a list column is values and offsets already."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.embeddings.bags import Ids, InvalidIdError, JaggedError, JaggedTensor, offsets_of


def column_bags(batch: Any, key: str) -> JaggedTensor:
    """The bags of an integer column: lists, or one id per row."""
    items, offsets = _items(_column(batch, key))
    if items.null_count and len(items) > 0:
        at = int(np.argmax(items.is_null().to_numpy(zero_copy_only=False)))
        sample = int(np.searchsorted(offsets, at, side="right")) - 1
        raise InvalidIdError(
            f"feature {key!r}, sample {sample}: the id is null, wanted an integer: "
            "fill or drop nulls when the data is prepared"
        )
    if not (pa.types.is_integer(items.type) or pa.types.is_null(items.type)):
        raise InvalidIdError(
            f"feature {key!r} is a column of {items.type}, wanted integers or lists of integers"
        )
    try:
        ids = items if items.type == pa.int32() else items.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InvalidIdError(f"feature {key!r}: an id does not fit in int64: {error}") from None
    return JaggedTensor(ids.to_numpy(zero_copy_only=False), offsets)


def weighted_bags(batch: Any, key: str) -> JaggedTensor:
    """The bags of column `key` with the weights of column "key.weights"."""
    bags = column_bags(batch, key)
    items, offsets = _items(_column(batch, f"{key}.weights"))
    if items.null_count or not np.array_equal(offsets, bags.offsets):
        raise JaggedError(
            f"column '{key}.weights' has nulls, or lists of other lengths than {key!r}: wanted one per id"
        )
    return JaggedTensor(bags.values, bags.offsets, items.to_numpy(zero_copy_only=False))


def arrow_lists(offsets: Ids, values: npt.NDArray[Any]) -> Any:
    """A list column."""
    large = len(values) > np.iinfo(np.int32).max
    lists = pa.LargeListArray if large else pa.ListArray
    return lists.from_arrays(pa.array(offsets.astype(np.int64 if large else np.int32)), pa.array(values))


def record_batch(columns: dict[str, Any]) -> Any:
    """{name: column} as a record batch."""
    return pa.RecordBatch.from_pydict(columns)


def _column(batch: Any, name: str) -> Any:
    """The one array of column `name`."""
    if name not in batch.schema.names:
        raise JaggedError(f"no column {name!r}; have {batch.schema.names}")
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _items(column: Any) -> tuple[Any, Ids]:
    """(all items, offsets of the rows) of a list column; of any other, each item is a row."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return column, np.arange(len(column) + 1)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return column.flatten(), offsets_of(lengths.to_numpy(zero_copy_only=False))
