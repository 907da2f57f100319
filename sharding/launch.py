"""Starting ranks on this machine, and what a process knows of the launcher that started it.

`launch` is `mpiexec` with what a training job needs around it: threads and cores that add up, signals that
reach the ranks, so that they can save, the terminal for rank 0, names before the lines of the others, and a
reason for a rank that ended without giving one. Imports no MPI and nothing of ours: the command line asks
here whether it is one of several ranks before anything else.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self, TextIO

# Where launchers say how many ranks there are, and which this one is: hydra (MPICH, Intel MPI), Open MPI,
# srun, flux, PALS. What Slurm says of a job, in SLURM_NTASKS, is no sign of ranks: it is there without srun
# as well.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "FLUX_JOB_SIZE", "PALS_SIZE")
RANKS = (
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "SLURM_PROCID",
    "FLUX_TASK_RANK",
    "PALS_RANKID",
)
# What `launch` tells its ranks: the socket where it hears of them; the terminal.
LAUNCHER = "TESSEREC_LAUNCHER"
TERMINALS = {1: "TESSEREC_STDOUT", 2: "TESSEREC_STDERR"}

BANNER = re.compile(rb"=   BAD TERMINATION OF ONE OF YOUR")
CAUSE = re.compile(rb"\(signal (\d+)\)")
BYE, LISTENING = b"bye", 0.1  # seconds
HIGH = 255  # a file number above all that a rank opens before training


class LaunchError(ValueError):
    """Ranks cannot be started; the message says what to do."""


def announced_ranks() -> int:
    """How many ranks the launcher of this process (mpiexec, srun, flux …) says there are; 1 without one."""
    return _first_number(SIZES, 1)


def announced_rank() -> int:
    """Which of them this process is, according to its launcher."""
    return _first_number(RANKS, 0) if in_ranks() else 0


def in_ranks() -> bool:
    """Whether this process is one of several ranks."""
    return announced_ranks() > 1


def launch(ranks: int, argv: Sequence[str], program: Sequence[str] = ("-m", "tesserec")) -> int:
    """Run `python PROGRAM ARGV` in `ranks` ranks on this machine: -> exit status, 128 + n for signal n.

    SIGINT and SIGTERM go on to the ranks. Raises LaunchError where there is no mpiexec.
    """
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", *program, *argv]
    with tempfile.TemporaryDirectory(prefix="tesserec-") as folder, _Ranks(f"{folder}/ranks") as ranks_up:
        process = subprocess.Popen(
            command,
            env=rank_environment(ranks, ranks_up.path, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the ranks through us, once
        )
        with process, _passing_signals(process, ranks_up):
            assert process.stdout is not None
            banner = _pass_on(process.stdout)
    return _explain(banner, ranks_up.lost) or process.returncode


def mpiexec() -> str:
    """The mpiexec beside this Python, else the one in PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise LaunchError(
            "no mpiexec beside this Python or in PATH: pip install mpich (or load the cluster's own MPI, "
            "and pip install --no-binary mpi4py mpi4py)"
        )
    return found


def rank_environment(ranks: int, launcher: str, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of a rank: its share of the cores, or TESSEREC_NUM_THREADS, and one-thread BLAS."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    inner = {"TESSEREC_NUM_THREADS": str(max(1, cores // ranks))} | dict(outer)
    inner |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    inner |= {LAUNCHER: launcher}
    for number, name in TERMINALS.items():
        if os.isatty(number):
            inner[name] = os.ttyname(number)
    return inner


def settle() -> None:
    """Make this process a good rank: call it before anything is printed.

    Tells `launch` that it is there. Rank 0 writes to the terminal of `launch`, if that has one; lines of
    other ranks on standard error begin with "rank r: ".
    """
    rank = announced_rank()
    if LAUNCHER in os.environ:
        _connect(rank)
    if rank > 0:
        sys.stderr = NamedLines(sys.stderr, f"rank {rank}: ")
        return
    for number, name in TERMINALS.items():
        with contextlib.suppress(KeyError, OSError):
            terminal = os.open(os.environ[name], os.O_WRONLY | os.O_NOCTTY)
            os.dup2(terminal, number)
            os.close(terminal)


_launcher: socket.socket | None = None  # the connection to it


def _connect(rank: int) -> None:
    global _launcher
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(os.environ[LAUNCHER])
        # Linux closes the highest first when a process ends: so `launch` hears of it before mpiexec
        _launcher = socket.socket(fileno=fcntl.fcntl(plain, fcntl.F_DUPFD_CLOEXEC, HIGH))
    _launcher.send(f"{rank} {os.getpid()}".encode())
    atexit.register(_say_goodbye)


def _say_goodbye() -> None:
    with contextlib.suppress(OSError):
        if _launcher is not None:
            _launcher.send(BYE)


def launcher_is_gone() -> bool:
    """Whether the `launch` that started this rank has ended: nobody would hear of this rank any more."""
    with contextlib.suppress(BlockingIOError):  # nothing to read: it is there
        return _launcher is not None and _launcher.recv(1, socket.MSG_DONTWAIT) == b""
    return False


class NamedLines(io.TextIOBase):
    """A text stream that puts a name before every line."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name = stream, name
        self.begins = True  # a line

    def write(self, text: str) -> int:
        lines = text.splitlines(keepends=True)
        named = "".join(self._named(line) if i or self.begins else line for i, line in enumerate(lines))
        self.begins = text.endswith("\n") if text else self.begins
        self.stream.write(named)
        return len(text)

    def _named(self, line: str) -> str:
        return line if line.startswith(self.name) else self.name + line

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def _passing_signals(process: subprocess.Popen[bytes], ranks: _Ranks) -> Iterator[None]:
    """SIGINT and SIGTERM go to the ranks that have come up, or else to mpiexec."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for pid in list(ranks.pids.values()) or [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    with handling_signals(pass_on):
        yield


@contextlib.contextmanager
def handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM go to `handler`."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _pass_on(ranks: IO[bytes]) -> bytes:
    """Copy what the ranks print to our standard output: -> mpiexec's own banner at the end of it, if any."""
    held, banner = b"", False  # held: rules and empty lines, which may be the beginning of it
    for line in ranks:
        held += line
        banner = banner or BANNER.match(line) is not None
        if not banner and line.strip(b"=\n"):
            _write(held)
            held = b""
    if not banner:
        _write(held)
    return held if banner else b""


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


class _Ranks:
    """The ranks that have come up. Each has a connection to here, which ends when its process does.

    mpiexec kills the others within milliseconds when one dies, and does not always name the right one.
    """

    def __init__(self, path: str):
        self.path = path
        self.pids: dict[int, int] = {}  # of ranks that are up
        self.lost: list[int] = []  # the first that ended without goodbye; several if at the same moment
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        self._listener.bind(self.path)
        self._listener.listen(1024)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:
            sockets.enter_context(self._listener)
            selector.register(self._listener, selectors.EVENT_READ)
            events = selector.select(LISTENING)
            while events or not self._ended.is_set():
                gone = []
                for key, _ in events:
                    if key.fileobj is self._listener:
                        connection = sockets.enter_context(self._listener.accept()[0])
                        rank, pid = map(int, connection.recv(64).split())
                        selector.register(connection, selectors.EVENT_READ, (connection, rank))
                        self.pids[rank] = pid
                    else:
                        connection, rank = key.data
                        selector.unregister(connection)
                        del self.pids[rank]
                        gone += [rank] if _ended_badly(connection) else []
                self.lost = self.lost or gone
                events = selector.select(LISTENING)


def _ended_badly(connection: socket.socket) -> bool:
    try:
        return connection.recv(len(BYE)) != BYE
    except ConnectionError:
        return True


def _explain(banner: bytes, lost: Sequence[int]) -> int:
    """Say which rank was killed before it could say a word: -> the job's exit status, 0 if none was."""
    cause = CAUSE.search(banner)
    if cause is None:
        return 0
    number = int(cause[1])
    hint = ": the machine was short of memory, or somebody did it" if number == signal.SIGKILL else ""
    rank = f"rank {' or '.join(map(str, sorted(lost)))}" if lost else "a rank"
    print(f"{rank}: was killed by {signal.Signals(number).name}{hint}", file=sys.stderr, flush=True)
    return 128 + number


def _first_number(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)
