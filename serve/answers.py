"""Scores → the bytes of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from tesserec.serve.query import Query

Scores = npt.NDArray[np.float32]


class _Result(msgspec.Struct, gc=False):
    id: Any
    index: int
    score: msgspec.Raw


class _Ranked(msgspec.Struct, gc=False):
    model: str
    version: str
    results: list[_Result]
    warnings: Sequence[str]


_encode = msgspec.json.Encoder().encode


def best_first(scores: Scores, top_k: int | None) -> npt.NDArray[np.int64]:
    """The places of the `top_k` best scores, best first; the lower place where scores are equal."""
    return np.argsort(-scores, kind="stable")[:top_k]


def rank_answer(query: Query, scores: Scores, *, model: str, version: str) -> bytes:
    """JSON: {model, version, results: [{id, index, score}, …] best first, warnings: […]}."""
    order = best_first(scores, query.top_k)
    places = order.tolist()
    names = [query.names[i] for i in places]
    results = list(map(_Result, names, places, map(msgspec.Raw, _numbers(scores[order]))))
    return _encode(_Ranked(model, version, results, query.warnings))


def predict_answer(query: Query, scores: Scores, *, model: str, version: str) -> bytes:
    """JSON: {model, version, scores: […] in the order of the rows, warnings: […]}."""
    answer = {"model": model, "version": version, "scores": scores, "warnings": query.warnings}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def rank_answer_arrow(query: Query, scores: Scores, *, model: str, version: str) -> bytes:
    """A stream of id, index int64 and score float32, best first; model, version, warnings in its metadata."""
    order = best_first(scores, query.top_k)
    names = [query.names[place] for place in order.tolist()]
    columns = {"id": _ids(names), "index": pa.array(order), "score": pa.array(scores[order])}
    return _stream(columns, query, model, version)


def predict_answer_arrow(query: Query, scores: Scores, *, model: str, version: str) -> bytes:
    """A stream of score float32, in the order of the rows; model, version, warnings in its metadata."""
    return _stream({"score": pa.array(scores)}, query, model, version)


def _numbers(scores: Scores) -> list[bytes]:
    """Each score in as few digits as tell float32 numbers apart."""
    return orjson.dumps(scores, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def _ids(names: list[Any]) -> Any:
    """Integers, or texts when any name is one; null integers when there are no names."""
    if any(isinstance(name, str) for name in names):
        return pa.array([None if name is None else str(name) for name in names], pa.string())
    return pa.array(names) if any(name is not None for name in names) else pa.nulls(len(names), pa.int64())


def _stream(columns: Mapping[str, Any], query: Query, model: str, version: str) -> bytes:
    about = {"model": model, "version": version, "warnings": json.dumps(query.warnings)}
    table = pa.table(columns).replace_schema_metadata(about)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    out: bytes = sink.getvalue().to_pybytes()
    return out
