"""The client: what it sends, what it reads, which errors it raises, and when it asks again."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesserec.serve import AsyncClient, Client, problems
from tesserec.serve.calls import ModelStatus, Predictions, Ranking, Scored, ShadowTraffic
from tesserec.serve.client import Retries, Unreachable
from tests.serve.fake import Service, ads, films, serving

Answer = httpx.Response | Exception
CONTEXT = {"user_id": "196"}
CANDIDATES = [{"item_id": "242"}, {"item_id": "302"}]
RANKED = {"model": "m", "version": "3", "results": [{"id": "302", "index": 1, "score": 0.5}]}
QUICK = Retries(times=3, first_seconds=0.0001, longest_seconds=0.5)


class Script:
    """Answers in turn, the last one for ever; `sent` are the requests."""

    def __init__(self, *answers: Answer):
        self.answers, self.sent = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, **options: Any) -> Client:
        """A client that asks this script."""
        http = httpx.Client(transport=httpx.MockTransport(self))
        return Client("http://service/below/", http=http, **{"retries": QUICK, **options})

    def ask(self, make: Callable[[Client | AsyncClient], Any], waits: bool) -> Any:
        """What the call gives, by the client for asyncio or by the one that waits."""
        if waits:
            with self.client() as client:
                return make(client)

        async def asked() -> Any:
            http = httpx.AsyncClient(transport=httpx.MockTransport(self))
            async with http, AsyncClient("http://service/below/", http=http, retries=QUICK) as client:
                return await make(client)

        return asyncio.run(asked())


def told(problem: problems.Problem) -> httpx.Response:
    """A problem as the service answers it."""
    return httpx.Response(problem.status, json=problem.to_json(), headers=problem.headers())


def rank(client: Client | AsyncClient) -> Any:
    return client.rank("m", CONTEXT, CANDIDATES)


both = pytest.mark.parametrize("waits", [True, False], ids=["waits", "asyncio"])


@both
def test_ranking_is_sent_and_read(waits: bool) -> None:
    script = Script(httpx.Response(200, json=RANKED | {"more": 1}))
    found = script.ask(
        lambda client: client.rank("a/b", CONTEXT, CANDIDATES, top_k=1, key="u1", warnings=True), waits
    )
    assert found == Ranking("m", "3", (Scored("302", 1, 0.5),))
    (request,) = script.sent
    assert str(request.url) == "http://service/below/v1/models/a%2Fb:rank"
    assert request.headers["X-Request-Key"] == "u1" and request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {
        "context": CONTEXT,
        "candidates": CANDIDATES,
        "top_k": 1,
        "warnings": True,
    }


def test_candidates_without_a_name_are_told_by_their_place() -> None:
    unnamed = {**RANKED, "results": [{"id": None, "index": 1, "score": 0.5}]}
    with Script(httpx.Response(200, json=unnamed)).client() as client:
        assert client.rank("m", CONTEXT, CANDIDATES).results == (Scored(None, 1, 0.5),)


def test_numpy_values_are_sent_as_numbers_and_lists() -> None:
    script = Script(httpx.Response(200, json={"model": "m", "version": "1", "scores": [0.25]}))
    row = {"price": np.float32(0.5), "user": np.int64(2**53 + 1), "tags": np.array(["a", "b"])}
    assert script.client().predict("m", [row]) == Predictions("m", "1", (0.25,))
    sent = json.loads(script.sent[0].content)
    assert sent == {"rows": [{"price": 0.5, "user": 2**53 + 1, "tags": ["a", "b"]}]}


def stream(table: Any) -> bytes:
    """An Arrow IPC stream of the table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


@both
def test_tables_are_sent_and_read_as_arrow(waits: bool) -> None:
    films = pa.table({"item_id": ["242", "302"]})
    answer = pa.table({"id": ["302"], "index": [1], "score": pa.array([0.5], pa.float32())})
    script = Script(httpx.Response(200, content=stream(answer)))
    found = script.ask(lambda client: client.rank_table("m", CONTEXT, films, top_k=1, key="u1"), waits)
    assert found.equals(answer)
    assert script.ask(lambda client: client.predict_table("m", films), waits).equals(answer)
    for request, asked in zip(script.sent, ({"context": CONTEXT, "top_k": 1}, {}), strict=True):
        sent = pa.ipc.open_stream(request.content).read_all()
        assert sent.equals(films) and json.loads(sent.schema.metadata[b"request"]) == asked
        assert request.headers["Content-Type"] == request.headers["Accept"]
        assert request.headers["Accept"] == "application/vnd.apache.arrow.stream"
    assert [request.headers.get("X-Request-Key") for request in script.sent] == ["u1", None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), object()])
def test_what_json_cannot_say_is_refused_before_it_is_sent(value: object) -> None:
    script = Script(httpx.Response(200, json=RANKED))
    with pytest.raises((ValueError, TypeError)):
        script.client().rank("m", {"price": value}, CANDIDATES)
    assert script.sent == []


@pytest.mark.parametrize("kind", problems.Problem.__subclasses__(), ids=lambda kind: str(kind.kind))
def test_problems_of_the_service_are_raised_as_what_they_were(kind: type[problems.Problem]) -> None:
    sent = kind("what was wrong", field="candidates[3].price")
    with pytest.raises(kind) as raised:
        Script(told(sent)).client(retries=Retries(times=0)).rank("m", CONTEXT, CANDIDATES)
    assert type(raised.value) is kind
    assert raised.value.to_json() == sent.to_json()


@pytest.mark.parametrize(
    "content", [b"<h1>Bad Gateway</h1>", b"", b"[1]", b'{"type": "urn:other", "title": "No"}']
)
def test_errors_of_others_keep_their_status(content: bytes) -> None:
    with pytest.raises(problems.Problem) as raised:
        Script(httpx.Response(502, content=content)).client().models()
    assert raised.value.status == 502 and str(raised.value)


@both
@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("closed"),
        told(problems.Overloaded("full", retry_after=0.01)),
        told(problems.NotReady("soon", retry_after=0)),
        httpx.Response(503),
    ],
    ids=["connect", "read", "protocol", "429", "503", "bare 503"],
)
def test_busy_or_broken_service_is_asked_again(failure: Answer, waits: bool) -> None:
    script = Script(failure, failure, httpx.Response(200, json=RANKED))
    assert script.ask(rank, waits).version == "3"
    assert len(script.sent) == 3
    assert len({request.content for request in script.sent}) == 1


@both
@pytest.mark.parametrize(
    "kind",
    [kind for kind in problems.Problem.__subclasses__() if kind.status not in (429, 503)],
    ids=lambda kind: str(kind.kind),
)
def test_other_errors_are_not_asked_again(kind: type[problems.Problem], waits: bool) -> None:
    script = Script(told(kind("no")))
    with pytest.raises(kind):
        script.ask(rank, waits)
    assert len(script.sent) == 1


@both
def test_attempts_end_and_the_last_failure_is_raised(waits: bool) -> None:
    script = Script(told(problems.Overloaded("full", retry_after=0.001)))
    with pytest.raises(problems.Overloaded, match="full"):
        script.ask(rank, waits)
    assert len(script.sent) == 1 + QUICK.times
    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match=r"http://service/below/v1/models/m:rank: .*refused; asked 4 times"):
        script.ask(rank, waits)


def test_a_wait_that_is_too_long_is_not_waited() -> None:
    script = Script(told(problems.NotReady("loading", retry_after=30)))
    with pytest.raises(problems.NotReady):
        script.client().rank("m", CONTEXT, CANDIDATES)
    assert len(script.sent) == 1


def test_time_outs_are_not_asked_again() -> None:
    script = Script(httpx.ReadTimeout("slow"))
    with pytest.raises(Unreachable, match="slow"):
        script.client().rank("m", CONTEXT, CANDIDATES)
    assert len(script.sent) == 1


def test_a_rollback_that_may_have_been_done_is_not_asked_again() -> None:
    script = Script(httpx.ReadError("reset"))
    with pytest.raises(Unreachable):
        script.client().rollback("m")
    assert len(script.sent) == 1
    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable):
        script.client().rollback("m")
    assert len(script.sent) == 1 + QUICK.times


@given(attempt=st.integers(0, 9), asked=st.floats(0, 5), first=st.floats(0.001, 1))
def test_wait_is_what_was_asked_for_and_a_growing_random_part(
    attempt: int, asked: float, first: float
) -> None:
    retries = Retries(times=10, first_seconds=first, longest_seconds=5)
    wait = retries.wait(attempt, problems.Overloaded("full", retry_after=asked), repeatable=True)
    assert wait is not None and asked <= wait <= asked + min(first * 2**attempt, 5)


@pytest.mark.parametrize(("header", "seconds"), [("2", 2), ("0.5", 0.5), ("-1", 0), ("soon", 0)])
def test_retry_after_is_read_from_the_header(header: str, seconds: float) -> None:
    script = Script(httpx.Response(503, headers={"Retry-After": header}))
    with pytest.raises(problems.Problem) as raised:
        script.client(retries=Retries(times=0)).models()
    assert raised.value.more["retry_after"] == seconds


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    script = Script(httpx.Response(503, headers={"Retry-After": later}))
    with pytest.raises(problems.Problem) as raised:
        script.client().models()
    assert 50 < raised.value.more["retry_after"] <= 60


def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        with (
            Client(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=QUICK) as client,
            pytest.raises(Unreachable, match="asked 4 times"),
        ):
            client.models()


@both
@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (httpx.Response(200, json={"status": "ok"}), True),
        (told(problems.NotReady("model 'm' is loading", retry_after=0)), False),
        (httpx.ConnectError("refused"), False),
    ],
)
def test_ready_is_true_false_or_an_error(answer: Answer, ready: bool, waits: bool) -> None:
    assert Script(answer).ask(lambda client: client.ready(), waits) is ready
    with pytest.raises(problems.Unauthorized):
        Script(told(problems.Unauthorized("no token"))).ask(lambda client: client.ready(), waits)


@pytest.fixture
def address() -> Iterator[str]:
    with serving(Service([films(), ads()], token="secret")) as found:
        yield found


def test_models_are_read_and_changed(address: str) -> None:
    with Client(address, token="secret") as client:
        assert [model.name for model in client.models()] == ["ml100k", "ads"]
        model = client.model("ml100k")
        assert isinstance(model, ModelStatus) and model.live == "3" and model.schema and model.input_example
        ranking = client.rank("ml100k", **model.input_example)
        assert [one.score for one in ranking.results] == sorted(
            (r.score for r in ranking.results), reverse=True
        )
        assert client.load("ml100k", 1).versions[-1].state == "ready"
        assert client.unload("ml100k", "1").versions[-1].state == "unloaded"
        shared = client.set_traffic("ml100k", {3: 60, "2": 40}, ShadowTraffic("4", 5))
        assert shared.split == {"3": 60, "2": 40} and shared.shadow == ShadowTraffic("4", 5)
        assert client.promote("ml100k", 4).live == "4"
        assert client.rollback("ml100k").live == "3"


def test_models_are_read_and_changed_under_asyncio(address: str) -> None:
    async def asked() -> None:
        async with AsyncClient(address, token="secret") as client:
            models, model = await asyncio.gather(client.models(), client.model("ads"))
            assert model.name in [one.name for one in models] and model.input_example
            assert len((await client.rank("ads", **model.input_example)).results) == 12
            await client.load("ml100k", 1)
            await client.unload("ml100k", 1)
            assert (await client.set_traffic("ml100k", {"4": 100})).split == {"4": 100}
            assert (await client.promote("ml100k", 4)).live == "4"
            assert (await client.rollback("ml100k")).live == "3"

    asyncio.run(asked())


def test_a_missing_token_is_told(address: str) -> None:
    with Client(address) as client, pytest.raises(problems.Unauthorized, match="token"):
        client.models()
