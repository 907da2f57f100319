from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tesserec.dataio.encoder import Encoder
from tesserec.serve.decode import Decoder, Limits
from tesserec.serve.problems import BadBody, Problem, TooLarge, Unprocessable
from tests.serve.encoders import by_encoder, features_of, fit, stream_of, whole

SCHEMA = """dense: [{column: price, fill: 0}], sparse: [user, {column: item, type: int},
    {column: tags, delimiter: ","}, {column: seen, max_length: 9}]"""
TRAINING = {
    "price": [1.0, 2.0],
    "user": ["ann", "bob"],
    "item": [10, 20],
    "tags": ["a,b", "b"],
    "seen": [[10], [10, 20]],
}
ROWS = {
    "price": pa.array([1, None, 3]),
    "user": pa.array(["bob", None, "eve"]),
    "item": pa.array([10, 30, None]),
    "tags": pa.array(["b", "", "b,a,z"]),
    "seen": pa.array([[20], None, [10, None, 7]]),
}


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return fit(tmp_path, SCHEMA, TRAINING)


@pytest.fixture
def decoder(encoder: Encoder) -> Decoder:
    limits = Limits(body_bytes=100_000, candidates=1000, list_length=50)
    return Decoder(encoder, features_of(encoder), limits=limits)


FORMS: dict[str, list[Any]] = {
    "price": [pa.float32(), pa.float16(), pa.int8(), pa.uint64()],
    "user": [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())],
    "item": [pa.int16(), pa.uint64(), pa.float64(), pa.dictionary(pa.int32(), pa.int64())],
    "tags": [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    "seen": [pa.large_list(pa.int64()), pa.list_(pa.int8()), pa.large_list(pa.float64())],
}


@pytest.mark.parametrize(("name", "form"), [(name, form) for name in FORMS for form in FORMS[name]], ids=str)
def test_types_of_one_meaning_are_read_alike(
    decoder: Decoder, encoder: Encoder, name: str, form: Any
) -> None:
    cast = (
        ROWS[name].dictionary_encode().cast(form) if pa.types.is_dictionary(form) else ROWS[name].cast(form)
    )
    table = pa.table({**ROWS, name: cast})
    assert whole(decoder.predict_arrow(stream_of(table, {})), encoder) == by_encoder(encoder, ROWS)


def test_batches_join_and_absent_columns_are_missing(decoder: Decoder, encoder: Encoder) -> None:
    table = pa.concat_tables([pa.table(ROWS).drop_columns(["seen", "price"]).slice(i, 1) for i in (2, 0, 1)])
    rows = {name: column.take(pa.array([2, 0, 1])) for name, column in ROWS.items()}
    rows["seen"], rows["price"] = pa.nulls(3, pa.list_(pa.int64())), pa.nulls(3, pa.float64())
    assert whole(decoder.predict_arrow(stream_of(table, {})), encoder) == by_encoder(encoder, rows)
    assert decoder.missing == {"price": 3, "user": 1, "item": 1, "tags": 1, "seen": 3}
    assert decoder.unknown == {"user": 1, "item": 1, "tags": 1, "seen": 0}


def compressed() -> bytes:
    sink, table = pa.BufferOutputStream(), pa.table({"user": ["a"] * 900})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    out: bytes = sink.getvalue().to_pybytes()
    return out


def stream(metadata: dict[str, str] | None = None, **columns: Any) -> bytes:
    return stream_of(pa.table(columns), metadata or {})


MANY_NULLS = pa.Array.from_buffers(pa.null(), 1 << 30, [None])
HUGE_LIST = pa.LargeListArray.from_arrays(pa.array([0, 1 << 30]), MANY_NULLS)
LONG = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), pa.array(["x" * 50_000]))


@pytest.mark.parametrize(
    ("body", "problem", "words"),
    [
        (b"", BadBody, "not an Arrow stream"),
        (b"ARROW1", BadBody, "not an Arrow stream"),
        (stream(user=["a"])[:-200], BadBody, "not an Arrow stream"),
        (compressed(), Unprocessable, "compressed"),
        (stream(usr=["a"]), Unprocessable, "column 'usr': no such column"),
        (stream(user=[1.5]), Unprocessable, "column 'user' holds double, wanted text values"),
        (stream(price=["1"]), Unprocessable, "column 'price' holds string, wanted number values"),
        (stream(user=[["a"]]), Unprocessable, "column 'user' holds list"),
        (stream(seen=[1]), Unprocessable, "column 'seen' holds int64, wanted lists of int values"),
        (stream(seen=[[1.5]]), Unprocessable, "rows[0].seen: got"),
        (stream(item=[1.5]), Unprocessable, "rows[0].item: got 1.5, wanted an integer"),
        (stream(price=[1.0, float("inf")]), Unprocessable, "rows[1].price: got inf"),
        (stream(id=[1.5]), Unprocessable, "column 'id' holds double"),
        (stream(user=pa.array([], pa.string())), Unprocessable, "no rows"),
        (stream(user=["a"] * 1001), TooLarge, "more than 1000 rows"),
        (stream(seen=[[1] * 51]), TooLarge, "a list of more than 50"),
        (stream(seen=HUGE_LIST), TooLarge, "a list of more than 50"),
        (stream(user=LONG), TooLarge, "bytes of text"),
        (stream(user=MANY_NULLS), TooLarge, "more than 1000 rows"),
        (stream(tags=["a," * 60]), TooLarge, "rows[0].tags"),
        (stream({"request": "{"}, user=["a"]), BadBody, "not JSON"),
        (stream({"request": '{"top_k": 1}'}, user=["a"]), Unprocessable, "top_k"),
    ],
)
def test_a_bad_stream_is_refused(decoder: Decoder, body: bytes, problem: Any, words: str) -> None:
    with pytest.raises(problem) as caught:
        decoder.predict_arrow(body)
    assert words in caught.value.detail


def test_views_are_measured_before_they_are_copied(decoder: Decoder) -> None:
    view = np.frombuffer(b"\x50\xc3\0\0xxxx" + bytes(8), np.uint8)  # 50,000 bytes of buffer 0, from 0 on
    buffers = [None, pa.py_buffer(np.tile(view, 900)), pa.py_buffer(b"x" * 50_000)]
    with pytest.raises(TooLarge) as caught:
        decoder.predict_arrow(stream(user=pa.Array.from_buffers(pa.string_view(), 900, buffers)))
    assert "bytes of text" in caught.value.detail


def test_a_column_of_the_context_may_not_come_again(decoder: Decoder) -> None:
    head = {"request": json.dumps({"context": {"user": "ann"}})}
    with pytest.raises(Unprocessable, match="or one that the context has already"):
        decoder.rank_arrow(stream(head, user=["a"]))


def test_two_columns_of_one_name_are_refused(decoder: Decoder) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["user", "user"])
    with pytest.raises(BadBody, match="one name"):
        decoder.predict_arrow(stream_of(table, {}))


def test_damaged_streams_are_refused_or_read_but_never_break(decoder: Decoder) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({**ROWS, "user": ROWS["user"].dictionary_encode(), "id": ["a", "b", "c"]})
    whole_stream = np.frombuffer(stream_of(table, {"request": '{"warnings": true}'}), np.uint8)
    for _ in range(1000):
        damaged = whole_stream.copy()
        places = rng.integers(0, len(damaged), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            decoder.predict_arrow(damaged.tobytes())
        except Problem as problem:
            assert problem.status < 500
