"""What the client asks the ranking service, and its answers, as values. `client` sends them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa

from tesserec.serve.problems import Problem

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PROBLEMS: dict[str, type[Problem]] = {kind.kind: kind for kind in Problem.__subclasses__()}

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate of a ranking. index: its place in the request.

    id: its `id` there, or else the value of the column that names the model's candidates; None without both.
    """

    id: str | int | None
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, best first, by a version of a model. score: a probability."""

    model: str
    version: str
    results: tuple[Scored, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Predictions:
    """The probability of each row, in the order of the request."""

    model: str
    version: str
    scores: tuple[float, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """A version of a model. state: found, loading, warming, ready, failed or unloaded; error: why it failed.

    percent: of the model's requests that it answers. verified: its tables were read and are sound. nbytes: of
    tables and id maps. delta_sequence: the last row delta that it has; staleness_seconds: the age of its
    newest training step, None when it follows no deltas.
    """

    version: str
    state: str
    error: str = ""
    percent: float = 0.0
    verified: bool = False
    created: str = ""
    model: str = ""
    tables: str = ""
    nbytes: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    candidate_id: str | None = None
    delta_sequence: int = 0
    delta_error: str = ""
    staleness_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ShadowTraffic:
    """A version that scores a share of the requests, and whose scores nobody gets."""

    version: str
    percent: float


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model and its versions, newest first. live: which was decided on; serving: which answers now.

    split: percent of the requests by version; empty when the live one gets all. previous: the version that a
    rollback makes live. refused: folders that are no versions. schema: the JSON Schema of a raw row;
    input_example: a body for `:rank`; both only of a single model.
    """

    name: str
    live: str | None
    versions: tuple[VersionStatus, ...]
    serving: str | None = None
    previous: str | None = None
    split: dict[str, float] = field(default_factory=dict)
    shadow: ShadowTraffic | None = None
    schema: dict[str, Any] | None = None
    input_example: dict[str, Any] | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Models:
    models: tuple[ModelStatus, ...]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request and how its answer is read. repeatable: sent twice, it does what it does once."""

    method: str
    path: str
    read: Callable[[bytes], T]
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True


def rank(
    model: str, context: Row, candidates: Iterable[Row], *, top_k: int | None, key: str | None, warnings: bool
) -> Call[Ranking]:
    """POST …:rank. key: whose requests a traffic split keeps together, such as a user's id."""
    body = {"context": dict(context), "candidates": [dict(candidate) for candidate in candidates]}
    content = _encoded(body | _asked(top_k, warnings))
    return Call("POST", f"{_model(model)}:rank", _reader(Ranking), content, _json(key))


def predict(model: str, rows: Iterable[Row], *, key: str | None, warnings: bool) -> Call[Predictions]:
    """POST …:predict: rows that share nothing."""
    content = _encoded({"rows": [dict(row) for row in rows]} | _asked(None, warnings))
    return Call("POST", f"{_model(model)}:predict", _reader(Predictions), content, _json(key))


def rank_table(
    model: str, context: Row, candidates: pa.Table, *, top_k: int | None, key: str | None
) -> Call[pa.Table]:
    """POST …:rank as Arrow streams."""
    request = {"context": dict(context)} | _asked(top_k, warnings=False)
    return Call("POST", f"{_model(model)}:rank", _table, _stream(candidates, request), _arrow(key))


def predict_table(model: str, rows: pa.Table, *, key: str | None) -> Call[pa.Table]:
    """POST …:predict as Arrow streams."""
    return Call("POST", f"{_model(model)}:predict", _table, _stream(rows, {}), _arrow(key))


def models() -> Call[tuple[ModelStatus, ...]]:
    """GET /v1/models."""
    read = _reader(_Models)
    return Call("GET", "/v1/models", lambda content: read(content).models)


def model(name: str) -> Call[ModelStatus]:
    """GET /v1/models/{name}."""
    return Call("GET", _model(name), _reader(ModelStatus))


def ready() -> Call[None]:
    """GET /readyz."""
    return Call("GET", "/readyz", lambda content: None)


def change(name: str, version: str | int, verb: str) -> Call[ModelStatus]:
    """POST …/versions/{version}:load, :unload or :promote."""
    return Call("POST", f"{_model(name)}/versions/{_segment(str(version))}:{verb}", _reader(ModelStatus))


def rollback(name: str) -> Call[ModelStatus]:
    """POST …:rollback. Twice, it goes back twice."""
    return Call("POST", f"{_model(name)}:rollback", _reader(ModelStatus), repeatable=False)


def traffic(name: str, split: Mapping[str | int, float], shadow: ShadowTraffic | None) -> Call[ModelStatus]:
    """PUT …/traffic."""
    shares = {str(version): percent for version, percent in split.items()}
    body = {"split": shares, "shadow": shadow and {"version": shadow.version, "percent": shadow.percent}}
    return Call("PUT", f"{_model(name)}/traffic", _reader(ModelStatus), _encoded(body), _json(None))


def problem(status: int, reason: str, content: bytes) -> Problem:
    """The error that an answer with this status is; a plain `Problem` when it is none of the service's."""
    try:
        told = json.loads(content)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {"detail": content.decode(errors="replace").strip()[:500] or reason}
    kind = str(told.pop("type", "")).rpartition(":")[2]
    detail, title = str(told.pop("detail", reason)), str(told.pop("title", reason))
    told.pop("status", None)
    found = PROBLEMS.get(kind, Problem)(detail, **told)
    if type(found) is Problem:
        found.status, found.kind, found.title = status, kind, title
    return found


def _model(name: str) -> str:
    return f"/v1/models/{_segment(name)}"


def _segment(name: str) -> str:
    return quote(name, safe="")


def _asked(top_k: int | None, warnings: bool) -> dict[str, Any]:
    return ({} if top_k is None else {"top_k": top_k}) | ({"warnings": True} if warnings else {})


def _json(key: str | None) -> dict[str, str]:
    return {"Content-Type": JSON} | _keyed(key)


def _arrow(key: str | None) -> dict[str, str]:
    return {"Content-Type": ARROW, "Accept": ARROW} | _keyed(key)


def _keyed(key: str | None) -> dict[str, str]:
    return {} if key is None else {"X-Request-Key": key}


def _stream(rows: pa.Table, request: Row) -> bytes:
    """The rows, and the rest of the request as JSON in the schema's metadata."""
    table = rows.replace_schema_metadata({"request": _encoded(request)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _table(content: bytes) -> pa.Table:
    with pa.ipc.open_stream(content) as stream:
        return stream.read_all()


def _encoded(body: object) -> bytes:
    """JSON. ValueError for NaN and infinity, which it does not have: None is a missing value."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> object:
    """A numpy value as Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON, got {value!r}")


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    return msgspec.json.Decoder(kind).decode
