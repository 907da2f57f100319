from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesserec.serve.state import (
    ModelState,
    ServiceState,
    Shadow,
    StateError,
    StateFile,
    StateInMemory,
    StateStore,
    may_go_live,
    needed,
    promoted,
    promoted_unasked,
    rolled_back,
    spare,
    with_failed,
    with_loaded,
    with_traffic,
    with_unloaded,
)

NUMBERS = st.integers(1, 6).map(str)
CHANGES = st.one_of(
    NUMBERS.map(lambda n: partial(promoted, number=n)),
    NUMBERS.map(lambda n: partial(promoted_unasked, number=n)),
    st.just(rolled_back),
    NUMBERS.map(lambda n: partial(with_failed, number=n, reason="damaged")),
    NUMBERS.map(lambda n: partial(with_loaded, number=n)),
    NUMBERS.map(lambda n: partial(with_unloaded, number=n)),
    st.tuples(NUMBERS, NUMBERS).map(
        lambda two: partial(with_traffic, split={two[0]: 100.0}, shadow=Shadow(version=two[1], percent=5))
    ),
)


def decided(changes: list[Callable[[ModelState], ModelState]]) -> ModelState:
    """What a row of changes makes of a first start."""
    state = ModelState()
    for change in changes:
        state = change(state)
    return state


STATES = st.lists(CHANGES, max_size=12).map(decided)


@given(STATES)
def test_no_version_is_twice_among_what_is_and_was_live(state: ModelState) -> None:
    assert len(set(state.chain())) == len(state.chain())
    assert state.highest >= max(map(int, state.chain()), default=0)


@given(STATES, NUMBERS)
def test_a_rollback_undoes_a_promotion(state: ModelState, number: str) -> None:
    after = rolled_back(promoted(state, number))
    if state.live not in (None, number):
        assert after.live == state.live
        assert not may_go_live(after, number)


@given(STATES, NUMBERS)
def test_nothing_goes_live_twice_by_itself(state: ModelState, number: str) -> None:
    once = promoted_unasked(state, number)
    if once.live == number:
        assert promoted_unasked(rolled_back(once), number) == rolled_back(once)


@given(STATES, NUMBERS)
def test_what_was_tried_in_the_traffic_does_not_go_live_by_itself(state: ModelState, number: str) -> None:
    for split, shadow in [({number: 100.0}, None), ({}, Shadow(version=number, percent=5))]:
        tried = with_traffic(state, split, shadow)
        assert not may_go_live(with_traffic(tried, {}, None), number)
        assert not may_go_live(rolled_back(tried), number)


@given(STATES, NUMBERS)
def test_a_failed_version_is_not_live_if_another_can_be(state: ModelState, number: str) -> None:
    after = with_failed(state, number, "damaged")
    usable = [v for v in state.history if v not in after.failed]
    assert after.live != number or not usable


@given(STATES, st.sets(NUMBERS), st.sets(NUMBERS), st.booleans())
def test_what_is_needed_is_there_and_sound(
    state: ModelState, there: set[str], failed: set[str], auto_promote: bool
) -> None:
    usable = there - failed - state.failed.keys()
    found = needed(state, there, failed, auto_promote=auto_promote)
    assert len(set(found)) == len(found) and set(found) <= usable
    assert set(spare(state, there, failed)) <= usable
    assert set(state.serving()) & usable <= set(found)
    first = [v for v in state.chain() if v in usable][:1]
    assert found[: len(first)] == first
    newest = max(usable, key=int, default="0")
    if auto_promote and may_go_live(state, newest) and newest not in state.unloaded:
        assert newest in found


@given(st.dictionaries(st.text(), STATES), st.integers(0))
def test_states_survive_json(models: dict[str, ModelState], revision: int) -> None:
    state = ServiceState(models=models, revision=revision)
    assert ServiceState.model_validate_json(json.dumps(state.model_dump(mode="json"))) == state


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_no_change_of_many_threads_is_lost(tmp_path: Path, kind: str) -> None:
    memory = StateInMemory()

    def store() -> StateStore:
        return StateFile(tmp_path / "state.json") if kind == "file" else memory

    def change_often(number: int) -> None:
        own = store()
        for _ in range(20):
            own.change(f"model {number % 2}", partial(with_loaded, number=str(number + 1)))

    threads = [threading.Thread(target=change_often, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = store().read()
    assert state.revision == 80
    assert [state.model(f"model {i}").loaded for i in range(2)] == [{"1": 20, "3": 20}, {"2": 20, "4": 20}]


def test_others_see_a_change_and_a_new_process_starts_with_it(tmp_path: Path) -> None:
    one, other = (StateFile(tmp_path / "state.json") for _ in range(2))
    assert other.read() == ServiceState()
    changed = one.change("m", partial(promoted, number="3"))
    assert changed.model("m").live == "3"
    assert one.read() == other.read() == StateFile(tmp_path / "state.json").read() == changed


def test_a_change_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    store = StateFile(tmp_path / "state.json")
    store.change("m", rolled_back)
    assert not store.path.exists()


def test_a_change_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    def refuse(state: ModelState) -> ModelState:
        raise KeyError("refused")

    store = StateFile(tmp_path / "state.json")
    before = store.change("m", partial(promoted, number="1"))
    with pytest.raises(KeyError):
        store.change("m", refuse)
    assert store.read() == before
    assert store.change("m", partial(promoted, number="2")).revision == 2


PROMOTE_FOR_EVER = """
import itertools, sys
from functools import partial
from pathlib import Path
from tesserec.serve.state import StateFile, promoted

store = StateFile(Path(sys.argv[1]))
for number in itertools.count(store.read().model("m").highest + 1):
    store.change("m", partial(promoted, number=str(number)))
    print(number, flush=True)
"""


def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path) -> None:
    path, rng = tmp_path / "state.json", random.Random(0)
    for _ in range(5):
        command = [sys.executable, "-c", PROMOTE_FOR_EVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = process.stdout.readline()
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
            last = int((told + process.stdout.read()).split()[-1])
        found = StateFile(path).read()
        assert int(found.model("m").live or 0) in (last, last + 1)
        assert found.revision == found.model("m").highest
    StateFile(path).change("m", rolled_back)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.json", "state.json.lock"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"\xff", b'{"format_version": 2}', b'{"models": {"m": {"life": "3"}}}'],
)
def test_a_damaged_file_is_named_and_never_overwritten(tmp_path: Path, damage: bytes) -> None:
    store = StateFile(tmp_path / "state.json")
    store.path.write_bytes(damage)
    calls: list[Any] = [store.read, partial(store.change, "m", partial(promoted, number="1"))]
    for call in calls:
        with pytest.raises(StateError, match=r"state\.json"):
            call()
    assert store.path.read_bytes() == damage
