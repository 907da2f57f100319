from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from tesserec.dataio.encoder import Encoder
from tesserec.serve import decode
from tesserec.serve.answers import predict_answer, predict_answer_arrow, rank_answer, rank_answer_arrow
from tesserec.serve.decode import Decoder, Limits, request_key
from tesserec.serve.problems import BadBody, TooLarge, Unprocessable
from tests.serve.encoders import features_of, fit, stream_of, whole

SCHEMA = """dense: [{column: price, fill: 0, transform: log1p}, {column: age}],
    sparse: [user, {column: item, type: int}, {column: tags, delimiter: ","},
    {column: seen, missing: oov, max_length: 9}, {column: shop, encoding: integer, size: 9}]"""
TRAINING = {
    "price": [1.0, 2.0],
    "age": [30.0, 40.0],
    "user": ["ann", "bob"],
    "item": [10, 20],
    "tags": ["a,b", "b"],
    "seen": [[10], [10, 20]],
    "shop": [1, 2],
}
CONTEXT = {"age": 30, "user": "ann", "seen": [10, 7], "shop": 1}


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return fit(tmp_path, SCHEMA, TRAINING)


@pytest.fixture
def decoder(encoder: Encoder) -> Decoder:
    limits = Limits(body_bytes=100_000, candidates=50, list_length=20)
    return Decoder(encoder, features_of(encoder), candidate_id="item", limits=limits)


def ask(context: dict[str, Any] | None = None, *candidates: dict[str, Any], **more: Any) -> bytes:
    held = CONTEXT if context is None else context
    return json.dumps({"context": held, "candidates": candidates or [{"item": 10}], **more}).encode()


def test_context_and_candidates_are_split_in_the_model_s_order(decoder: Decoder, encoder: Encoder) -> None:
    query = decoder.rank(ask(None, {"item": 20, "price": 1}, {"tags": "b,zz"}, top_k=1))
    assert list(features_of(encoder).sparse) == ["shop", "seen", "tags", "item", "user"]
    assert (query.split.dense, query.split.sparse) == ((1,), (0, 1, 4))
    assert query.split == decoder.split_of(CONTEXT)
    assert (query.context.num_rows, query.rows.num_rows, query.top_k) == (1, 2, 1)
    got = whole(query, encoder)
    assert (got["item"], got["tags"], got["seen"]) == ([[2], [0]], [[], [1, 0]], [[1, 0]] * 2)
    assert query.names == [20, None]


def test_an_id_names_a_candidate_before_the_column_that_else_does(decoder: Decoder) -> None:
    query = decoder.rank(ask(None, {"item": 20, "id": "x"}, {"item": 20}, {"id": 3}, {"item": None}))
    assert query.names == ["x", 20, 3, None]


def test_predicting_shares_nothing(decoder: Decoder) -> None:
    rows = [{**CONTEXT, "item": 10}, {**CONTEXT, "price": 3.5}]
    query = decoder.predict(json.dumps({"rows": rows, "warnings": True}).encode())
    assert (query.split.dense, query.split.sparse) == ((), ())
    assert (query.context.dense.shape, query.context.sparse, query.rows.num_rows) == ((1, 0), None, 2)
    assert "rows[0].seen: [10, 7] is unknown to seen (2 such ids in all)" in query.warnings


@pytest.mark.parametrize(
    ("context", "candidate", "field", "words"),
    [
        ({"age": "3"}, {}, "context.age", "Expected `float | null`, got `str`"),
        ({"age": True}, {}, "context.age", "got `bool`"),
        ({"age": None}, {}, "context.age", "wanted a number; state `fill"),
        ({}, {}, "candidates[0].age", "got None, wanted a number"),
        ({"age": 1}, {"shop": 1, "item": 1.5}, "candidates[0].item", "got `float`"),
        ({"age": 1}, {"shop": 1, "item": 2**63}, "candidates[0].item", "<= 9223372036854775807"),
        ({"age": 1}, {"shop": 1, "item": -(2**63)}, "candidates[0].item", ">= -9223372036854775807"),
        ({"age": 1}, {"shop": 9}, "candidates[0].shop", "got 9, wanted an id from 0 to 8"),
        ({"age": 1}, {"shop": None}, "candidates[0].shop", "got None, wanted a value"),
        ({"age": 1}, {"shop": 1, "age": 1}, "candidates[0].age", "no such field, or one that the context"),
        ({"age": 1}, {"shop": 1, "shp": 1}, "candidates[0].shp", "no such field"),
        ({"age": 1, "agee": 1}, {"shop": 1}, "context.agee", "no such field"),
        ({"age": 1}, {"shop": 1, "tags": [["a"]]}, "candidates[0].tags[0]", "got `array`"),
        ({"age": 1}, {"shop": 1, "seen": "a"}, "candidates[0].seen", "got `str`"),
        ({"age": 1}, {"shop": 1, "id": [1]}, "candidates[0].id", "got `array`"),
        ({"age": 1e308, "price": 1}, {"shop": 1}, "context.age", "a number that fits float32"),
    ],
)
def test_a_wrong_value_is_named(
    decoder: Decoder, context: Any, candidate: Any, field: str, words: str
) -> None:
    for _ in range(2):  # by whatever layout comes first
        with pytest.raises(Unprocessable) as caught:
            decoder.rank(ask(context, candidate))
        assert caught.value.more["field"] == field
        assert words in caught.value.detail


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", BadBody),
        (b"{", BadBody),
        (b'{"candidates": [{"price": NaN}]}', BadBody),
        (b'{"candidates": [{"user": "\xff"}]}', BadBody),
        (b'{"candidates": [{"user": "\\ud800"}]}', BadBody),
        (b'{"context": {"price": ' + b"[" * 90_000, BadBody),
        (b'{"candidates": [{"price": 1e999}]}', Unprocessable),
        (b'{"candidates": [{"item": ' + b"9" * 90_000 + b"}]}", Unprocessable),
        (b'{"candidates": [{"price": ' + b"[" * 90_000, BadBody),
        (b"[]", Unprocessable),
        (b'{"candidates": []}', Unprocessable),
        (b'{"candidates": [{}], "top_k": 0}', Unprocessable),
        (b'{"candidates": [{}], "more": 0}', Unprocessable),
        (b" " * 100_001, TooLarge),
        (b'{"candidates": [' + b"{}," * 60 + b"{}]}", TooLarge),
        (b'{"candidates": [' + b"{}," * 30_000 + b"{}]}", TooLarge),
        (b'{"context": {"seen": [' + b"1," * 20 + b"1]}}", TooLarge),
        (b'{"context": {"age": 1, "shop": 1, "tags": "' + b"1," * 20 + b'"}, "candidates": [{}]}', TooLarge),
    ],
)
def test_a_bad_body_is_refused(decoder: Decoder, body: bytes, problem: Any) -> None:
    with pytest.raises(problem):
        decoder.rank(body)


def test_braces_in_texts_are_no_candidates(decoder: Decoder) -> None:
    query = decoder.rank(ask({**CONTEXT, "user": '"{\\' * 15_000}, {"item": 10}))
    assert query.rows.num_rows == 1


def test_left_out_values_make_no_new_layout(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decoder.rank(ask(CONTEXT))
    monkeypatch.setattr(decode, "Layout", None)
    for name in ("user", "seen"):
        query = decoder.rank(ask({key: value for key, value in CONTEXT.items() if key != name}))
        assert query.split == first.split
    assert decoder.missing["user"] == 1


def test_layouts_are_bounded_and_answers_do_not_depend_on_them(encoder: Encoder, decoder: Decoder) -> None:
    rng = np.random.default_rng(0)
    row = {**CONTEXT, "item": 20, "price": 3.0, "tags": ["b"]}
    want = whole(decoder.rank(ask({}, row)), encoder)
    for _ in range(200):
        shared = {name: value for name, value in row.items() if rng.random() < 0.5}
        own = {name: value for name, value in row.items() if name not in shared}
        assert whole(decoder.rank(ask(shared, own)), encoder) == want
    assert len(decoder._layouts) <= decode._LAYOUTS


def test_unknown_and_missing_values_are_counted_and_told(decoder: Decoder) -> None:
    body = ask(
        {**CONTEXT, "user": "eve"}, {"item": 10}, {"item": 99, "price": 1}, {"item": 98}, warnings=True
    )
    query = decoder.rank(body)
    assert decoder.unknown == {"user": 1, "item": 2, "tags": 0, "seen": 1}
    want = {"price": 2, "age": 0, "user": 0, "item": 0, "tags": 3, "seen": 0, "shop": 0}
    assert decoder.missing == want
    assert "context.user: 'eve' is unknown to user" in query.warnings
    assert "candidates[1].item: 99 is unknown to item (2 such ids in all)" in query.warnings
    assert "candidates: price is missing in 2 of 3" in query.warnings
    assert decoder.rank(ask({**CONTEXT, "user": "eve"})).warnings == ()
    assert decoder.unknown["user"] == 2


def test_the_schema_tells_of_every_column(decoder: Decoder) -> None:
    schema = decoder.json_schema()
    about = schema["properties"]
    assert list(about) == ["price", "age", "user", "item", "tags", "seen", "shop"]
    assert about["price"] == {"type": ["number", "null"], "x-encoding": ["number"]}
    assert about["user"]["type"] == ["string", "integer", "null"]
    assert set(about["user"]["examples"]) == {"ann", "bob"}
    assert about["tags"]["x-delimiter"] == ","
    assert about["seen"]["items"] == {"type": ["integer", "null"]}
    assert schema["additionalProperties"] is False


def test_a_key_is_read_from_a_body_that_may_be_bad() -> None:
    assert request_key(b'{"request_key": "u1", "candidates": [{"x": 1}]}') == "u1"
    assert request_key(b'{"request_key": 7}') == "7"
    for body in (b"{}", b"{", b"[]", b'{"a": "\xff"}', b'{"a": ' + b"[" * 10_000, b'{"request_key": []}'):
        assert request_key(body) is None


def test_answers_are_sorted_cut_and_round_trip(decoder: Decoder) -> None:
    query = decoder.rank(ask(None, {"item": 10}, {"id": "b,]"}, {"item": 20}, {"item": None}, top_k=3))
    scores = np.array([0.1, 0.7, 1 / 3, 0.7], np.float32)
    answer = msgspec.json.decode(rank_answer(query, scores, model="m", version="2"))
    assert (answer["model"], answer["version"], answer["warnings"]) == ("m", "2", [])
    assert [(one["id"], one["index"]) for one in answer["results"]] == [("b,]", 1), (None, 3), (20, 2)]
    assert [np.float32(one["score"]) for one in answer["results"]] == [scores[1], scores[3], scores[2]]
    with pa.ipc.open_stream(rank_answer_arrow(query, scores, model="m", version="2")) as stream:
        table = stream.read_all()
    assert table.schema.metadata == {b"model": b"m", b"version": b"2", b"warnings": b"[]"}
    assert table.to_pydict() == {
        "id": ["b,]", None, "20"],
        "index": [1, 3, 2],
        "score": [scores[1], scores[3], scores[2]],
    }
    plain = msgspec.json.decode(predict_answer(query, scores, model="m", version="2"))
    assert plain["scores"] == [0.1, 0.7, 0.33333334, 0.7]
    with pa.ipc.open_stream(predict_answer_arrow(query, scores, model="m", version="2")) as stream:
        assert stream.read_all()["score"].to_pylist() == scores.tolist()


def test_streams_name_their_rows_and_take_requests_in_metadata(decoder: Decoder) -> None:
    table = pa.table({"item": [10, 20], "id": ["a", None]})
    query = decoder.rank_arrow(stream_of(table, {"request": json.dumps({"context": CONTEXT, "top_k": 1})}))
    assert (query.names, query.top_k, query.split) == (["a", 20], 1, decoder.split_of(CONTEXT))
