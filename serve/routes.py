"""The hot routes, `:rank` and `:predict`: plain ASGI, from the bytes of a body to the bytes of an answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from starlette.types import Receive, Scope, Send

from tesserec.serve.access import send_problem
from tesserec.serve.answers import predict_answer, predict_answer_arrow, rank_answer, rank_answer_arrow
from tesserec.serve.batcher import Scored
from tesserec.serve.bodies import ARROW, JSON, Headers, media_types, read_body
from tesserec.serve.decode import Decoder, request_key
from tesserec.serve.problems import Problem
from tesserec.serve.query import Query
from tesserec.serve.service import Service
from tesserec.serve.version import Version

_log = logging.getLogger("tesserec.serve")


class Write(Protocol):
    """Scores → the bytes of an answer."""

    def __call__(
        self, query: Query, scores: npt.NDArray[np.float32], *, model: str, version: str
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Verb:
    """How bodies are read, and answers written, by media type."""

    read: Mapping[bytes, Callable[[Decoder, bytes], Query]]
    write: Mapping[bytes, Write]


RANK = Verb({JSON: Decoder.rank, ARROW: Decoder.rank_arrow}, {JSON: rank_answer, ARROW: rank_answer_arrow})
PREDICT = Verb(
    {JSON: Decoder.predict, ARROW: Decoder.predict_arrow}, {JSON: predict_answer, ARROW: predict_answer_arrow}
)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A request as it came in. kind, accepted: media types of its body and of the answer."""

    kind: bytes
    accepted: bytes
    body: bytes
    key: str | None


class Scoring:
    """An ASGI endpoint that answers requests to rank or predict."""

    def __init__(self, service: Service, verb: Verb):
        self.service, self.verb = service, verb
        self._shadows: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            kind, answer = await self._answer(scope, receive)
        except Problem as problem:
            await send_problem(send, problem)
            return
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
        if self.service.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[bytes, bytes]:
        """(media type, bytes)."""
        service, state, path = self.service, scope["state"], scope["path_params"]
        service.batcher.admit()
        asked = await self._asked(state["headers"], receive)
        if "version" in path:
            version = service.repository.version(path["name"], path["version"])
        else:
            version = service.repository.pick(path["name"], asked.key)
        state["model"], state["version"] = version.model, version.number
        answer, scored = await self._scored(version, asked)
        state["rows"] = len(scored.scores)
        shadow = None if "version" in path else service.repository.shadow(path["name"], asked.key)
        if shadow is not None:
            task = asyncio.create_task(self._score_shadow(shadow, asked, scored))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        return asked.accepted, answer

    async def _asked(self, headers: Headers, receive: Receive) -> _Asked:
        kind, accepted = media_types(headers)
        settings = self.service.settings
        body = await read_body(headers, receive, settings.limits.body_bytes, settings.read_seconds)
        given = headers.get(b"x-request-key")
        if given is not None:
            key: str | None = given.decode("latin-1")
        else:
            key = request_key(body) if kind == JSON and b'"request_key"' in body else None
        return _Asked(kind, accepted, body, key)

    async def _scored(self, version: Version, asked: _Asked) -> tuple[bytes, Scored]:
        """The answer, which is measured, and what is in it."""
        recorder = self.service.metrics.of(version)
        begun = time.perf_counter()
        try:
            query = self.verb.read[asked.kind](version.decoder, asked.body)
            decoded = time.perf_counter()
            scored = await self.service.batcher.submit(version, query)
            got = time.perf_counter()
            write = self.verb.write[asked.accepted]
            answer = write(query, scored.scores, model=version.model, version=version.number)
        except Exception as error:
            if not isinstance(error, Problem) or error.status >= 429:
                recorder.failed()
            raise
        ended = time.perf_counter()
        seconds = decoded - begun, scored.queue_seconds, scored.score_seconds, ended - got, ended - begun
        recorder.answered(len(scored.scores), *seconds)
        return answer, scored

    async def _score_shadow(self, shadow: Version, asked: _Asked, answered: Scored) -> None:
        """Score a request again, by a version whose scores are only compared with the answered ones."""
        recorder = self.service.metrics.of(shadow)
        try:
            query = self.verb.read[asked.kind](shadow.decoder, asked.body)
            scored = await self.service.batcher.submit(shadow, query)
        except Exception as error:
            recorder.failed()
            if not isinstance(error, Problem):
                _log.exception("shadow version %s of %s", shadow.number, shadow.model)
        else:
            recorder.shadowed(scored.scores, answered.scores)
