"""The sides of an embedding benchmark, with the same tables and the same batches, and their comparison."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.cases import BATCH, KAGGLE
from benchmarks.harness import Line, Runs, Side, free_bytes, milliseconds, ratio, take_turns

ROWS = 1_000_000
ITEM_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}
THP = {"THP_MEM_ALLOC_ENABLE": "1"}  # torch asks for huge pages then, as numpy does by itself


@dataclass(frozen=True)
class Tables:
    """Tables of one width. sizes: rows of each; optimizer: "" where they are only read."""

    sizes: list[int]
    dim: int
    data_type: str = "float32"
    optimizer: str = ""

    def batch_bytes(self, length: int) -> int:
        """Bytes of rows that a batch reads."""
        return int(len(self.sizes) * BATCH * length * self.dim * ITEM_BYTES[self.data_type])

    def label(self) -> Line:
        """What a line of a report says about them."""
        kind = {"data_type": self.data_type} | ({"optimizer": self.optimizer} if self.optimizer else {})
        return {"tables": len(self.sizes), "rows": sum(self.sizes), "dim": self.dim, **kind}


def eight_tables(dim: int, rows: int, data_type: str = "float32", optimizer: str = "") -> Tables:
    """8 tables of `rows` rows, or of fewer where those of two sides, float32, would not fit into memory."""
    fit = int(0.85 * free_bytes() / (2 * 8 * (4 * dim + 16)))
    return Tables([min(rows, fit)] * 8, dim, data_type, optimizer)


def kaggle_tables(dim: int) -> Tables:
    """The 26 tables of Criteo Display Advertising (Kaggle)."""
    return Tables(KAGGLE, dim)


@contextmanager
def lookup_sides(
    ours: Mapping[str, Tables], peers: Mapping[str, Tables], peer_python: str | None
) -> Iterator[dict[str, Side]]:
    """The sides of these names, their tables made. One of `peers` named "thp" works on huge pages."""
    with ExitStack() as stack:
        sides = {name: Side(sys.executable, "benchmarks.ours.tables") for name in ours}
        for name in peers if peer_python else ():
            sides[name] = Side(str(peer_python), "benchmarks.peers.tables", env=THP if name == "thp" else {})
        for side in sides.values():
            stack.enter_context(side)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: sides[name]("build", **asdict({**ours, **peers}[name])), sides))
        yield sides


def load(sides: Mapping[str, Side], length: int, ids: str, batches: int) -> None:
    """Give all sides the same batches."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda side: side("load", length=length, ids=ids, batches=batches), sides.values()))


def check_equal(sides: Mapping[str, Side], method: str, tolerance: float) -> None:
    """RuntimeError unless all sides answer `method` with the same numbers, to `tolerance`."""
    answers = {name: np.array(side(method)) for name, side in sides.items()}
    for name, answer in answers.items():
        worst = np.abs(answer - answers["ours"]).max()
        if not worst <= tolerance:
            raise RuntimeError(f"{method} of {name} and ours differ by up to {worst}, wanted {tolerance}")


def compare(
    sides: Mapping[str, Side], runs: Runs, calls: int, threads: Sequence[int], turns: int
) -> Iterator[Line]:
    """For each number of threads, the milliseconds per call of `runs`, and their ratios to that of "ours"."""
    for n in threads:
        for side in sides.values():
            side("threads", n=n)
        seconds = take_turns(runs, turns)
        line: Line = {"threads": n}
        line |= {f"{name}_ms": milliseconds(taken, calls) for name, taken in seconds.items()}
        yield line | {
            name: ratio(taken, seconds["ours"]) for name, taken in seconds.items() if name != "ours"
        }
