"""Spans become events of the Chrome trace format, and cost nothing while nobody records."""

from __future__ import annotations

import json
import threading
from contextlib import suppress

from tesserec.sharding.timeline import Timeline, span


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
