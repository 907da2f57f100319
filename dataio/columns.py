"""Raw Arrow columns → plain arrays, with an error that names the first bad value.

Missing is a null, an empty text, or a NaN, wherever the rows come from: training files and requests to a
server are read alike.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.kernels import hashing
from tesserec.dataio.schema import SchemaError

Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
KeyKind = Literal["string", "int"]
MISSING = np.iinfo(np.int64).min  # the key of a missing value


class BadValue(SchemaError):
    """A value that its column cannot hold. `row` is its place in the batch: the caller knows the line."""

    def __init__(self, column: str, row: int, value: Any, wanted: str) -> None:
        super().__init__(f"column {column!r}: got {value!r}, wanted {wanted}")
        self.column, self.row, self.value, self.wanted = column, row, value, wanted

    def at_row(self, row: int) -> BadValue:
        """The same error in another row: where a list stands that holds the value."""
        return BadValue(self.column, row, self.value, self.wanted)


def refuse(bad: Mask, column: Any, name: str, wanted: str) -> None:
    """Raise BadValue for the first true of `bad`."""
    if bad.any():
        row = int(bad.argmax())
        raise BadValue(name, row, column[row].as_py(), wanted)


def column_of(batch: pa.RecordBatch, name: str) -> Any:
    """The column in its plain form: dictionaries decoded, text views as text."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    return column.cast(pa.string()) if column.type == pa.string_view() else column


def null_mask(column: Any) -> Mask:
    """(n,) True where null."""
    if column.null_count == 0:
        return np.zeros(len(column), np.bool_)
    mask: Mask = column.is_null().to_numpy(zero_copy_only=False)
    return mask


def numbers(column: Any, name: str) -> Floats:
    """(n,) float64, NaN where missing. Timestamps become microseconds since 1970. Infinite: BadValue."""
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    if pa.types.is_integer(column.type):
        column = column.cast(pa.float64(), safe=False)
    if is_text(column.type):
        column = pc.if_else(pc.equal(column, ""), None, column)
    column = cast(column, pa.float64(), name, "a number")
    values: Floats = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False)
    refuse(np.isinf(values), column, name, "a finite number")
    return values


def key_kind(column_type: Any, name: str, wanted: KeyKind | None) -> KeyKind:
    """What keys of a column are: as the schema says, else as the data says."""
    if wanted is not None:
        return wanted
    if pa.types.is_integer(column_type) or pa.types.is_boolean(column_type):
        return "int"
    if is_text(column_type) or pa.types.is_null(column_type):
        return "string"
    raise SchemaError(
        f"column {name!r} holds {column_type}; ids are texts or integers: state `type: int` or "
        f"`type: string`, or `encoding: bucketize` for numbers"
    )


def keys_of(column: Any, kind: KeyKind, name: str, seed: int = 0) -> tuple[Keys, Mask]:
    """Column → (n,) keys and where missing (key MISSING). Texts: their XXH64; integers: themselves."""
    if kind == "int":
        column = _integers(column, name)
        missing = null_mask(column)
        keys: Keys = pc.fill_null(column, MISSING).to_numpy(zero_copy_only=False)
        return keys, missing
    if not is_text(column.type):
        column = cast(column, pa.string(), name, "a text")
    keys, empty = _hash_texts(column, seed)
    missing = null_mask(column) | empty
    keys[missing] = MISSING
    return keys, missing


def hash_integers(values: Keys, seed: int = 0) -> Keys:
    """(n,) integers → XXH64 of the eight bytes of each."""
    out = np.empty(len(values), np.uint64)
    hashing.hash_integers(values, np.uint64(seed), out)
    return out.view(np.int64)


def cast(column: Any, to: Any, name: str, wanted: str) -> Any:
    """The column as type `to`. BadValue naming the first value that does not convert."""
    if column.type == to:
        return column
    try:
        return column.cast(to)
    except pa.ArrowNotImplementedError:
        raise SchemaError(f"column {name!r} holds {column.type}, wanted {wanted}") from None
    except pa.ArrowInvalid:
        row = _first_failing(column, to)
        raise BadValue(name, row, column[row].as_py(), wanted) from None


def _first_failing(column: Any, to: Any) -> int:
    """The first row that does not cast, by bisection."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            column[low:middle].cast(to)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def is_text(column_type: Any) -> bool:
    """Whether an Arrow type is text."""
    return column_type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _integers(column: Any, name: str) -> Any:
    """The column as int64; uint64 by its bits, floats when whole (NaN: null), texts as decimal numbers."""
    if pa.types.is_uint64(column.type):
        return column.view(pa.int64())
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if is_text(column.type):
        column = pc.if_else(pc.equal(column, ""), None, column)
    return cast(column, pa.int64(), name, "an integer")


def _hash_texts(column: Any, seed: int) -> tuple[Keys, Mask]:
    """Texts → XXH64 of each, and which are empty."""
    wide = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    out = np.empty(len(column), np.uint64)
    if len(column) == 0:
        return out.view(np.int64), np.zeros(0, np.bool_)
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[column.offset :][: len(column) + 1]
    texts = np.frombuffer(data if data is not None else b"", np.uint8)
    hashing.hash_strings(texts, ends, np.uint64(seed), out)
    return out.view(np.int64), ends[1:] == ends[:-1]
