"""Tokens, request ids, the access log."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from tesserec.dataio.config import ConfigError, parse_config
from tesserec.serve.access import AccessLog, Gate, TokenError, Tokens, needed, new_token
from tesserec.serve.problems import Forbidden, NotFound, Unauthorized
from tesserec.serve.settings import ServeSettings, is_loopback

RANK, MANAGE, EITHER = frozenset(["rank"]), frozenset(["manage"]), frozenset(["rank", "manage"])


def bearer(secret: str) -> bytes:
    return f"Bearer {secret}".encode()


def test_a_token_does_what_it_was_made_for(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    ranker = new_token(file, "shop", ["rank"])
    boss = new_token(file, "boss", ["rank", "manage"])
    tokens = Tokens(file)
    assert tokens.check(bearer(ranker), RANK) == tokens.check(bearer(ranker), EITHER) == "shop"
    assert tokens.check(bearer(boss), MANAGE) == "boss"
    assert tokens.check(f"bearer  {boss} ".encode(), MANAGE) == "boss"
    with pytest.raises(Forbidden, match="'shop' may rank; this needs one that may manage"):
        tokens.check(bearer(ranker), MANAGE)


def test_the_file_has_no_secret_and_is_its_owner_s(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    secret = new_token(file, "shop", ["rank"])
    assert file.read_text() == f"{hashlib.sha256(secret.encode()).hexdigest()} rank shop\n"
    assert file.stat().st_mode & 0o777 == 0o600


@given(st.one_of(st.none(), st.binary(max_size=80)))
def test_nothing_else_is_a_token(header: bytes | None) -> None:
    tokens = Tokens.__new__(Tokens)
    tokens._tokens = []
    with pytest.raises(Unauthorized):
        tokens.check(header, EITHER)


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"Bearer wrong"])
def test_who_shows_no_token_is_not_let_in(tmp_path: Path, header: bytes | None) -> None:
    new_token(tmp_path / "tokens", "shop", ["rank"])
    with pytest.raises(Unauthorized) as caught:
        Tokens(tmp_path / "tokens").check(header, EITHER)
    assert caught.value.headers() == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("abc rank shop", "line 2: wanted `sha256hex rights name`"),
        (f"{'0' * 64} rank", "line 2: wanted"),
        (f"{'0' * 64} rank,fly shop", "line 2: rights are rank, manage; got 'rank,fly'"),
    ],
)
def test_a_damaged_file_says_where(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "tokens").write_text(f"# ours\n{line}\n")
    with pytest.raises(TokenError, match=told):
        Tokens(tmp_path / "tokens")


def test_a_token_needs_a_name_of_its_own_and_rights_there_are(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    new_token(file, "shop", ["rank"])
    for name, rights, told in [("shop", ["rank"], "choose another"), ("a b", ["rank"], "wanted letters")]:
        with pytest.raises(TokenError, match=told):
            new_token(file, name, rights)
    with pytest.raises(TokenError, match="'fly': wanted rank or manage"):
        new_token(file, "x", ["fly"])
    with pytest.raises(TokenError, match="none: no file of tokens"):
        Tokens(tmp_path / "none")


def test_tokens_are_followed_and_a_damaged_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    first = new_token(file, "first", ["rank"])
    tokens = Tokens(file)
    second = new_token(file, "second", ["rank"])
    tokens.follow()
    assert tokens.check(bearer(second), RANK) == "second"
    good = file.read_text()
    file.write_text("nonsense\n")
    tokens.follow()
    assert tokens.check(bearer(first), RANK) == "first"
    assert "tokens of before" in caplog.text
    file.write_text(good.splitlines()[1] + "\n")
    tokens.follow()
    with pytest.raises(Unauthorized):
        tokens.check(bearer(first), RANK)


@pytest.mark.parametrize(
    ("method", "path", "rights"),
    [
        ("GET", "/", frozenset()),
        ("GET", "/page/page.js", frozenset()),
        ("GET", "/readyz", frozenset()),
        ("GET", "/metrics", EITHER),
        ("GET", "/openapi.json", EITHER),
        ("GET", "/v1/models/m", EITHER),
        ("POST", "/v1/models/m:rank", RANK),
        ("POST", "/v1/models/m/versions/3:predict", RANK),
        ("POST", "/v1/models/m/versions/3:promote", MANAGE),
        ("PUT", "/v1/models/m/traffic", MANAGE),
        ("DELETE", "/v1/models/m", MANAGE),
    ],
)
def test_what_needs_which_right(method: str, path: str, rights: frozenset[str]) -> None:
    assert needed(method, path) == rights


def test_off_loopback_tokens_are_needed_or_said_not_to_be() -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        parse_config({"host": "0.0.0.0"}, ServeSettings)
    parse_config({"host": "0.0.0.0", "insecure": True}, ServeSettings)
    parse_config({"host": "example.org", "tokens": "tokens"}, ServeSettings)
    assert [is_loopback(h) for h in ("127.0.0.9", "::1", "localhost", "::", "10.0.0.1")] == [True] * 3 + [
        False
    ] * 2


def test_tls_needs_both_of_its_files() -> None:
    with pytest.raises(ConfigError, match="certificate"):
        parse_config({"tls_cert": "cert.pem"}, ServeSettings)


class Passing:
    """Requests that pass a gate to an app that does `act`."""

    def __init__(self, tmp_path: Path, tokens: Tokens | None = None):
        self.answers: dict[tuple[str, int], int] = {}
        self.file = tmp_path / "access.log"
        self.gate = Gate(self.app, tokens, AccessLog(self.file), self.answers)
        self.act: Any = None

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["model"] = "m"
        if self.act:
            self.act()
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def __call__(self, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body}

        async def send(message: Message) -> None:
            sent.append(message)

        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "client": ("1.2.3.4", 5)}
        asyncio.run(self.gate(scope, receive, send))
        names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], names, sent[1]["body"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


def test_every_answer_has_the_id_of_its_request(tmp_path: Path) -> None:
    passing = Passing(tmp_path)
    given = passing("/v1/models/m:rank", x_request_id="mine-1")[1]["x-request-id"]
    assert given == "mine-1"
    made = [
        passing("/v1/models/m:rank", x_request_id=bad)[1]["x-request-id"] for bad in ("a b", "", "x" * 129)
    ]
    assert len({given, *made}) == 4 and all(made)


def test_the_log_says_who_asked_what_and_how_it_went(tmp_path: Path) -> None:
    secret = new_token(tmp_path / "tokens", "shop", ["rank"])
    passing = Passing(tmp_path, Tokens(tmp_path / "tokens"))
    passing("/v1/models/m:rank", authorization=f"Bearer {secret}", x_request_id="one")
    passing("/v1/models/m:rank")
    first, second = passing.lines
    assert {key: first[key] for key in ("request_id", "client", "token", "method", "path", "status")} == {
        "request_id": "one",
        "client": "1.2.3.4",
        "token": "shop",
        "method": "POST",
        "path": "/v1/models/m:rank",
        "status": 200,
    }
    assert first["model"] == "m" and first["seconds"] >= 0
    assert (second["status"], second["token"]) == (401, None)
    assert passing.answers == {("rank", 200): 1, ("rank", 401): 1}


def test_errors_become_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    passing = Passing(tmp_path)

    def act() -> None:
        raise error

    passing.act = act
    error: Exception = NotFound("no such model")
    status, headers, body = passing("/v1/models/x:rank")
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert json.loads(body)["detail"] == "no such model"
    error = ZeroDivisionError("secret")
    status, _, body = passing("/v1/models/x:rank", x_request_id="bug-7")
    assert status == 500 and json.loads(body)["request_id"] == "bug-7" and b"secret" not in body
    assert "request bug-7" in caplog.text and "ZeroDivisionError" in caplog.text


def test_pages_of_other_sites_cannot_change_anything(tmp_path: Path) -> None:
    passing = Passing(tmp_path)
    statuses = [
        passing("/v1/models/m:rollback", sec_fetch_site=site)[0]
        for site in ("same-origin", "none", "same-site", "cross-site")
    ]
    assert statuses == [200, 200, 403, 403]


def test_bodies_of_management_are_small(tmp_path: Path) -> None:
    passing = Passing(tmp_path)
    assert passing("/v1/models/m:rollback", body=b" " * (1 << 16))[0] == 200
    assert passing("/v1/models/m:rollback", body=b" " * (1 << 16 | 1))[0] == 413
