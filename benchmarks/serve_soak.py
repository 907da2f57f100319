"""Ten minutes of `tesserec serve` at 80 % load, while new versions come and each gets a delta every second.

    python -m benchmarks.serve_soak [--minutes 10 --swaps 20] [--quick]

One worker on one core; the load, due at even distances, and the writer of versions and deltas on the other.
A version is a DLRM of 26 tables, D 16, of at most --rows rows; a delta has 20,000 of their rows and all dense
weights. Says how many requests failed, what latencies were in each minute, how stale the model that answered
was (sampled twice a second), and what memory the service had.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import serving
from benchmarks.harness import Report
from benchmarks.ours.serve import write
from benchmarks.serve_cases import MODEL, write_bodies
from benchmarks.serving import Server
from tesserec.autograd import Module
from tesserec.embeddings.collection import dense_state, named_collections
from tesserec.serve.publish import DeltaWriter, next_version

DIM = 16
ROWS_PER_DELTA = 20_000
OVERLAP_SECONDS = 10.0
SAMPLES_PER_SECOND = 2
CONNECTIONS = 8


class Trainer:
    """Writes versions and deltas: of the newest, and for a while of the one before, which still serves."""

    def __init__(self, models: Path, limit: int):
        self.models, self.limit, self.rng = models, limit, np.random.default_rng(6)
        self.writers: list[DeltaWriter] = []
        self.version()

    def version(self) -> None:
        """Write the next one."""
        path = next_version(self.models)
        self.model: Module = write(path, DIM, self.limit)
        self.writers = [*self.writers[-1:], DeltaWriter(path)]
        self.number, self.written = path.name, time.monotonic()

    def delta(self) -> None:
        """Move rows that were touched, and all dense weights, a little."""
        found = [(prefix, c.table_set.tables) for prefix, c in named_collections(self.model)]
        named = [(prefix + table.name, table) for prefix, tables in found for table in tables]
        count = ROWS_PER_DELTA // len(named)
        tables = {}
        for name, table in named:
            rows = np.unique(self.rng.integers(0, table.num_embeddings, count))
            values = self.rng.normal(0, 0.02, (len(rows), table.embedding_dim)).astype(np.float32)
            tables[name] = rows, values
        dense = {name: array * np.float32(1.0001) for name, array in dense_state(self.model).items()}
        newest = time.time()
        if time.monotonic() > self.written + OVERLAP_SECONDS:
            del self.writers[:-1]
        for writer in self.writers:
            writer.write(tables, dense, step=100 * (writer.sequence + 1), newest=newest)


@dataclass(slots=True)
class Samples:
    """What the service said of itself, sample by sample.

    own: bytes of memory that are its own. swaps: version -> seconds from when it was there until it answered.
    """

    staleness: list[float] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    swaps: dict[str, float] = field(default_factory=dict)
    problems: set[str] = field(default_factory=set)

    def take(self, server: Server, trainer: Trainer) -> None:
        """One more."""
        model = server.get(f"/v1/models/{MODEL}")
        if model["serving"] == trainer.number:
            self.swaps.setdefault(trainer.number, time.monotonic() - trainer.written)
        for version in model["versions"]:
            if version["version"] == model["serving"] and version["staleness_seconds"] is not None:
                self.staleness.append(version["staleness_seconds"])
            self.problems |= {version["error"], version["delta_error"]} - {""}
        self.own.append(serving.memory_bytes(server.process.pid)["own"])

    def summary(self) -> dict[str, Any]:
        """Staleness in seconds; memory in MB: the mean of each tenth of the time."""
        tenths = [round(float(part.mean()) / 1e6, 1) for part in np.array_split(self.own, 10)]
        marks = np.percentile(self.staleness, [50, 99, 100]).round(2).tolist()
        stale = dict(zip(("staleness_p50", "staleness_p99", "staleness_max"), marks, strict=True))
        swaps = list(self.swaps.values())[1:]  # the first was there before
        return {
            **stale,
            "swaps": len(swaps),
            "swap_seconds_max": round(max(swaps, default=0.0), 2),
            "memory_mb": tenths,
            "problems": list(self.problems),
        }


def main() -> None:
    """One line for all of it, one for each minute."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tesserec-soak"), help="emptied first")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=300_000, help="of a table, at most")
    parser.add_argument("--load", type=float, default=0.8, help="share of what a closed loop finds")
    parser.add_argument("--quick", action="store_true", help="1 minute, 4 swaps")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.swaps = 1.0, 4
    os.sched_setaffinity(0, {int(serving.LOAD_CORE)})
    shutil.rmtree(args.folder, ignore_errors=True)
    repository = args.folder / "repository"
    trainer = Trainer(repository / MODEL, args.rows)
    bodies = args.folder / "bodies.jsonl"
    write_bodies(bodies, 1000, args.rows)
    with Report("serve_soak") as report, serving.ours(repository, args.folder / "ours.log") as server:
        server.wait()
        serving.wait_for_tables(server)
        found = serving.load(server, bodies, connections=CONNECTIONS, seconds=5)
        rate = round(args.load * found["rate"], 1)
        soaked, samples = soak(server, trainer, bodies, rate, args)
        for number, window in enumerate(soaked.pop("windows")):
            report.add({"minute": number, **window})
        report.add({"capacity": found["rate"], "due": rate, **soaked, **samples.summary()})


def soak(
    server: Server, trainer: Trainer, bodies: Path, rate: float, args: argparse.Namespace
) -> tuple[dict[str, Any], Samples]:
    """(what the load generator says, samples)."""
    seconds, samples = args.minutes * 60, Samples()
    command = serving.load_command(server, bodies, rate=rate, seconds=seconds, window=60)
    os.nice(5)  # the load goes before what is written beside it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loading:
        start, swapped, deltas = time.monotonic(), 0, 0
        for tick in range(round(seconds * SAMPLES_PER_SECOND)):
            time.sleep(max(0.0, start + tick / SAMPLES_PER_SECOND - time.monotonic()))
            passed = time.monotonic() - start
            if passed >= (swapped + 0.5) * seconds / args.swaps:
                trainer.version()
                swapped += 1
            if passed >= deltas:
                trainer.delta()
                deltas += 1
            samples.take(server, trainer)
        assert loading.stdout is not None
        return json.load(loading.stdout), samples


if __name__ == "__main__":
    main()
