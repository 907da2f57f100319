"""The load generator: requests leave when they are due, and what they wait for is counted from then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st


def imported(path: Path) -> ModuleType:
    """A file that is in no package that tests see."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load = imported(Path(__file__).parents[2] / "benchmarks" / "load.py")
Load, Outcome, arrivals = load.Load, load.Outcome, load.arrivals

Behave = Callable[["Handler", bytes], None]
BODIES = [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    behave: Behave

    def do_POST(self) -> None:
        type(self).behave(self, self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int = 200, body: bytes = b"{}") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def served(behave: Behave) -> Iterator[str]:
    """The URL of a server that behaves so."""
    kind = type("Behaving", (Handler,), {"behave": staticmethod(behave)})
    with Server(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/rank"
        finally:
            server.shutdown()


def test_every_request_is_sent_once_and_bodies_in_turn() -> None:
    seen: list[bytes] = []

    def behave(handler: Handler, body: bytes) -> None:
        seen.append(body)
        handler.answer(body=b"x" * 300_000)

    with served(behave) as url:
        outcome = Load(url, BODIES).open_loop(arrivals("fixed", 200, 0.2))
    assert sorted(seen) == sorted((BODIES * 14)[:40])
    assert len(outcome.latencies) == len(outcome.due) == 40 and not outcome.failures
    assert {"requests", "rate", "p50", "p95", "p99", "max", "late_p99"} <= outcome.summary().keys()


def test_a_stall_is_charged_to_all_who_were_due_meanwhile() -> None:
    stall, rate, busy, numbers = 0.3, 100, threading.Lock(), iter(range(1000))

    def behave(handler: Handler, body: bytes) -> None:
        with busy:
            if next(numbers) == 5:
                time.sleep(stall)
        handler.answer()

    with served(behave) as url:
        outcome = Load(url, BODIES).open_loop(arrivals("fixed", rate, 0.5))
    latencies = np.array(outcome.latencies)[np.argsort(outcome.due)]
    assert len(latencies) == 50
    assert (latencies[5:35] >= stall - np.arange(30) / rate - 0.001).all()


def test_answers_that_are_no_success_are_failures() -> None:
    with served(lambda handler, body: handler.answer(429 if body == BODIES[1] else 200, b"full")) as url:
        outcome = Load(url, BODIES).open_loop(arrivals("fixed", 300, 0.1))
    assert outcome.failures == {"429": 10} and outcome.examples == {"429": "full"}
    assert len(outcome.latencies) == 20


@pytest.mark.parametrize("says_so", [True, False])
def test_a_connection_that_the_server_closes_costs_no_request(says_so: bool) -> None:
    def behave(handler: Handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        if says_so:
            handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True

    with served(behave) as url:
        outcome = Load(url, BODIES).open_loop(arrivals("poisson", 300, 0.2))
    assert not outcome.failures and len(outcome.latencies) == len(arrivals("poisson", 300, 0.2))


def test_a_request_without_an_answer_is_a_failure() -> None:
    def behave(handler: Handler, body: bytes) -> None:
        handler.close_connection = True

    with served(behave) as url:
        outcome = Load(url, BODIES).open_loop(arrivals("fixed", 100, 0.1))
    assert outcome.failures.total() == 10 and not outcome.latencies


def test_nobody_listening_is_a_failure() -> None:
    with served(lambda handler, body: None) as url:
        pass
    assert Load(url, BODIES).open_loop(arrivals("fixed", 100, 0.1)).failures.total() == 10


def test_a_closed_loop_keeps_its_number_of_requests_under_way() -> None:
    under_way, most, lock = [0], [0], threading.Lock()

    def behave(handler: Handler, body: bytes) -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.01)
        with lock:
            under_way[0] -= 1
        handler.answer()

    with served(behave) as url:
        outcome = Load(url, BODIES).closed_loop(3, 0.3)
    assert most[0] == 3 and outcome.latencies and not outcome.failures


@given(st.sampled_from(["fixed", "poisson"]), st.floats(1, 2000), st.floats(0.01, 5), st.integers(0, 9))
def test_requests_are_due_in_order_and_in_time(kind: str, rate: float, seconds: float, seed: int) -> None:
    due = arrivals("fixed" if kind == "fixed" else "poisson", rate, seconds, seed=seed)
    assert (np.diff(due) >= 0).all() and due.min(initial=0) >= 0 and due.max(initial=0) < seconds + 1 / rate
    assert abs(len(due) - rate * seconds) <= 6 * (rate * seconds) ** 0.5 + 6


def test_windows_are_of_when_requests_were_due() -> None:
    outcome = Outcome(due=[10.0, 10.5, 11.2, 13.0], latencies=[1.0, 3.0, 2.0, 4.0], seconds=4.0)
    assert [window.get("p50") for window in outcome.windows(1.0)] == [2000.0, 2000.0, None, 4000.0]
