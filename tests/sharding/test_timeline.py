"""Spans become events of the Chrome trace format where asked, and sums always."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress

import numpy as np

from tesserec.sharding.comm import Comm
from tesserec.sharding.threads import run_ranks
from tesserec.sharding.timeline import Sum, Timeline, span, sums


def test_spans_nest_inside_their_thread() -> None:
    timeline = Timeline()
    timeline.start()
    with span("outer"), span("inner"):
        pass
    with suppress(ZeroDivisionError), span("failing"):
        raise ZeroDivisionError
    timeline.stop()
    events = {event["name"]: event for event in timeline.events(3) if event["ph"] == "X"}
    assert set(events) == {"outer", "inner", "failing"}
    outer, inner = events["outer"], events["inner"]
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    assert {event["pid"] for event in events.values()} == {3}
    json.dumps(timeline.events(3))


def test_threads_have_their_own_names_and_rows() -> None:
    timeline = Timeline()
    timeline.start()

    def work() -> None:
        with span("there"):
            pass

    with span("here"):
        thread = threading.Thread(target=work, name="helper")
        thread.start()
        thread.join()
    timeline.stop()
    events = timeline.events(0)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    where = {e["name"]: names[e["tid"]] for e in events if e["ph"] == "X"}
    assert where == {"there": "helper", "here": threading.current_thread().name}


def test_nothing_is_recorded_unasked() -> None:
    timeline = Timeline()
    with span("before"):
        pass
    timeline.start()
    timeline.stop()
    with span("after"):
        pass
    assert [e for e in timeline.events(0) if e["ph"] == "X"] == []


def test_sums_tell_how_long_and_how_much_of_it_a_core_was_had() -> None:
    for _ in range(2):
        with span("sleeping"):
            time.sleep(0.01)
    found = sums()["sleeping"]
    assert found.times == 2 and found.nanoseconds >= 2e7 and found.busy < found.nanoseconds / 2
    assert found - found == Sum() and found + Sum() == found


def test_bytes_count_for_the_innermost_span_of_their_thread() -> None:
    def run(comm: Comm) -> None:
        with span("around"), span("sending"):
            comm.all_to_all(np.zeros(6, np.int32), [3, 3], [3, 3])

    run_ranks(2, run)
    found = sums()
    assert found["sending"].sent == 2 * 12 and found["sending"].abroad == 0
    assert found["around"].sent == 0
