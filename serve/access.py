"""Who may do what, and who did: bearer tokens, request ids, the access log."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tesserec.serve.bodies import bounded
from tesserec.serve.problems import Forbidden, Problem, Unauthorized

RIGHTS = ("rank", "manage")
HOT = ("rank", "predict")  # verbs whose routes bound their bodies themselves
OPEN = ("/livez", "/readyz")  # beside the page: what an orchestrator asks, and holds no token for
_BODY_BYTES = 1 << 16  # of other routes
_log = logging.getLogger("tesserec.serve")


class TokenError(ValueError):
    """A file of tokens that cannot be used; the message says which line and why."""


@dataclass(frozen=True, slots=True)
class Token:
    """digest: SHA-256 of the secret, which itself is nowhere."""

    digest: bytes
    rights: frozenset[str]
    name: str


class Tokens:
    """The tokens of a file: lines of `sha256hex rights name`, rights joined by commas. # begins a comment."""

    def __init__(self, path: Path):
        """Raises TokenError."""
        self.path = path
        self._seen = _stamp(path)
        self._tokens = _read(path)

    def check(self, authorization: bytes | None, rights: frozenset[str]) -> str:
        """The name of the token in the header, which has one of `rights`. Unauthorized, Forbidden.

        Takes the same time wherever in the file the token stands, and however much of it is right.
        """
        kind, _, secret = (authorization or b"").partition(b" ")
        if kind.lower() != b"bearer" or not secret:
            raise Unauthorized("Send a token of this service: `Authorization: Bearer …`.")
        digest = hashlib.sha256(secret.strip()).digest()
        found = [token for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        if not found:
            raise Unauthorized("This token is not one of this service.")
        if not found[0].rights & rights:
            raise Forbidden(
                f"The token {found[0].name!r} may {' and '.join(sorted(found[0].rights))}; "
                f"this needs one that may {' or '.join(sorted(rights))}."
            )
        return found[0].name

    def follow(self) -> None:
        """Read the file again if it changed; a damaged one changes nothing and is logged."""
        try:
            stamp = _stamp(self.path)
            if stamp == self._seen:
                return
            self._seen = stamp
            self._tokens = _read(self.path)
        except TokenError as error:
            _log.error("%s; the tokens of before go on being used", error)


def new_token(path: Path, name: str, rights: Sequence[str]) -> str:
    """The secret of a token that was added to the file; it can be shown only now. Raises TokenError."""
    if not set(rights) <= set(RIGHTS):
        raise TokenError(f"scope {','.join(rights)!r}: wanted {' or '.join(RIGHTS)}, or both with a comma")
    if not re.fullmatch(r"[\w.@-]+", name):
        raise TokenError(f"name {name!r}: wanted letters, digits, and . _ @ -")
    if path.exists() and any(token.name == name for token in _read(path)):
        raise TokenError(
            f"{path}: there is a token {name!r} already; remove its line, or choose another name"
        )
    secret = secrets.token_urlsafe(32)
    line = f"{hashlib.sha256(secret.encode()).hexdigest()} {','.join(rights)} {name}\n"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
        file.write(line)
    return secret


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise TokenError(
            f"{path}: no file of tokens ({error.strerror}); make one with `tesserec token`"
        ) from None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _read(path: Path) -> list[Token]:
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [(number, line.partition("#")[0].split()) for number, line in enumerate(lines, 1)]
    return [_parse(f"{path}, line {number}", words) for number, words in texts if words]


def _parse(where: str, words: list[str]) -> Token:
    if len(words) != 3 or not re.fullmatch(r"[0-9a-f]{64}", words[0]):
        raise TokenError(
            f"{where}: wanted `sha256hex rights name`, got {len(words)} words; see `tesserec token`"
        )
    rights = frozenset(words[1].split(","))
    if not rights <= set(RIGHTS):
        raise TokenError(f"{where}: rights are {', '.join(RIGHTS)}; got {words[1]!r}")
    return Token(bytes.fromhex(words[0]), rights, words[2])


class AccessLog:
    """Answers as JSON lines, in a file or on stderr."""

    def __init__(self, path: Path):
        """path: `-` for stderr; else a file, which is appended to."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = sys.stderr.fileno() if path == Path("-") else os.open(path, flags, 0o644)

    def write(self, line: Mapping[str, Any]) -> None:
        """One line in one write, so that those of several workers do not mix."""
        os.write(self._file, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


class Gate:
    """What every request passes: it gets an id, shows its token, is counted and logged.

    An error that is no Problem becomes an answer 500 that names the request id, under which it is logged.
    What the inner app puts into the request's state (`model`, `version`, `rows`) is logged too.
    """

    def __init__(
        self, app: ASGIApp, tokens: Tokens | None, log: AccessLog | None, answers: dict[tuple[str, int], int]
    ):
        """answers: (operation, status) -> how many there were; counted up here."""
        self.app, self.tokens, self.log, self.answers = app, tokens, log, answers
        self._next_id = map("{}-{:x}".format, itertools.repeat(secrets.token_hex(6)), itertools.count())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, asked_for = time.perf_counter(), 0, operation(scope)
        state = scope.setdefault("state", {})
        headers = state["headers"] = dict(scope["headers"])
        request_id = state["request_id"] = _given_id(headers) or next(self._next_id)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            self._admit(scope, headers, state)
            if asked_for not in HOT:
                receive = bounded(receive, _BODY_BYTES)
            await self.app(scope, receive, answer)
        except Problem as problem:
            await send_problem(answer, problem)
        except Exception:
            _log.exception("request %s: %s %s", request_id, scope["method"], scope["path"])
            if status:
                raise
            await send_problem(answer, Problem("the service's log has more of it", request_id=request_id))
        key = (asked_for, status)
        self.answers[key] = self.answers.get(key, 0) + 1
        if self.log is not None:
            self.log.write(_line(scope, state, status, time.perf_counter() - started))

    def _admit(self, scope: Scope, headers: Mapping[bytes, bytes], state: dict[str, Any]) -> None:
        """Forbidden for a browser that another site's page has sent; Unauthorized, Forbidden by the token."""
        if headers.get(b"sec-fetch-site", b"none") not in _OUR_SITES and scope["method"] not in _READING:
            raise Forbidden("a page of another site may not ask for this")
        rights = needed(scope["method"], scope["path"])
        if self.tokens is not None and rights:
            state["token"] = self.tokens.check(headers.get(b"authorization"), rights)


_READING = ("GET", "HEAD")
_OUR_SITES = (b"same-origin", b"none")
_EITHER, _RANK, _MANAGE = frozenset(RIGHTS), frozenset(["rank"]), frozenset(["manage"])


def needed(method: str, path: str) -> frozenset[str]:
    """The rights of which a token must have one; none: no token is needed."""
    if path in OPEN or not (path.startswith("/v1/") or path in ("/metrics", "/openapi.json")):
        return frozenset()
    if path.rpartition(":")[2] in HOT:
        return _RANK
    return _EITHER if method in _READING else _MANAGE


def operation(scope: Scope) -> str:
    """What a request was for, in few words: a label of the metrics."""
    path = scope["path"]
    if path.startswith("/v1/"):
        verb = path.rpartition(":")[2]
        return verb if verb in HOT else "read" if scope["method"] == "GET" else "manage"
    return "other"


async def send_problem(send: Send, problem: Problem) -> None:
    """Answer with a problem."""
    body = orjson.dumps(problem.to_json())
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers().items()]
    headers += [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _given_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The client's own, if it is one that can be logged."""
    given = headers.get(b"x-request-id", b"")
    return given.decode() if re.fullmatch(rb"[\x21-\x7e]{1,128}", given) else None


def _line(scope: Scope, state: Mapping[str, Any], status: int, seconds: float) -> dict[str, Any]:
    client = scope.get("client")
    return {
        "time": round(time.time(), 6),
        "request_id": state["request_id"],
        "client": client[0] if client else None,
        "token": state.get("token"),
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 6),
        "model": state.get("model"),
        "version": state.get("version"),
        "rows": state.get("rows"),
    }
