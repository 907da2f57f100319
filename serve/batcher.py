"""Requests that wait for scoring: what came together is scored together, on the event loop's own thread.

A turn scores one batch, then lets the loop read what has come in. A request with many rows goes through in
slices, between which others have their turns. See docs/decisions/0012-scores-on-the-event-loop.md.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tesserec.serve.problems import Overloaded, TookTooLong
from tesserec.serve.query import Part, Query, Split
from tesserec.serve.settings import QueueSettings

Scores = npt.NDArray[np.float32]


class Scorer(Protocol):
    """What scores: a version."""

    def score(self, queries: list[Query]) -> Scores:
        """(ΣK,) in the order of the queries, which have one split."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """scores: (K,). Seconds until its first rows were scored, and from then to the end."""

    scores: Scores
    queue_seconds: float
    score_seconds: float


@dataclass(slots=True, eq=False)
class _Waiting:
    query: Query
    future: asyncio.Future[Scored]
    arrived: float
    scores: Scores | None = None  # of the slices that are done
    done: int = 0
    started: float = 0.0

    @property
    def left(self) -> int:
        return self.query.rows.num_rows - self.done


_Lane = tuple[Scorer, Split]
_Slice = tuple[_Waiting, Query]
OnBatch = Callable[[Scorer, int, Scores], None]


@dataclass(slots=True, eq=False)
class Batcher:
    """The queue of one event loop. on_batch: told of each batch (scorer, requests, scores)."""

    settings: QueueSettings
    on_batch: OnBatch
    requests: int = 0
    rows: int = 0
    _lanes: dict[_Lane, deque[_Waiting]] = field(default_factory=dict)  # in the order of their turns
    _turn: asyncio.Handle | None = None
    _rows_per_second: float = 100_000.0

    def admit(self, rows: int = 1) -> None:
        """Nothing, where there is room for a request of so many rows. Overloaded."""
        settings = self.settings
        if self.requests < settings.max_requests and (not self.rows or self.rows + rows <= settings.max_rows):
            return
        seconds = min(30, math.ceil(self.rows / self._rows_per_second))
        raise Overloaded(
            f"{self.requests:,} requests with {self.rows:,} rows are waiting, at most "
            f"{settings.max_requests:,} and {settings.max_rows:,} may; try again after {seconds} s",
            retry_after=seconds,
        )

    async def submit(self, scorer: Scorer, query: Query) -> Scored:
        """The query's scores. Overloaded, TookTooLong, or what the scorer raised."""
        self.admit(query.rows.num_rows)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(query, loop.create_future(), time.perf_counter())
        self._lanes.setdefault((scorer, query.split), deque()).append(waiting)
        self.requests += 1
        self.rows += query.rows.num_rows
        self._schedule(loop)
        try:
            return await waiting.future
        finally:
            self.requests -= 1
            self.rows -= waiting.left

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        full = self.rows >= self.settings.max_batch_rows
        if self._turn is not None and full and isinstance(self._turn, asyncio.TimerHandle):
            self._turn.cancel()
            self._turn = None
        if self._turn is None:
            delay = 0.0 if full else self.settings.max_delay_seconds
            self._turn = loop.call_later(delay, self._take_turn) if delay else loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Score one batch of the lane whose turn it is."""
        self._turn = None
        lane = next(iter(self._lanes))
        waiting = self._lanes.pop(lane)
        batch = self._slices(waiting)
        if waiting:
            self._lanes[lane] = waiting
        if batch:
            self._score(lane[0], batch)
        if self._lanes:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _slices(self, lane: deque[_Waiting]) -> list[_Slice]:
        """At most one slice of each, `max_batch_rows` together; what then is done leaves the lane."""
        now, room, batch = time.perf_counter(), self.settings.max_batch_rows, []
        for _ in range(len(lane)):
            waiting = lane[0]
            rows = min(waiting.left, self.settings.slice_rows, self.settings.max_batch_rows)
            if rows > room:
                break
            lane.popleft()
            if waiting.future.done() or self._too_late(waiting, now):
                continue
            if not waiting.done:
                waiting.started = now
            batch.append((waiting, rows_of(waiting.query, waiting.done, waiting.done + rows)))
            room -= rows
            if rows < waiting.left:
                lane.append(waiting)
        return batch

    def _too_late(self, waiting: _Waiting, now: float) -> bool:
        late = now - waiting.arrived > self.settings.timeout_seconds
        if late:
            text = (
                f"it waited {now - waiting.arrived:.2f} s, wanted at most {self.settings.timeout_seconds:g}"
            )
            waiting.future.set_exception(TookTooLong(text))
        return late

    def _score(self, scorer: Scorer, batch: list[_Slice]) -> None:
        begun = time.perf_counter()
        try:
            scores = scorer.score([query for _, query in batch])
        except Exception as error:
            for waiting, _ in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        ended, lo = time.perf_counter(), 0
        for waiting, query in batch:
            hi = lo + query.rows.num_rows
            self._give(waiting, scores[lo:hi], ended)
            lo = hi
        self._rows_per_second += 0.1 * (lo / (ended - begun + 1e-9) - self._rows_per_second)
        self.on_batch(scorer, len(batch), scores)

    def _give(self, waiting: _Waiting, scores: Scores, now: float) -> None:
        """The scores of a request's next rows; with the last of them, it is answered."""
        total, lo = waiting.query.rows.num_rows, waiting.done
        waiting.done += len(scores)
        self.rows -= len(scores)
        if len(scores) < total:
            if waiting.scores is None:
                waiting.scores = np.empty(total, np.float32)
            waiting.scores[lo : waiting.done] = scores
            scores = waiting.scores
        if waiting.done == total and not waiting.future.done():
            queued, scored = waiting.started - waiting.arrived, now - waiting.started
            waiting.future.set_result(Scored(scores, queued, scored))


def rows_of(query: Query, lo: int, hi: int) -> Query:
    """The query for its candidates lo to hi alone."""
    rows = query.rows
    if (lo, hi) == (0, rows.num_rows):
        return query
    sparse = rows.sparse.select(lo, hi) if rows.sparse is not None else None
    return Query(query.split, query.context, Part(rows.dense[lo:hi], sparse), query.names[lo:hi])
