"""Requests as Arrow IPC streams, for many candidates at once.

A stream holds the candidates (or the rows to predict): a column per raw column, any Arrow type that training
files may have, and `id` if wanted. All else of a request, `{"context": {…}, "top_k": …}` as in JSON, is text
under `request` in the metadata of the stream's schema:

    table.replace_schema_metadata({"request": json.dumps({"context": {"user_id": 7}})})

Buffers are not compressed: a few bytes could ask for any amount of memory.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.columns import is_text
from tesserec.dataio.lists import holds_lists
from tesserec.serve.columns import ARROW, Column
from tesserec.serve.problems import BadBody, TooLarge, Unprocessable

_COMPRESSION = 3  # fields of the format's tables (Arrow's Message.fbs): of a RecordBatch,
_HEADER, _DATA = 2, 1  # of a Message, of a DictionaryBatch


def read_stream(body: bytes, max_rows: int) -> tuple[pa.Table, bytes]:
    """The rows of a stream, checked through and through, and the JSON of its request.

    Raises BadBody when it cannot be read, TooLarge with more than `max_rows` rows.
    """
    try:
        for message in pa.ipc.MessageReader.open_stream(body):
            if _is_compressed(message):
                raise Unprocessable("the stream's buffers are compressed, wanted plain ones", field="")
        with pa.ipc.open_stream(body) as stream:
            table = pa.Table.from_batches(_batches(stream, max_rows), stream.schema)
        names = table.column_names
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, struct.error) as error:
        raise BadBody(f"the body is not an Arrow stream: {error}") from None
    if len(set(names)) < len(names):
        raise BadBody("two columns of the stream have one name")
    return table, (table.schema.metadata or {}).get(b"request", b"{}")


def _batches(stream: Any, max_rows: int) -> Any:
    rows = 0
    for batch in stream:
        rows += batch.num_rows
        if rows > max_rows:
            raise TooLarge(f"the stream has more than {max_rows} rows", field="candidates")
        batch.validate(full=True)
        yield batch
    if not rows:
        raise Unprocessable("the stream has no rows, wanted at least one", field="candidates")


def columns_of_rows(
    table: pa.Table, columns: Sequence[Column], max_bytes: int, list_length: int
) -> dict[str, Any]:
    """Raw columns by name, each one Arrow array of a plain type; nulls where the stream has none.

    Raises Unprocessable for a type that the column cannot have; TooLarge for longer lists, and when
    dictionaries or views stand for more than `max_bytes` of text.
    """
    found = {}
    for column in columns:
        if column.name not in table.column_names:
            kind = ARROW[column.kind]
            found[column.name] = pa.nulls(table.num_rows, pa.list_(kind) if column.is_list else kind)
            continue
        given = table[column.name]
        if not _takes(column, given.type):
            wanted = f"{'lists of ' * column.is_list}{column.kind} values"
            message = f"column {column.name!r} holds {given.type}, wanted {wanted}"
            raise Unprocessable(message, field=column.name)
        if holds_lists(given.type) and (pc.max(pc.list_value_length(given)).as_py() or 0) > list_length:
            message = f"column {column.name!r} has a list of more than {list_length} elements"
            raise TooLarge(message, field=column.name)
        if sum(map(_text_bytes, given.chunks)) > max_bytes:
            raise TooLarge(
                f"column {column.name!r} has more than {max_bytes} bytes of text", field=column.name
            )
        found[column.name] = pa.concat_arrays([_plain(chunk) for chunk in given.chunks])
    return found


def _takes(column: Column, given: Any) -> bool:
    """Whether values of an Arrow type can be those of a column."""
    if holds_lists(given):
        return column.is_list and _is_of(column, given.value_type)
    if column.is_list:
        return bool(pa.types.is_null(given)) or (column.delimiter is not None and is_text(_plain_type(given)))
    return _is_of(column, _plain_type(given))


def _is_of(column: Column, given: Any) -> bool:
    types = pa.types
    if types.is_null(given) or types.is_integer(given) or types.is_boolean(given):
        return True
    if column.kind == "text":
        return is_text(given)
    whole = types.is_timestamp(given) or types.is_date(given)
    return bool(types.is_floating(given) or (whole and column.kind == "number"))


def _plain_type(given: Any) -> Any:
    if pa.types.is_dictionary(given):
        return given.value_type
    return {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(given, given)


def _plain(chunk: Any) -> Any:
    if pa.types.is_dictionary(chunk.type):
        return chunk.dictionary_decode()
    plain = _plain_type(chunk.type)
    return chunk if plain == chunk.type else chunk.cast(plain)


def _text_bytes(chunk: Any) -> int:
    """How many bytes of text a column refers to, where that can be more than the stream has."""
    if pa.types.is_dictionary(chunk.type) and is_text(chunk.type.value_type):
        sizes = pc.binary_length(chunk.dictionary)
        return int(pc.sum(sizes.take(chunk.indices).cast(pa.int64())).as_py() or 0)
    if chunk.type in (pa.string_view(), pa.binary_view()):
        views = np.frombuffer(chunk.buffers()[1], np.int32)[4 * chunk.offset :]
        return int(views[: 4 * len(chunk) : 4].sum(dtype=np.int64))
    return 0


def names_of_rows(table: pa.Table, naming: Sequence[str], max_bytes: int) -> list[Any]:
    """What rows are called, by the first of the columns `naming` that says so: texts, integers, or None."""
    names: list[Any] = [None] * table.num_rows
    for name in naming:
        if name in table.column_names:
            column = columns_of_rows(table, [Column(name, "text")], max_bytes, 0)[name]
            whole = pa.types.is_integer(column.type) or pa.types.is_null(column.type)
            if not whole and column.type not in (pa.string(), pa.large_string()):
                message = f"column {name!r} holds {column.type}, wanted texts or integers"
                raise Unprocessable(message, field=name)
            own = column.to_pylist()
            names = [mine if name is None else name for name, mine in zip(names, own, strict=True)]
    return names


def refuse_others(table: pa.Table, known: Collection[str]) -> None:
    """Raise Unprocessable for a column that is not among `known`."""
    for name in table.column_names:
        if name not in known:
            message = f"column {name!r}: no such column, or one that the context has already"
            raise Unprocessable(message, field=name)


def _is_compressed(message: Any) -> bool:
    """Whether a record or dictionary batch says so: in its flatbuffer, since pyarrow does not tell."""
    if message.type not in ("record batch", "dictionary"):
        return False
    data = message.metadata.to_pybytes()
    table = _follow(data, struct.unpack_from("<I", data)[0], _HEADER)
    if message.type == "dictionary":
        table = _follow(data, table, _DATA)
    return _field(data, table, _COMPRESSION) > 0


def _follow(data: bytes, table: int, field: int) -> int:
    """The table that a field of a flatbuffer's table points to."""
    place = table + _field(data, table, field)
    return int(place + struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, field: int) -> int:
    """Where a field lies in a flatbuffer's table; 0 when it has none."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size, slot = struct.unpack_from("<H", data, vtable)[0], 4 + 2 * field
    return int(struct.unpack_from("<H", data, vtable + slot)[0]) if slot < size else 0
