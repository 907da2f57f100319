"""What each thread of a rank does when: always as sums, and when asked as events of the Chrome trace format.

    with span("look_up"):
        ...

`sums()` says how often each span was entered, how long it took, and what moved to other ranks meanwhile, at
about three microseconds a span. A `Timeline` notes every one of them (Perfetto, chrome://tracing); ranks on
several hosts are lined up by their wall clocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

Event = dict[str, Any]

_timeline: Timeline | None = None
_clock, _busy_clock = time.perf_counter_ns, time.thread_time_ns


@dataclass(slots=True)
class Sum:
    """Of the spans of one name. What moves counts for the innermost span of the thread that moves it.

    busy: of the nanoseconds, those in which the thread had a core; waiting: those in which it had none,
    because it waited for other ranks or for bytes from them. abroad: of the bytes sent, those that went to
    other hosts.
    """

    times: int = 0
    nanoseconds: int = 0
    busy: int = 0
    waiting: int = 0
    sent: int = 0
    abroad: int = 0

    def __add__(self, other: Sum) -> Sum:
        return Sum(*(getattr(self, name) + getattr(other, name) for name in _QUANTITIES))

    def __sub__(self, other: Sum) -> Sum:
        return Sum(*(getattr(self, name) - getattr(other, name) for name in _QUANTITIES))


_QUANTITIES = tuple(f.name for f in fields(Sum))


class _Sums:
    """A Sum for each name; threads add to them under a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.of: dict[str, Sum] = {}

    def done(self, name: str, nanoseconds: int, busy: int) -> None:
        with self.lock:
            found = self._find(name)
            found.times += 1
            found.nanoseconds += nanoseconds
            found.busy += busy

    def moved(self, name: str, sent: int, abroad: int, waiting: int) -> None:
        with self.lock:
            found = self._find(name)
            found.waiting += waiting
            found.sent += sent
            found.abroad += abroad

    def copy(self) -> dict[str, Sum]:
        with self.lock:
            return {name: found + Sum() for name, found in self.of.items()}

    def _find(self, name: str) -> Sum:
        found = self.of.get(name)
        if found is None:
            found = self.of[name] = Sum()
        return found


class _Here(threading.local):
    name = ""  # of the innermost span of this thread


_sums, _here = _Sums(), _Here()


def sums() -> dict[str, Sum]:
    """Those of all spans of this process so far; "" is what moved outside of any."""
    return _sums.copy()


def moving(move: Callable[[], None], sent: int, abroad: int) -> None:
    """`move()`, which sends so many bytes to other ranks, `abroad` of them to other hosts."""
    start, busy = _clock(), _busy_clock()
    move()
    waiting = _clock() - start - (_busy_clock() - busy)
    _sums.moved(_here.name, sent, abroad, max(0, waiting))


class span:  # reads as a verb
    """While inside, this thread does `name`."""

    __slots__ = ("around", "busy", "name", "start", "timeline")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.around, _here.name = _here.name, self.name
        self.timeline = _timeline
        self.start, self.busy = _clock(), _busy_clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end, busy = _clock(), _busy_clock()
        _here.name = self.around
        _sums.done(self.name, end - self.start, busy - self.busy)
        if self.timeline is not None:
            self.timeline.note(self.name, self.start, end)


class Timeline:
    """The spans of this process. One at a time records: between `start` and `stop`."""

    def __init__(self) -> None:
        self._to_wall_clock = time.time_ns() - _clock()
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

    def note(self, name: str, start: int, end: int) -> None:
        """This thread did `name` from `start` to `end`, by the clock of `perf_counter_ns`."""
        thread = threading.current_thread()
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
