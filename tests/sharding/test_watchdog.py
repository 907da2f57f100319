"""The judge finds the rank at fault; real ranks that go wrong end the job, with the reason first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tesserec.sharding.comm import LocalComm
from tesserec.sharding.launch import mpiexec
from tesserec.sharding.watchdog import JUDGED, Judge, Note, Pulse, Verdict, patience, progress, pulse, watch

PROGRAM = Path(__file__).with_name("faulty.py")
TIMEOUT = 10.0
LONG = JUDGED * TIMEOUT + 0.1

WORKS = Note(0.1, 0, "", False, "")
WAITS = Note(0.1, 0.1, "all_reduce", True, "")
STUCK = Note(LONG, LONG, "all_reduce", True, "")
STALLED = Note(LONG, 0, "", False, "")
PATIENT = Note(LONG, 0, "", False, "compiling")
AHEAD = Note(LONG, LONG, "all_to_all", False, "")  # a thread of it waits, the main thread is elsewhere
LEFT = Note(LONG, 0, "", False, "", "its program ended")


def verdict(*notes: Note, silent: float = 0.0) -> Verdict | None:
    """Of a judge who has not heard of the last rank for `silent` seconds, but just now of the others."""
    judge = Judge(len(notes), TIMEOUT, 0.0)
    for rank, note in enumerate(notes):
        judge.hear(rank, note, 100.0 - (silent if rank == len(notes) - 1 else 0.0))
    return judge.verdict(100.0)


@pytest.mark.parametrize(
    "notes",
    [
        (WORKS, WORKS),
        (WAITS, WORKS),
        (WAITS, WAITS),
        (STUCK, WORKS),  # slow, but not at fault
        (STALLED, STALLED),  # nobody waits: a long computation
        (STUCK, PATIENT),
        (AHEAD, PATIENT),
        (AHEAD._replace(patience="compiling"), STUCK),
        (LEFT, LEFT),
        (LEFT, PATIENT),
        (LEFT, WORKS),
    ],
)
def test_the_judge_lets_ranks_work(notes: tuple[Note, Note]) -> None:
    assert verdict(*notes) is None
    assert verdict(*notes, silent=JUDGED * TIMEOUT - 0.1) is None


def test_the_judge_finds_the_rank_at_fault() -> None:
    assert verdict(STUCK, STUCK, STALLED) == (
        2,
        "no progress for 7 s while rank 0 waits in all_reduce",
        False,
    )
    assert verdict(STALLED, AHEAD) == (0, "no progress for 7 s while rank 1 waits in all_to_all", False)
    assert verdict(LEFT, STALLED) == (1, "no progress for 7 s while rank 0 waits at the end", False)
    assert verdict(STUCK, LEFT) == (1, "its program ended while rank 0 waits in all_reduce", False)
    found = verdict(STUCK, AHEAD)  # the main thread of rank 1 is the one that does not come
    assert found is not None and found.rank == 1 and found.everywhere
    assert "rank 0 waits in all_reduce; rank 1 waits in all_to_all" in found.reason


@pytest.mark.parametrize("note", [WORKS, WAITS, STUCK, PATIENT, LEFT])
def test_a_silent_rank_is_at_fault_whatever_it_was_at(note: Note) -> None:
    found = verdict(STUCK, note, silent=LONG)
    assert found is not None and found.rank == 1 and "no sign of life for 7 s" in found.reason
    assert ("compiling" in found.reason) == bool(note.patience)


def test_the_pulse_knows_who_waits_and_who_is_patient() -> None:
    mine = Pulse()
    with mine.waiting("all_gather"):
        note = mine.note()
        assert note.call == "all_gather" and note.main_waits and note.waits > 0
    assert not mine.note("gone").waits and mine.note("gone").left == "gone"
    with patience("compiling"), patience("a checkpoint"):
        assert pulse.note().patience == "compiling, a checkpoint"
    assert pulse.note().patience == ""
    mine.lost += 5
    progress()
    assert pulse.note().idle < 5 and mine.note().idle < 0  # a clock that stood still for 5 seconds


def test_one_process_is_not_watched() -> None:
    with watch(LocalComm(), timeout=0.1):
        pass


def run_faulty(kind: str, rank: int, ranks: int, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", str(PROGRAM), kind, str(rank)]
    return subprocess.run([*command, str(timeout)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("kind", "rank", "ranks", "reason"),
    [
        ("stop", 1, 2, "rank 1: no sign of life"),
        ("stop", 0, 2, "rank 0: no sign of life"),
        ("loop", 2, 3, "rank 2: no progress for"),
        ("exit", 1, 2, "rank 1: its program ended (SystemExit(3)) while rank 0 waits in all_reduce"),
        ("raise", 1, 2, "rank 1: Traceback"),
        ("barrier", 1, 2, "rank 0: all ranks wait; rank 0 waits in all_reduce; rank 1 waits in barrier"),
    ],
)
def test_a_rank_that_goes_wrong_ends_the_job(kind: str, rank: int, ranks: int, reason: str) -> None:
    done = run_faulty(kind, rank, ranks, timeout=3)
    assert done.returncode != 0 and "fine" not in done.stdout
    assert done.stderr.startswith(reason), done.stderr
    if kind == "loop":
        assert "s while rank 0 waits in all_reduce" in done.stderr
        assert 'faulty.py", line' in done.stderr and "while True:" in done.stderr
    if kind == "raise":
        assert "rank 1: ValueError: id 12 of feature 'country' is beyond the table" in done.stderr


@pytest.mark.parametrize("kind", ["slow", "patient"])
def test_announced_work_may_take_longer(kind: str) -> None:
    done = run_faulty(kind, 1, 2, timeout=3)
    assert (done.returncode, done.stdout.count("fine")) == (0, 2), done.stderr
