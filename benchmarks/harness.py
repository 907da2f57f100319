"""What the benchmarks beside peers share: sides, turns, reports.

A side is a process of its own, ours as well as theirs, that makes its tables once and then works when it is
asked to: nothing of one is in the other's address space, allocator or thread pool. Only one works at a time;
the others are stopped, because threads of a parallel library go on spinning after its work is done. The sides
take turns, so that whatever else the machine does hits all of them alike, and a ratio is the median
of the ratios of paired turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Line = dict[str, Any]
Runs = Mapping[str, Callable[[], float]]  # each says how many seconds its turn took

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Side:
    """A process that serves an object's methods (see `serve`): side("method", name=value) -> its answer."""

    def __init__(self, python: str | Sequence[str], *module: str, env: Mapping[str, str] | None = None):
        """python: the interpreter, or what to run before "-m"; module: its name, and arguments for it."""
        self.name = " ".join(module)
        environment = {
            **os.environ,
            "PYTHONWARNINGS": "ignore",
            "TORCH_LOGS": "-all",
            **(env or {}),
        }
        self.process = subprocess.Popen(
            [*([python] if isinstance(python, str) else python), "-m", *module],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, method: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self._signal(signal.SIGCONT)
        print(json.dumps({"method": method, **arguments}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        self._signal(signal.SIGSTOP)
        if not answer:
            raise RuntimeError(f"{self.name} ended at {method!r}; its error is above")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._signal(signal.SIGCONT)
        self.process.communicate()  # closes its input, at which it ends

    def _signal(self, number: signal.Signals) -> None:
        """To the process and all that it started: a side of several ranks is a family of them."""
        for pid in family(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def family(pid: int) -> list[int]:
    """A process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for member in found:  # grows meanwhile
        found += children.get(member, [])
    return found


def requests() -> Iterator[Line]:
    """What is asked for, in lines of standard input."""
    return map(json.loads, sys.stdin)


def serve(target: object, asked: Iterable[Line] | None = None, *, silent: bool = False) -> None:
    """The other end of `Side`: call the methods of `target` that are `asked` for: by default, all `requests`.

    Whatever libraries print goes to standard error. silent: answer nobody, as ranks do that are not the
    first.
    """
    answers = open(os.devnull, "w") if silent else os.fdopen(os.dup(1), "w")  # noqa: SIM115
    os.dup2(2, 1)
    for request in requests() if asked is None else asked:
        method = peak_bytes if request["method"] == "peak_bytes" else getattr(target, request.pop("method"))
        print(json.dumps(method() if method is peak_bytes else method(**request)), file=answers, flush=True)


def peak_bytes() -> int:
    """The most memory that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def take_turns(runs: Runs, turns: int) -> dict[str, list[float]]:
    """{name: the seconds that each of its `turns` runs said it took}, after one of each that is not counted.

    Every other round goes backwards, so that nobody always follows the same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, turns):
        order = list(runs.items())
        for name, run in order[:: -1 if turn % 2 else 1]:
            taken = run()
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median of theirs / ours over paired turns: above 1, we are faster."""
    return round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 3)


def milliseconds(seconds: Sequence[float], calls: int) -> float:
    """The median turn's time per call."""
    return round(statistics.median(seconds) / calls * 1e3, 3)


class Report:
    """JSON lines: each is printed, and kept in benchmarks/results/NAME.jsonl; in the end comes a table."""

    def __init__(self, name: str):
        RESULTS.mkdir(exist_ok=True)
        self.name = name
        self.file = (RESULTS / f"{name}.jsonl").open("w")
        self.lines: list[Line] = []
        self._write({"benchmark": name, **machine()})

    def add(self, line: Line) -> None:
        """One case."""
        self.lines.append(line)
        self._write({"benchmark": self.name, **line})

    def summarise(self, name: str, **where: Any) -> None:
        """A line with median, least and most of the ratio `name` over the lines that have these values."""
        chosen = [line for line in self.lines if name in line and where.items() <= line.items()]
        if chosen:
            ratios = [line[name] for line in chosen]
            middle, least = round(statistics.median(ratios), 3), min(ratios)
            found = {"cases": len(chosen), "median": middle, "least": least, "most": max(ratios)}
            self._write({"benchmark": self.name, "summary": name, **where, **found})

    def _write(self, line: Line) -> None:
        for file in (sys.stdout, self.file):
            print(json.dumps(line), file=file, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.file.close()
        print(table(self.lines), file=sys.stderr)


def table(lines: Sequence[Line]) -> str:
    """The lines as a table; a column for each key that any of them has."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    cells = [columns, *([str(line.get(column, "")) for column in columns] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)] if columns else []
    rows = ("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(rows)


def machine() -> Line:
    """Where and when, and how busy it was."""
    cpu = platform.processor() or platform.machine()
    if sys.platform == "linux":
        info = Path("/proc/cpuinfo").read_text()
        cpu = next((i.split(":")[1].strip() for i in info.splitlines() if i.startswith("model name")), cpu)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"when": when, "cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(info["MemAvailable"].split()[0]) * 1024


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process keeps one core busy meanwhile."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def arguments(doc: str | None, **choices: Sequence[Any]) -> argparse.Namespace:
    """--peer-python, --turns, --quick, and one option for each of `choices`, by default all of them."""
    assert doc is not None
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer-python",
        type=lambda path: str(Path(path).absolute()),
        help="python of an environment with torch, fbgemm-gpu-cpu, torchrec",
    )
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 turns, smaller tables: does it run?")
    for name, values in choices.items():
        parser.add_argument(f"--{name}", nargs="+", type=type(values[0]), default=list(values))
    args = parser.parse_args()
    if args.quick:
        args.turns = 3
    return args
