"""The OpenAPI document: FastAPI's, the hot routes, every error, and examples that the loaded models give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tesserec.serve.access import needed
from tesserec.serve.bodies import ARROW, JSON
from tesserec.serve.decode import Limits
from tesserec.serve.problems import (
    BadBody,
    Forbidden,
    NotFound,
    NotReady,
    Overloaded,
    Problem,
    TookTooLong,
    TooLarge,
    Unauthorized,
    Unprocessable,
    UnsupportedMedia,
)
from tesserec.serve.version import Version

Json = dict[str, Any]

PROBLEM = "application/problem+json"
ABOUT = (
    "Ranks candidates by the models of a repository. Scores are probabilities. Values are raw, as in the "
    "data that the model was trained on: the schema and an example are at `/v1/models/{name}`."
)
_SCORING = (BadBody, NotFound, TooLarge, UnsupportedMedia, Unprocessable, Overloaded, NotReady, TookTooLong)
_TEXT_OR_INT = {
    "anyOf": [
        {"type": "string"},
        {"type": "integer", "minimum": -(2**63) + 1, "maximum": 2**63 - 1},
        {"type": "null"},
    ]
}
_ASIDE = {
    "request_key": {
        **_TEXT_OR_INT,
        "description": "Requests with one key meet one version. The header X-Request-Key goes before it.",
    },
    "warnings": {
        "type": "boolean",
        "default": False,
        "description": "Whether to tell of unknown ids and missing values.",
    },
}
_TOP_K = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 2**63 - 1}, {"type": "null"}]}
_ANSWERED = {
    "model": {"type": "string"},
    "version": {"type": "string"},
    "warnings": {"type": "array", "items": {"type": "string"}},
}
_SCORE = {"type": "number", "minimum": 0, "maximum": 1}
_SCHEMAS: Json = {
    "Problem": {
        "type": "object",
        "description": "What was wrong (RFC 9457).",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "description": "Which kind of problem; it never changes."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "This case, for a person."},
            "field": {"type": "string", "description": "The path of the value that is wrong."},
            "retry_after": {"type": "number", "description": "Seconds after which to try again."},
            "request_id": {"type": "string"},
        },
    },
    "RankAnswer": {
        "type": "object",
        "required": ["model", "version", "results", "warnings"],
        "properties": {
            **_ANSWERED,
            "results": {
                "type": "array",
                "description": "Best first.",
                "items": {
                    "type": "object",
                    "required": ["id", "index", "score"],
                    "properties": {
                        "id": {"type": ["string", "integer", "null"]},
                        "index": {"type": "integer", "description": "The candidate's place in the request."},
                        "score": _SCORE,
                    },
                },
            },
        },
        "examples": [
            {
                "model": "ml100k",
                "version": "3",
                "results": [
                    {"id": "302", "index": 1, "score": 0.8125},
                    {"id": "242", "index": 0, "score": 0.5},
                ],
                "warnings": [],
            }
        ],
    },
    "PredictAnswer": {
        "type": "object",
        "required": ["model", "version", "scores", "warnings"],
        "properties": {
            **_ANSWERED,
            "scores": {"type": "array", "description": "In the order of the rows.", "items": _SCORE},
        },
        "examples": [{"model": "ml100k", "version": "3", "scores": [0.5, 0.8125], "warnings": []}],
    },
}


def problems(*kinds: type[Problem]) -> dict[int | str, Json]:
    """The documentation of these errors, and of those that any request can meet."""
    all_kinds: tuple[type[Problem], ...] = (*kinds, Problem)
    return {
        kind.status: {
            "description": kind.title,
            "content": {
                PROBLEM: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": kind("…").to_json(),
                }
            },
        }
        for kind in all_kinds
    }


def document(app: FastAPI, versions: Sequence[Version], limits: Limits, *, tokens: bool) -> Json:
    """OpenAPI 3.1. versions: those that answer, one for each model. tokens: whether they are asked for."""
    found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
    components = found.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_SCHEMAS}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for verb in ("rank", "predict"):
        for where in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
            found["paths"][f"{where}:{verb}"] = {"post": _scoring(verb, where, versions, limits)}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _finish(operation, guarded=tokens and bool(needed(method.upper(), path)))
    return found


def _finish(operation: Json, *, guarded: bool) -> None:
    """The errors that come from outside a route, and no others of FastAPI's."""
    answers = operation["responses"]
    if JSON.decode() in answers.get("422", {}).get("content", {}):
        del answers["422"]
    outside = (Unauthorized, Forbidden) if guarded else (Forbidden,)
    answers |= {str(status): told for status, told in problems(*outside).items()}
    if guarded:
        operation["security"] = [{"bearer": []}]
    operation["responses"] = dict(sorted(answers.items()))


def _scoring(verb: str, where: str, versions: Sequence[Version], limits: Limits) -> Json:
    names = [version.model for version in versions]
    body, examples = (_rank_body if verb == "rank" else _predict_body)(versions, limits)
    media = {"application/json": {"schema": body}, ARROW.decode(): {"schema": {"type": "string"}}}
    if examples:
        media["application/json"]["examples"] = examples
    answer = {"$ref": f"#/components/schemas/{verb.capitalize()}Answer"}
    good = {"application/json": {"schema": answer}, ARROW.decode(): {"schema": {"type": "string"}}}
    parameters = [
        _parameter("name", "path", "A model's name.", names[:1] or ["ml100k"]),
        _parameter("X-Request-Key", "header", "Requests with one key meet one version.", ["user 196"]),
        _parameter("X-Request-Id", "header", "Comes back, and is in the access log.", ["9f86d081-1"]),
    ]
    if "{version}" in where:
        parameters.insert(1, _parameter("version", "path", "A version's number.", ["3"]))
    return {
        "tags": ["scoring"],
        "summary": "Rank candidates" if verb == "rank" else "Score rows",
        "description": _ABOUT[verb],
        "operationId": f"{verb}{'_with_version' if '{version}' in where else ''}",
        "parameters": parameters,
        "requestBody": {"required": True, "content": media},
        "responses": {
            "200": {"description": "The scores.", "content": good},
            **{str(status): told for status, told in problems(*_SCORING).items()},
        },
    }


_ABOUT = {
    "rank": "Columns of the user, the request, the moment are given once, in `context`; those that differ, "
    "by candidate. The answer has the candidates best first, `top_k` of them.",
    "predict": "Rows that share nothing, in the order in which the answer has their scores.",
}


def _parameter(name: str, place: str, text: str, examples: list[str]) -> Json:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": text,
        "schema": {"type": "string"},
        "examples": {example: {"value": example} for example in examples},
    }


def _rank_body(versions: Sequence[Version], limits: Limits) -> tuple[Json, Json]:
    """(schema, examples by model). A column may be in the context or in the candidates."""
    rows = _rows(versions)
    candidates = {"type": "array", "minItems": 1, "maxItems": limits.candidates}
    candidate = [_with_id(row) for row in rows]
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["candidates"],
        "properties": {
            "context": {"description": "What all candidates share.", **_any(rows)},
            "candidates": {**candidates, "items": _any(candidate)},
            "top_k": _TOP_K,
            **_ASIDE,
        },
    }
    return schema, {v.model: {"value": v.artefact.input_example()} for v in versions}


def _predict_body(versions: Sequence[Version], limits: Limits) -> tuple[Json, Json]:
    rows = {"type": "array", "minItems": 1, "maxItems": limits.candidates, "items": _any(_rows(versions))}
    properties = {"rows": rows, **_ASIDE}
    schema = {"type": "object", "additionalProperties": False, "required": ["rows"], "properties": properties}
    examples = {}
    for version in versions:
        asked = version.artefact.input_example()
        joined = [asked["context"] | candidate for candidate in asked["candidates"]]
        examples[version.model] = {"value": {"rows": joined}}
    return schema, examples


def _rows(versions: Sequence[Version]) -> list[Json]:
    return [{**version.decoder.json_schema(), "title": version.model} for version in versions]


def _with_id(row: Json) -> Json:
    return {**row, "properties": {"id": _TEXT_OR_INT, **row["properties"]}}


def _any(schemas: Sequence[Json]) -> Json:
    return {"anyOf": list(schemas)} if schemas else {"type": "object"}
