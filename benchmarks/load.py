"""An open-loop load generator for HTTP: requests leave when they are due, however slow the answers are.

    python -m benchmarks.load http://127.0.0.1:8100/v1/models/dlrm:rank --bodies bodies.jsonl --rate 500

Each line of `bodies` is one request's body; they are sent in turn. A latency counts from the moment at which
the request was due, so that a server that stalls is charged for all who would have come meanwhile
("coordinated omission"). Without --rate it is a closed loop: each of --connections sends its next request
when it has its answer, which finds the capacity. Prints one JSON line: see `Outcome.summary`.

One thread, non-blocking sockets, connections kept alive; a new one is opened where all are waiting. The
sleep until the next request is due is exact to microseconds (`select`), and how late requests left is
reported beside what they waited for.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
Arrivals = Literal["fixed", "poisson"]
MAX_CONNECTIONS = 512
PATIENCE_SECONDS = 30.0  # for answers still out when the last request has left


def arrivals(kind: Arrivals, rate: float, seconds: float, *, seed: int = 0) -> Times:
    """Seconds from the start at which requests are due: every 1/rate, or a Poisson process."""
    if kind == "fixed":
        return np.arange(round(rate * seconds)) / rate
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, round(rate * seconds * 1.2) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


@dataclass(slots=True)
class Outcome:
    """Of each request answered: when it was due and how long its answer took, in seconds.

    failures: how many others there were of each status or error; examples: what the first one said. resent:
    requests that met a connection which the server was just closing, and went over another.
    """

    due: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    resent: int = 0
    seconds: float = 0.0

    def fail(self, kind: str, example: str = "") -> None:
        """Count a failure."""
        self.failures[kind] += 1
        self.examples.setdefault(kind, example)

    def summary(self) -> dict[str, Any]:
        """requests, rate, p50/p95/p99/max in ms, how late requests left (p99, ms), failures by kind."""
        found = {"requests": len(self.latencies), "rate": round(len(self.latencies) / self.seconds, 1)}
        late = {"late_p99": _quantiles(self.late).get("p99", 0.0)}
        return {
            **found,
            **_quantiles(self.latencies),
            **late,
            "resent": self.resent,
            "failures": self.failures,
            "examples": self.examples,
        }

    def windows(self, seconds: float) -> list[dict[str, float]]:
        """Quantiles of the requests due in each so many seconds."""
        due, latencies = np.array(self.due), np.array(self.latencies)
        number = ((due - due.min(initial=np.inf)) // seconds).astype(int)
        return [_quantiles(latencies[number == n]) for n in range(number.max(initial=-1) + 1)]


def _quantiles(seconds: Sequence[float] | Times) -> dict[str, float]:
    """p50, p95, p99 and max in milliseconds; {} of none."""
    if not len(seconds):
        return {}
    marks = np.percentile(seconds, [50, 95, 99, 100]) * 1e3
    return dict(zip(("p50", "p95", "p99", "max"), marks.round(3).tolist(), strict=True))


class Connection:
    """One request at a time over one socket."""

    def __init__(self, url: SplitResult):
        self.socket = socket.create_connection((url.hostname or "", url.port or 80))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.used, self.due, self.request = 0, 0.0, b""
        self._out = memoryview(b"")
        self._buffer = bytearray()
        self._end = 0  # where the answer ends; 0: not known yet

    def send(self, request: bytes, due: float) -> None:
        """Begin a request that was due then."""
        self.used, self.due, self.request = self.used + 1, due, request
        self._out, self._end = memoryview(request), 0
        self._buffer.clear()

    def push(self) -> bool:
        """Send what is left of the request -> whether all is sent."""
        while self._out:
            try:
                self._out = self._out[self.socket.send(self._out) :]
            except BlockingIOError:
                return False
        return True

    def pull(self) -> int | None:
        """Read what is there -> the status, once the answer is whole. ConnectionError when it cannot be."""
        try:
            read = self.socket.recv(1 << 18)
        except BlockingIOError:
            return None
        if not read:
            raise ConnectionError("closed before the answer was whole")
        self._buffer += read
        if not self._end:
            self._end = _answer_end(self._buffer)
        return int(self._buffer[9:12]) if 0 < self._end <= len(self._buffer) else None

    @property
    def unheard(self) -> bool:
        """Whether it was kept alive from another request and nothing of this one's answer has come."""
        return self.used > 1 and not self._buffer

    @property
    def head(self) -> bytes:
        """Of the answer, in small letters."""
        return bytes(self._buffer[: self._buffer.index(b"\r\n\r\n")]).lower()

    @property
    def body(self) -> bytes:
        """Of the answer."""
        return bytes(self._buffer[self._buffer.index(b"\r\n\r\n") + 4 : self._end])


def _answer_end(buffer: bytearray) -> int:
    """Bytes of the whole answer; 0 while its head is not there."""
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return 0
    for line in bytes(buffer[:head]).lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + 4 + int(line[15:])
    raise ConnectionError("an answer without Content-Length")


class Load:
    """Requests to one URL, the bodies in turn. One loop for each."""

    def __init__(self, url: str, bodies: Sequence[bytes], *, headers: Sequence[str] = ()):
        self._url = urlsplit(url)
        self._requests = cycle([_request(self._url, body, headers) for body in bodies])
        self._epoll = select.epoll()
        self._busy: dict[int, Connection] = {}
        self._idle: dict[int, Connection] = {}
        self._outcome = Outcome()

    def open_loop(self, due: Times) -> Outcome:
        """Send a request at each time of `due`, seconds from now, and wait for the answers."""
        start = time.perf_counter()
        coming = deque((due + start).tolist())
        end = start + max(due, default=0.0) + PATIENCE_SECONDS
        while (coming or self._busy) and (now := time.perf_counter()) < end:
            while coming and coming[0] <= now and len(self._busy) < MAX_CONNECTIONS:
                self._send(next(self._requests), coming.popleft())
            if coming and len(self._busy) < MAX_CONNECTIONS:
                self._take(coming[0])
            elif self._busy:
                self._take(end)
        return self._finish(start, len(coming))

    def closed_loop(self, connections: int, seconds: float) -> Outcome:
        """Keep `connections` requests under way for so long, then wait for the last answers."""
        start = time.perf_counter()
        end = start + seconds
        while (now := time.perf_counter()) < end or (self._busy and now < end + PATIENCE_SECONDS):
            for _ in range(connections - len(self._busy) if now < end else 0):
                self._send(next(self._requests), now)
            self._take(end if now < end else end + PATIENCE_SECONDS)
        return self._finish(start, 0)

    def _send(self, request: bytes, due: float) -> None:
        """Over the connection that was used last, or a new one."""
        self._outcome.late.append(time.perf_counter() - due)
        try:
            connection = self._idle.popitem()[1] if self._idle else Connection(self._url)
        except OSError as error:
            self._outcome.fail(repr(error))
            return
        if not connection.used:
            self._epoll.register(connection.socket, select.EPOLLIN)
        self._busy[connection.socket.fileno()] = connection
        connection.send(request, due)
        self._guarded(connection, select.EPOLLOUT)

    def _take(self, until: float) -> None:
        """Wait for something to happen by then, and deal with all that has."""
        select.select([self._epoll], [], [], max(0.0, until - time.perf_counter()))
        for fd, event in self._epoll.poll(0):
            connection = self._idle.pop(fd, None)
            if connection is None:
                self._guarded(self._busy[fd], event)
            else:
                connection.socket.close()  # nothing comes unasked but the end

    def _guarded(self, connection: Connection, event: int) -> None:
        """Go on with a request; ConnectionErrors are counted."""
        try:
            if event & select.EPOLLOUT:
                sent = connection.push()
                self._epoll.modify(connection.socket, select.EPOLLIN | (0 if sent else select.EPOLLOUT))
            status = connection.pull() if event & ~select.EPOLLOUT else None
        except ConnectionError as error:
            self._broken(connection, error)
        else:
            if status is not None:
                self._answered(connection, status)

    def _answered(self, connection: Connection, status: int) -> None:
        if status == 200:
            self._outcome.due.append(connection.due)
            self._outcome.latencies.append(time.perf_counter() - connection.due)
        else:
            self._outcome.fail(str(status), connection.body[:300].decode(errors="replace"))
        fd = connection.socket.fileno()
        del self._busy[fd]
        if b"connection: close" in connection.head:
            connection.socket.close()
        else:
            self._idle[fd] = connection

    def _broken(self, connection: Connection, error: ConnectionError) -> None:
        del self._busy[connection.socket.fileno()]
        connection.socket.close()
        if connection.unheard:
            self._outcome.resent += 1
            self._send(connection.request, connection.due)
        else:
            self._outcome.fail(repr(error))

    def _finish(self, start: float, unsent: int) -> Outcome:
        self._outcome.seconds = time.perf_counter() - start
        if unsent or self._busy:
            self._outcome.failures["no answer"] += unsent + len(self._busy)
        for connection in (*self._busy.values(), *self._idle.values()):
            connection.socket.close()
        self._epoll.close()
        return self._outcome


def _request(url: SplitResult, body: bytes, headers: Sequence[str]) -> bytes:
    lines = [
        f"POST {url.path} HTTP/1.1",
        f"Host: {url.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def main() -> None:
    """One measurement, as one JSON line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--bodies", type=Path, required=True, help="a request's body in each line")
    parser.add_argument("--rate", type=float, help="requests per second; a closed loop without")
    parser.add_argument("--arrivals", choices=("fixed", "poisson"), default="fixed")
    parser.add_argument("--connections", type=int, default=4, help="of the closed loop")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window", type=float, help="quantiles of each so many seconds besides")
    parser.add_argument("--header", action="append", default=[], help="such as 'Authorization: Bearer …'")
    args = parser.parse_args()
    load = Load(args.url, args.bodies.read_bytes().splitlines(), headers=args.header)
    if args.rate is None:
        outcome = load.closed_loop(args.connections, args.seconds)
    else:
        outcome = load.open_loop(arrivals(args.arrivals, args.rate, args.seconds, seed=args.seed))
    windows = {"windows": outcome.windows(args.window)} if args.window else {}
    print(json.dumps({**outcome.summary(), **windows}))


if __name__ == "__main__":
    main()
