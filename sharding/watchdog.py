"""A rank that dies, raises or stalls ends the whole job within seconds, with its reason.

Each rank has a thread that tells rank 0 several times a second what the rank is doing (a `Note`): when it
last got something done, and for how long it has been waiting for others. Rank 0's thread judges (`Judge`): a
rank that says nothing is stopped or gone; and a rank that gets nothing done while others wait, or has left
them, or all of them waiting, is no better. The rank at fault prints the reason and where it is, and aborts
the job; rank 0 does it for one that cannot, and the others do it for rank 0.

Work that takes longer than the timeout while others wait says so: `patience`, `progress`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Self

from tesserec.sharding.launch import launcher_is_gone

if TYPE_CHECKING:
    from tesserec.sharding.comm import Comm
    from tesserec.sharding.mpi import Mailbox, MpiComm

TIMEOUT = 10.0
BEATS = 25  # notes in a timeout
JUDGED = 0.7  # of a timeout: a rank is judged after it, so that the job has ended when the timeout is over
# For a rank that has left while others wait, and for one that failed and does not end: seconds.
GRACE = 2.0
LEAVING = 0.02  # between notes in the end: seconds
STACK, SHOWN = 12, 8  # calls of a stack, and ranks that wait, that are shown
STARTER = re.compile(r"<frozen runpy>|mpi4py.(run|__main__)\.py")  # calls that nobody wants to see


class Note(NamedTuple):
    """What a rank is doing."""

    idle: float  # seconds since it last got something done: a call, a step
    waits: float  # seconds that one of its threads has been waiting in `call`, 0 if none
    call: str
    main_waits: bool  # it is the main thread that waits
    patience: str  # what it is at that may take longer, if it said so
    left: str = ""  # how it ended, if it has


class Verdict(NamedTuple):
    """Why the job ends, and whose fault that is."""

    rank: int
    reason: str
    everywhere: bool = False  # all ranks show where they are


class Pulse:
    """What the threads of this process are doing. Its clock stands still while the process does not run."""

    def __init__(self) -> None:
        self.lost = 0.0
        self.done = self.clock()
        self.waits: dict[int, tuple[str, float]] = {}  # thread: the call it waits in, and since when
        self.patience: list[str] = []

    def clock(self) -> float:
        return time.monotonic() - self.lost

    def progress(self) -> None:
        self.done = self.clock()

    @contextlib.contextmanager
    def waiting(self, call: str) -> Iterator[None]:
        """Inside, this thread waits for other ranks; to come back is progress."""
        thread = threading.get_ident()
        self.waits[thread] = (call, self.clock())
        try:
            yield
        finally:
            del self.waits[thread]
            self.progress()

    def note(self, left: str = "") -> Note:
        now, waits = self.clock(), dict(self.waits)
        call, since = min(waits.values(), key=lambda wait: wait[1], default=("", now))
        main = threading.main_thread().ident in waits
        return Note(now - self.done, now - since, call, main, ", ".join(self.patience), left)


pulse = Pulse()


def progress() -> None:
    """Say that work goes on: for loops in which other ranks wait for this one."""
    pulse.progress()


@contextlib.contextmanager
def patience(work: str) -> Iterator[None]:
    """Inside, others wait for this rank as long as it is alive: `work` is "compiling", "a checkpoint" …"""
    pulse.patience.append(work)
    try:
        yield
    finally:
        pulse.patience.remove(work)
        pulse.progress()


class Judge:
    """Finds the rank that keeps the others waiting, from their notes."""

    def __init__(self, size: int, timeout: float, now: float):
        self.limit = JUDGED * timeout
        self.notes = [Note(0, 0, "", False, "")] * size
        self.heard = [now] * size

    def hear(self, rank: int, note: Note, now: float) -> None:
        self.notes[rank], self.heard[rank] = note, now

    def verdict(self, now: float) -> Verdict | None:
        """Who is at fault at `now`, if anyone."""
        return self._silent(now) or self._gone() or self._stalled() or self._stuck()

    def _silent(self, now: float) -> Verdict | None:
        for rank, heard in enumerate(self.heard):
            if now - heard > self.limit:
                return Verdict(rank, silence(now - heard, self.notes[rank].patience))
        return None

    def _gone(self) -> Verdict | None:
        """A rank that left some notes of the others ago, and all of those wait for it."""
        left = [rank for rank, note in enumerate(self.notes) if note.left and note.idle > GRACE]
        here = [rank for rank, note in enumerate(self.notes) if not note.left]
        if left and here and all(self.notes[rank].waits > GRACE for rank in here):
            return Verdict(left[0], f"{self.notes[left[0]].left} while {self._waiter(here[0])}")
        return None

    def _stalled(self) -> Verdict | None:
        """A rank that works, but gets nothing done, while another waits."""
        waiting = [r for r, note in enumerate(self.notes) if note.waits > self.limit]
        waiting += [r for r, note in enumerate(self.notes) if note.left and note.idle > self.limit]
        for rank, note in enumerate(self.notes):
            works = not note.left and not note.patience and not note.waits
            if waiting and works and note.idle > self.limit:
                return Verdict(rank, f"no progress for {note.idle:.0f} s while {self._waiter(waiting[0])}")
        return None

    def _stuck(self) -> Verdict | None:
        """All ranks wait, in calls that do not fit together."""
        here = [(rank, note) for rank, note in enumerate(self.notes) if not note.left]
        if not here or not all(note.waits > self.limit for _, note in here):
            return None
        if any(note.patience and not note.main_waits for _, note in here):
            return None
        first = min(here, key=lambda pair: pair[1].main_waits)[0]
        return Verdict(
            first, "; ".join(["all ranks wait", *(self._waiter(rank) for rank, _ in here[:SHOWN])]), True
        )

    def _waiter(self, rank: int) -> str:
        note = self.notes[rank]
        return f"rank {rank} waits in {note.call}" if note.waits else f"rank {rank} waits at the end"


def silence(seconds: float, at: str = "") -> str:
    return (
        f"no sign of life for {seconds:.0f} s{' (it was at: ' + at + ')' if at else ''}: it was stopped, "
        "or its host is gone, or native code keeps its interpreter locked"
    )


@contextlib.contextmanager
def watch(comm: Comm, timeout: float = TIMEOUT) -> Iterator[None]:
    """Inside, a rank of `comm` that dies, raises or stalls for `timeout` seconds ends them all. Collective.

    Leaving is collective too: ranks wait for each other there. A world without processes is not watched.
    """
    from tesserec.sharding.mpi import MpiComm  # it imports `pulse`

    if not isinstance(comm, MpiComm):
        yield
        return
    with _Watchdog(comm, timeout):
        yield


class _Watchdog:
    """The thread that tells, and on rank 0 judges."""

    def __init__(self, comm: MpiComm, timeout: float):
        self.comm, self.patience, self.interval = comm, JUDGED * timeout, timeout / BEATS
        self.mailbox: Mailbox = comm.mailbox()
        self.judge = Judge(comm.size, timeout, pulse.clock())
        self.heard = pulse.clock()  # of rank 0
        self.left, self.failed = "", ""
        self.ended = threading.Event()
        self.leaving = threading.Event()
        self.parent = os.getppid()
        self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.comm.barrier()
        pulse.progress()
        self.heard = pulse.clock()
        self.judge.heard = [self.heard] * self.comm.size
        atexit.register(self._leave_alone)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the others, unless an error must be seen first: they are ended after it."""
        pulse.progress()
        if kind is None or issubclass(kind, SystemExit):
            self.left = f"its program ended{'' if error is None else f' ({error!r})'}"
            self.leaving.set()
            self.thread.join()
            atexit.unregister(self._leave_alone)
        else:
            self.failed = f"{kind.__name__}: {error}"
            timer = threading.Timer(GRACE, self._end, [Verdict(self.comm.rank, self.failed)])
            timer.daemon = True
            timer.start()

    def _leave_alone(self) -> None:
        """The program ends without having come out of `watch` well. An error is on the screen by now."""
        self.comm.abort("" if self.failed else f"rank {self.comm.rank}: its program ended")

    def _run(self) -> None:
        try:
            beat = self._judge if self.comm.rank == 0 else self._tell
            while not self.ended.is_set():
                beat(pulse.clock())
                self._sleep()
        except Exception as error:
            self.comm.abort(f"rank {self.comm.rank}: its watchdog failed: {error!r}")

    def _sleep(self) -> None:
        """Until the next beat; if the process did not run for longer, its clock did not either."""
        before = pulse.clock()
        if self.leaving.wait(self.interval):
            time.sleep(LEAVING)
        asleep = pulse.clock() - before
        if asleep > 5 * self.interval:
            pulse.lost += asleep

    def _tell(self, now: float) -> None:
        self.mailbox.post(0, pulse.note(self.left))
        for _, answer in self.mailbox.take():
            self.heard = now
            if answer == "end":
                self.ended.set()
            elif isinstance(answer, Verdict) and (answer.everywhere or answer.rank == self.comm.rank):
                self._end(answer)
        patience = self.patience + (self.comm.rank > 1)  # rank 1 speaks first
        if now - self.heard > patience and not self.ended.is_set():
            self._end(Verdict(0, silence(now - self.heard)))
        if os.getppid() != self.parent or launcher_is_gone():
            self._end(Verdict(self.comm.rank, "what started it is gone"))

    def _judge(self, now: float) -> None:
        for rank, note in self.mailbox.take():
            self.judge.hear(rank, note, now)
        self.judge.hear(0, pulse.note(self.left), now)
        done = all(note.left for note in self.judge.notes)
        verdict = None if done else self.judge.verdict(now)
        if done:
            self.mailbox.flush()
            self.ended.set()
        for rank in range(1, self.comm.size):
            self.mailbox.post(rank, verdict or ("end" if done else "go on"))
        if done:
            self.mailbox.flush()
        if verdict is not None:
            self._end(verdict)

    def _end(self, verdict: Verdict) -> NoReturn:
        """Abort the job. The rank at fault says why and where it is; if it does not, another does."""
        mine, rank = verdict.rank == self.comm.rank, self.comm.rank
        if mine:
            show(f"rank {rank}: {verdict.reason}\n{_main_stack()}")
        if verdict.everywhere and not mine:
            time.sleep(0.1 + 0.02 * rank)
            show(f"rank {rank} is here:\n{_main_stack()}")
        if verdict.everywhere or not mine:
            time.sleep(2 * self.interval)
        self.comm.abort("" if mine or verdict.everywhere else f"rank {verdict.rank}: {verdict.reason}")


def show(text: str) -> None:
    """Write lines to standard error in one piece, past whatever has taken the place of sys.stderr."""
    if text:
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode())


def _main_stack() -> str:
    """Where the main thread is, innermost call last."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = [call for call in traceback.extract_stack(frame) if not STARTER.search(call.filename)]
    return "".join(traceback.format_list(stack[-STACK:])).rstrip()
