"""A client of the ranking service, for programs that wait and for asyncio.

    with Client("http://127.0.0.1:8000") as client:
        ranking = client.rank("ml100k", {"user_id": "196"}, [{"item_id": "242"}, {"item_id": "302"}])

An error that the service tells is raised as the class of `problems` that it was there, such as `Overloaded`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self

import httpx
import pyarrow as pa

from tesserec.serve import calls
from tesserec.serve.calls import Call, ModelStatus, Predictions, Ranking, Row, ShadowTraffic, T
from tesserec.serve.problems import NotReady, Overloaded, Problem

NEVER_ARRIVED = (httpx.ConnectError, httpx.ConnectTimeout)
BROKE_OFF = (httpx.NetworkError, httpx.RemoteProtocolError)


class Unreachable(ConnectionError):
    """No answer: no connection, one that broke off, or nothing within the time."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is sent again that found no service or a busy one (429, 503), and when.

    The wait is what Retry-After asks for, and a random time up to `first_seconds`·2ⁿ. A Retry-After of more
    than `longest_seconds` is not waited for.
    """

    times: int = 3
    first_seconds: float = 0.05
    longest_seconds: float = 10.0

    def wait(self, attempt: int, failure: Problem | httpx.TransportError, repeatable: bool) -> float | None:
        """Seconds until another attempt after number `attempt`, from 0; None when there shall be none."""
        asked = 0.0
        if isinstance(failure, Problem):
            again = failure.status in (Overloaded.status, NotReady.status)
            asked = float(failure.more.get("retry_after", 0))
        else:
            again = isinstance(failure, NEVER_ARRIVED) or (repeatable and isinstance(failure, BROKE_OFF))
        if not again or attempt >= self.times or asked > self.longest_seconds:
            return None
        spread = min(self.first_seconds * 2**attempt, self.longest_seconds)
        return asked + random.uniform(0, spread)


class Client:
    """Asks the service at `url`. One client for all of a program's threads: it keeps connections open.

    token: made by `tesserec token`. timeout: seconds of each attempt. http: a client of yours, with other
    certificates, proxies or timeouts; it is not closed here.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 5.0,
        retries: Retries = Retries(),
        http: httpx.Client | None = None,
    ):
        self._url, self._retries, self._headers = url.rstrip("/"), retries, _headers(token)
        self._own = http is None
        self._http = httpx.Client(timeout=timeout) if http is None else http

    def rank(
        self,
        model: str,
        context: Row,
        candidates: Iterable[Row],
        *,
        top_k: int | None = None,
        key: str | None = None,
        warnings: bool = False,
    ) -> Ranking:
        """The candidates, best first. context: what all of them share; may be empty.

        key: requests of one key see one version of a traffic split. warnings: name unknown ids and missing
        features.
        """
        return self._send(calls.rank(model, context, candidates, top_k=top_k, key=key, warnings=warnings))

    def predict(
        self, model: str, rows: Iterable[Row], *, key: str | None = None, warnings: bool = False
    ) -> Predictions:
        """The probability of each row."""
        return self._send(calls.predict(model, rows, key=key, warnings=warnings))

    def rank_table(
        self,
        model: str,
        context: Row,
        candidates: pa.Table,
        *,
        top_k: int | None = None,
        key: str | None = None,
    ) -> pa.Table:
        """As `rank`, for many: columns by raw name, `id` if wanted -> id, index, score; best first.

        The answer's schema has `model` and `version` in its metadata.
        """
        return self._send(calls.rank_table(model, context, candidates, top_k=top_k, key=key))

    def predict_table(self, model: str, rows: pa.Table, *, key: str | None = None) -> pa.Table:
        """As `predict`, for many: columns by raw name -> score, in the order of the rows."""
        return self._send(calls.predict_table(model, rows, key=key))

    def models(self) -> tuple[ModelStatus, ...]:
        """All models."""
        return self._send(calls.models())

    def model(self, name: str) -> ModelStatus:
        """One model, with the schema of its rows and an example."""
        return self._send(calls.model(name))

    def ready(self) -> bool:
        """Whether there is a service, and all its models can answer."""
        try:
            self._send(calls.ready())
        except (NotReady, Unreachable):
            return False
        return True

    def load(self, name: str, version: str | int) -> ModelStatus:
        """Have a version loaded: it becomes ready, or failed, in the background."""
        return self._send(calls.change(name, version, "load"))

    def unload(self, name: str, version: str | int) -> ModelStatus:
        """Have a version that gets no requests give back its memory."""
        return self._send(calls.change(name, version, "unload"))

    def promote(self, name: str, version: str | int) -> ModelStatus:
        """Make a ready version the one that answers."""
        return self._send(calls.change(name, version, "promote"))

    def rollback(self, name: str) -> ModelStatus:
        """Make the version live that was so before."""
        return self._send(calls.rollback(name))

    def set_traffic(
        self, name: str, split: Mapping[str | int, float], shadow: ShadowTraffic | None = None
    ) -> ModelStatus:
        """Share the requests out among ready versions, in percent that sum to 100."""
        return self._send(calls.traffic(name, split, shadow))

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            try:
                return _read(call, self._http.send(_request(self._http, self._url, self._headers, call)))
            except (Problem, httpx.TransportError) as failure:
                time.sleep(_wait(self._retries, attempt, failure, call))
            attempt += 1


class AsyncClient:
    """As `Client`, for asyncio: `async with AsyncClient(url) as client: await client.rank(…)`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 5.0,
        retries: Retries = Retries(),
        http: httpx.AsyncClient | None = None,
    ):
        self._url, self._retries, self._headers = url.rstrip("/"), retries, _headers(token)
        self._own = http is None
        self._http = httpx.AsyncClient(timeout=timeout) if http is None else http

    async def rank(
        self,
        model: str,
        context: Row,
        candidates: Iterable[Row],
        *,
        top_k: int | None = None,
        key: str | None = None,
        warnings: bool = False,
    ) -> Ranking:
        """As `Client.rank`."""
        return await self._send(
            calls.rank(model, context, candidates, top_k=top_k, key=key, warnings=warnings)
        )

    async def predict(
        self, model: str, rows: Iterable[Row], *, key: str | None = None, warnings: bool = False
    ) -> Predictions:
        """As `Client.predict`."""
        return await self._send(calls.predict(model, rows, key=key, warnings=warnings))

    async def rank_table(
        self,
        model: str,
        context: Row,
        candidates: pa.Table,
        *,
        top_k: int | None = None,
        key: str | None = None,
    ) -> pa.Table:
        """As `Client.rank_table`."""
        return await self._send(calls.rank_table(model, context, candidates, top_k=top_k, key=key))

    async def predict_table(self, model: str, rows: pa.Table, *, key: str | None = None) -> pa.Table:
        """As `Client.predict_table`."""
        return await self._send(calls.predict_table(model, rows, key=key))

    async def models(self) -> tuple[ModelStatus, ...]:
        """As `Client.models`."""
        return await self._send(calls.models())

    async def model(self, name: str) -> ModelStatus:
        """As `Client.model`."""
        return await self._send(calls.model(name))

    async def ready(self) -> bool:
        """As `Client.ready`."""
        try:
            await self._send(calls.ready())
        except (NotReady, Unreachable):
            return False
        return True

    async def load(self, name: str, version: str | int) -> ModelStatus:
        """As `Client.load`."""
        return await self._send(calls.change(name, version, "load"))

    async def unload(self, name: str, version: str | int) -> ModelStatus:
        """As `Client.unload`."""
        return await self._send(calls.change(name, version, "unload"))

    async def promote(self, name: str, version: str | int) -> ModelStatus:
        """As `Client.promote`."""
        return await self._send(calls.change(name, version, "promote"))

    async def rollback(self, name: str) -> ModelStatus:
        """As `Client.rollback`."""
        return await self._send(calls.rollback(name))

    async def set_traffic(
        self, name: str, split: Mapping[str | int, float], shadow: ShadowTraffic | None = None
    ) -> ModelStatus:
        """As `Client.set_traffic`."""
        return await self._send(calls.traffic(name, split, shadow))

    async def close(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            try:
                return _read(
                    call, await self._http.send(_request(self._http, self._url, self._headers, call))
                )
            except (Problem, httpx.TransportError) as failure:
                await asyncio.sleep(_wait(self._retries, attempt, failure, call))
            attempt += 1


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _request(
    http: httpx.Client | httpx.AsyncClient, url: str, headers: dict[str, str], call: Call[T]
) -> httpx.Request:
    all_headers = {**headers, **call.headers}
    return http.build_request(call.method, url + call.path, content=call.content, headers=all_headers)


def _read(call: Call[T], response: httpx.Response) -> T:
    """The answer, or the problem that it tells, raised."""
    if response.is_success:
        return call.read(response.content)
    problem = calls.problem(response.status_code, response.reason_phrase, response.content)
    if "Retry-After" in response.headers:
        problem.more["retry_after"] = _seconds(response.headers["Retry-After"])
    raise problem


def _seconds(retry_after: str) -> float:
    """Seconds from now; the header has a number or a date (RFC 9110, 10.2.3)."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except ValueError:
        return 0.0


def _wait(retries: Retries, attempt: int, failure: Problem | httpx.TransportError, call: Call[T]) -> float:
    """Seconds until the next attempt, or the failure, raised."""
    seconds = retries.wait(attempt, failure, call.repeatable)
    if seconds is not None:
        return seconds
    if isinstance(failure, Problem):
        raise failure
    what = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
    times = "once" if attempt == 0 else f"{attempt + 1} times"
    raise Unreachable(f"{failure.request.url}: {what}; asked {times}") from failure
