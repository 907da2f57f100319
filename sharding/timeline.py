"""What each thread of a rank does when, as events of the Chrome trace format (Perfetto, chrome://tracing).

    with span("look_up"):
        ...

A span costs a test of one name while nothing is recorded. Ranks on several hosts are lined up by their wall
clocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Event = dict[str, Any]

_NOTHING = nullcontext()
_timeline: Timeline | None = None


def span(name: str) -> AbstractContextManager[None]:
    """While inside, this thread does `name`; noted where a timeline is being recorded."""
    return _NOTHING if _timeline is None else _timeline.span(name)


class Timeline:
    """The spans of this process. One at a time records: between `start` and `stop`."""

    def __init__(self) -> None:
        self._to_wall_clock = time.time_ns() - time.perf_counter_ns()
        self._spans: list[tuple[str, int, int, int]] = []  # name, thread, start, nanoseconds
        self._threads: dict[int, str] = {}

    def start(self) -> None:
        """Record from now on."""
        global _timeline
        _timeline = self

    def stop(self) -> None:
        """Record no more; spans that are open are still noted."""
        global _timeline
        _timeline = None

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """While inside, this thread does `name`."""
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            end, thread = time.perf_counter_ns(), threading.current_thread()
            ident = thread.ident or 0
            self._threads.setdefault(ident, thread.name)
            self._spans.append((name, ident, start + self._to_wall_clock, end - start))

    def events(self, rank: int) -> list[Event]:
        """What was recorded, as JSON values: process `rank`, one thread for each of ours, microseconds."""
        spans = list(self._spans)
        places = {ident: i for i, ident in enumerate(dict.fromkeys(s[1] for s in spans))}
        names = [_name("process_name", rank, 0, f"rank {rank}")]
        names += [_name("thread_name", rank, place, self._threads[i]) for i, place in places.items()]
        return names + [
            {"name": name, "ph": "X", "pid": rank, "tid": places[i], "ts": start / 1000, "dur": ns / 1000}
            for name, i, start, ns in spans
        ]


def _name(kind: str, rank: int, thread: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": rank, "tid": thread, "args": {"name": name}}
