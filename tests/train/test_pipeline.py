"""What is made ahead is made in order and to its end; what ranks tell each other arrives, errors too."""

from __future__ import annotations

import json
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.threads import run_ranks
from tesserec.sharding.timeline import Timeline, span
from tesserec.train.pipeline import Recording, one_ahead, write_timeline
from tesserec.train.ranks import all_numbers, from_first_rank, on_first_rank, to_first_rank


def test_values_come_in_order_until_none() -> None:
    values = iter([1, 2, 3])
    assert list(one_ahead(lambda: next(values, None))) == [1, 2, 3]
    assert list(one_ahead(lambda: None)) == []


def test_one_value_is_made_on_another_thread_while_one_is_in_use() -> None:
    made: list[int] = []
    numbers, again = count(), threading.Event()

    def make() -> int:
        assert threading.current_thread() is not threading.main_thread()
        made.append(next(numbers))
        if len(made) == 2:
            again.set()
        return made[-1]

    ahead = one_ahead(make)
    assert next(ahead) == 0
    assert again.wait(5) and made == [0, 1]
    ahead.close()


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_ranks_that_leave_after_the_same_value_have_made_the_same(pause: float) -> None:
    """A value that only some had begun to make would leave them waiting for the others for ever."""

    def run(comm: Comm) -> int:
        made, channel = [], comm.duplicate()

        def make() -> int:
            time.sleep(pause * comm.rank)
            channel.barrier()
            made.append(1)
            return len(made)

        ahead = one_ahead(make)
        for _ in range(3):
            next(ahead)
        ahead.close()
        return len(made)

    assert run_ranks(2, run) == [4, 4]


def test_an_error_comes_at_its_turn() -> None:
    values = iter([1, 0])
    ahead = one_ahead(lambda: 1 // next(values))
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_values_of_all_ranks_reach_the_first() -> None:
    def run(comm: Comm) -> list[object]:
        return [array.sum() for array in to_first_rank(comm, np.arange(10**5) * comm.rank)]

    assert run_ranks(3, run) == [[0, 4999950000, 9999900000], [], []]


def test_values_and_errors_of_the_first_rank_reach_all() -> None:
    assert run_ranks(2, lambda comm: from_first_rank(comm, comm.rank + 5)) == [5, 5]
    assert run_ranks(2, lambda comm: on_first_rank(comm, lambda: comm.rank)) == [0, 0]

    def fails(comm: Comm) -> str:
        empty: dict[str, int] = {}
        with pytest.raises(KeyError, match="gone"):
            on_first_rank(comm, lambda: empty["gone"])
        return "raised"

    assert run_ranks(2, fails) == ["raised", "raised"]


def test_numbers_of_each_rank_keep_their_bits() -> None:
    def run(comm: Comm) -> list[list[float]]:
        return all_numbers(comm, [comm.rank / 10, 1 / 3])

    assert run_ranks(3, run) == [[[0.0, 1 / 3], [0.1, 1 / 3], [0.2, 1 / 3]]] * 3


def test_recording_leaves_out_the_first_step_and_ends(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "timeline.json", LocalComm(), steps=2)
    for step in range(5):
        with span(f"step {step}"):
            pass
        recording.step()
    recording.finish()
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == ["step 1", "step 2"]


def test_a_timeline_of_nothing_is_written(tmp_path: Path) -> None:
    write_timeline(tmp_path / "timeline.json", [Timeline().events(0)])
    assert "traceEvents" in json.loads((tmp_path / "timeline.json").read_text())
