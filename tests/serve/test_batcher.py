"""The queue: who is scored with whom, in what order, and what is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.serve.batcher import Batcher, Scored, Scorer, Scores, rows_of
from tesserec.serve.problems import Overloaded, TookTooLong
from tesserec.serve.query import Part, Query, Split
from tesserec.serve.settings import QueueSettings

SPLIT = Split((), ())


def query(rows: int, start: int = 0, split: Split = SPLIT) -> Query:
    """Rows that are named, and scored, start, start + 1, …"""
    values = np.arange(start, start + rows)
    sparse = KeyedJaggedTensor.from_dense({"item": values})
    own = Part(values[:, None].astype(np.float32), sparse)
    return Query(split, Part(np.zeros((1, 0), np.float32), None), own, values.tolist())


class Echo:
    """A scorer whose scores are the rows' values; the rows of each batch are in `batches`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def score(self, queries: Sequence[Query]) -> Scores:
        assert len({q.split for q in queries}) == 1
        for q in queries:
            assert q.rows.sparse is not None
            assert q.rows.sparse["item"].values.tolist() == q.rows.dense[:, 0].tolist() == q.names
        self.batches.append([q.rows.num_rows for q in queries])
        return np.concatenate([q.rows.dense[:, 0] for q in queries])


class Broken(Echo):
    def score(self, queries: Sequence[Query]) -> Scores:
        raise ZeroDivisionError


class Slow(Echo):
    def score(self, queries: Sequence[Query]) -> Scores:
        time.sleep(0.03)
        return super().score(queries)


def batcher(**settings: Any) -> Batcher:
    return Batcher(QueueSettings(**settings), lambda scorer, requests, scores: None)


def run(*tasks: Coroutine[Any, Any, Scored]) -> list[Scored | BaseException]:
    """What became of each, submitted in one turn of a loop."""

    async def all_of_them() -> list[Scored | BaseException]:
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(all_of_them())


def scores_of(outcome: Scored | BaseException) -> list[float]:
    assert isinstance(outcome, Scored), outcome
    scores: list[float] = outcome.scores.tolist()
    return scores


def test_what_comes_in_one_turn_is_scored_together() -> None:
    queue, echo = batcher(), Echo()
    outcomes = run(*(queue.submit(echo, query(2, 10 * i)) for i in range(5)))
    assert [scores_of(outcome) for outcome in outcomes] == [[10 * i, 10 * i + 1] for i in range(5)]
    assert echo.batches == [[2] * 5]
    assert (queue.requests, queue.rows) == (0, 0)


def test_other_versions_and_other_splits_are_scored_apart() -> None:
    queue, one, other = batcher(), Echo(), Echo()
    asked: list[tuple[Scorer, Split]] = [(one, SPLIT), (other, SPLIT), (one, Split((), (0,))), (one, SPLIT)]
    run(*(queue.submit(scorer, query(1, split=split)) for scorer, split in asked))
    assert (one.batches, other.batches) == ([[1, 1], [1]], [[1]])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 16),
    st.integers(1, 16),
    st.sampled_from([0.0, 0.001]),
)
def test_any_slicing_gives_each_its_own_scores(sizes: list[int], batch: int, part: int, delay: float) -> None:
    queue, echo = batcher(max_batch_rows=batch, slice_rows=part, max_delay_seconds=delay), Echo()
    outcomes = run(*(queue.submit(echo, query(size, 100 * i)) for i, size in enumerate(sizes)))
    for i, (size, outcome) in enumerate(zip(sizes, outcomes, strict=True)):
        assert scores_of(outcome) == list(range(100 * i, 100 * i + size))
    assert all(sum(rows) <= batch and max(rows) <= part for rows in echo.batches)
    assert sum(map(sum, echo.batches)) == sum(sizes)
    assert (queue.requests, queue.rows) == (0, 0)


def test_a_large_request_lets_small_ones_pass() -> None:
    queue, echo, done = batcher(max_batch_rows=8, slice_rows=4), Echo(), []

    async def asked(name: str, rows: int) -> Scored:
        scored = await queue.submit(echo, query(rows))
        done.append(name)
        return scored

    run(asked("bulk", 100), *(asked(f"small {i}", 2) for i in range(6)))
    assert done == [*(f"small {i}" for i in range(6)), "bulk"]


def test_large_requests_of_one_version_do_not_hold_up_another() -> None:
    queue, busy, idle = batcher(max_batch_rows=4, slice_rows=4), Echo(), Echo()
    order: list[str] = []

    async def asked(scorer: Echo, name: str, rows: int) -> Scored:
        scored = await queue.submit(scorer, query(rows))
        order.append(name)
        return scored

    run(asked(busy, "bulk", 40), asked(idle, "small", 1))
    assert order == ["small", "bulk"]


def test_a_failed_batch_fails_only_its_own() -> None:
    queue, echo = batcher(), Echo()
    broken = Broken()
    outcomes = run(*(queue.submit(scorer, query(3)) for scorer in (broken, echo, broken)))
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError, Scored, ZeroDivisionError]
    assert (queue.requests, queue.rows) == (0, 0)


def test_beyond_the_queue_requests_are_refused_and_told_when_to_come_back() -> None:
    queue, echo = batcher(max_requests=3, max_rows=20), Echo()
    outcomes = run(*(queue.submit(echo, query(1)) for _ in range(5)))
    assert [type(outcome) for outcome in outcomes] == [Scored] * 3 + [Overloaded] * 2
    refused = outcomes[-1]
    assert isinstance(refused, Overloaded) and refused.headers() == {"Retry-After": "1"}
    by_rows = run(*(queue.submit(echo, query(rows)) for rows in (15, 10, 5)))
    assert [type(outcome) for outcome in by_rows] == [Scored, Overloaded, Scored]
    assert (queue.requests, queue.rows) == (0, 0)


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    queue, echo = batcher(max_rows=10), Echo()
    assert len(scores_of(run(queue.submit(echo, query(50)))[0])) == 50


def test_who_waited_too_long_is_told_and_not_scored() -> None:
    queue, slow = batcher(timeout_seconds=0.01, max_batch_rows=2), Slow()
    outcomes = run(*(queue.submit(slow, query(2)) for _ in range(2)))
    assert [type(outcome) for outcome in outcomes] == [Scored, TookTooLong]
    assert slow.batches == [[2]]


def test_who_left_is_not_scored() -> None:
    queue, echo = batcher(), Echo()

    async def leave() -> None:
        task = asyncio.create_task(queue.submit(echo, query(2)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, queue.submit(echo, query(1)), return_exceptions=True)

    asyncio.run(leave())
    assert echo.batches == [[1]] and (queue.requests, queue.rows) == (0, 0)


def test_with_a_delay_later_requests_join_and_a_full_batch_does_not_wait() -> None:
    queue, echo = batcher(max_delay_seconds=0.02, max_batch_rows=6), Echo()

    async def later() -> Scored:
        await asyncio.sleep(0.001)
        return await queue.submit(echo, query(2))

    run(queue.submit(echo, query(1)), later())
    assert echo.batches == [[1, 2]]
    full, patient = Echo(), batcher(max_delay_seconds=1, max_batch_rows=2)

    async def two_in_turn() -> None:
        first = asyncio.create_task(patient.submit(full, query(1)))
        await asyncio.sleep(0)
        async with asyncio.timeout(0.9):
            await asyncio.gather(first, patient.submit(full, query(1)))

    asyncio.run(two_in_turn())
    assert full.batches == [[1, 1]]


def test_batches_are_told_of() -> None:
    told: list[tuple[Scorer, int, list[float]]] = []
    queue = Batcher(QueueSettings(), lambda *about: told.append((about[0], about[1], about[2].tolist())))
    echo = Echo()
    run(*(queue.submit(echo, query(2)) for _ in range(2)))
    assert told == [(echo, 2, [0, 1, 0, 1])]


def test_part_of_a_query_is_that_of_its_candidates() -> None:
    whole = query(9, 5)
    assert rows_of(whole, 0, 9) is whole
    part = rows_of(whole, 2, 4)
    assert part.names == part.rows.dense[:, 0].tolist() == [7, 8]


@pytest.mark.parametrize("split", [SPLIT, Split((0,), (1, 2))])
def test_times_are_told(split: Split) -> None:
    scored = run(batcher().submit(Slow(), query(1, split=split)))[0]
    assert isinstance(scored, Scored) and scored.queue_seconds >= 0 and scored.score_seconds >= 0.03
