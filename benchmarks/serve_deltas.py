"""Deltas: what publishing costs a training, how long a delta takes to apply, and how old is what is served.

    python -m benchmarks.serve_deltas [--quick] [--turns 5] [--parts apply train staleness]

apply: deltas of random rows into a mapped table of 2 GB. `locked_ms` is how long nobody can score; what comes
before runs beside them. fresh: no page was written to before, so that each is copied. train: CPU time of each
step for noting rows, and of each delta in a training on synthetic clicks: `changes_ms` on the thread that
trains, `write_ms` on the one that writes. staleness: the age of what a follower that polls every 0.25 s has,
looked at every 10 ms while a training publishes every second.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Report, arguments, milliseconds
from tesserec.dataio.config import parse_config
from tesserec.embeddings.allocation import planning
from tesserec.embeddings.collection import EmbeddingBagCollection
from tesserec.embeddings.config import EmbeddingBagConfig
from tesserec.embeddings.kernels.touched import mark_rows
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.serve.artefact import Artefact
from tesserec.serve.deltas import Follower, delta_path
from tesserec.serve.publish import DeltaWriter
from tesserec.train.config import TrainConfig
from tesserec.train.loop import State, Trainer, Watcher

POLL = 0.25
CONFIG: dict[str, Any] = {
    "model": {"name": "dlrm", "embedding_dim": 16, "bottom": [512, 256], "top": [512, 256]},
    "optimizer": {"dense": {"name": "adam", "lr": 0.001}, "rows": {"name": "rowwise_adagrad", "lr": 0.02}},
}


class Timed:
    """A lock, and how long it was last held; an engine whose dense parameters nobody changes."""

    def __init__(self) -> None:
        self.lock, self.seconds = threading.Lock(), 0.0

    def __enter__(self) -> None:
        self.lock.acquire()
        self.since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.since
        self.lock.release()

    def refresh(self) -> None:
        pass


def apply(report: Report, folder: Path, gigabytes: float, turns: int) -> None:
    rng = np.random.default_rng(0)
    for dim in (16, 64):
        rows = int(gigabytes * 1e9) // (4 * dim)
        with planning():
            model = EmbeddingBagCollection([EmbeddingBagConfig("table", rows, dim, ("id",))], seed=0)
        file = folder / f"{dim}.npy"
        np.lib.format.open_memmap(file, "w+", np.float32, (rows, dim))[:] = 1
        for count in (10_000, 100_000):
            for fresh in (True, False):
                line = _apply(model, file, rng, count, fresh, turns)
                report.add({"part": "apply", "dim": dim, "gigabytes": gigabytes, "rows": count, **line})
        file.unlink()


def _apply(
    model: EmbeddingBagCollection, file: Path, rng: np.random.Generator, count: int, fresh: bool, turns: int
) -> dict[str, Any]:
    (pool,) = model.pools
    version = file.with_name("1")
    version.mkdir()
    (version / "manifest.json").write_text("{}")
    pool.data = np.load(file, mmap_mode="c")
    if not fresh:
        pool.data[:: 4096 // pool.data.strides[0], 0] = 1
    timed, writer = Timed(), DeltaWriter(version)
    follower = Follower(version, model, timed, timed)
    total, locked = [], []
    for _ in range(turns):
        rows = np.unique(rng.integers(0, len(pool), count))
        values = rng.random((len(rows), pool.data.shape[1]), np.float32)
        writer.write({"table": (rows, values)}, {}, step=1, newest=time.time())
        start = time.perf_counter()
        assert follower.poll() == 1
        total.append(time.perf_counter() - start)
        locked.append(timed.seconds)
    size = delta_path(version, 1).stat().st_size
    shutil.rmtree(version)
    return {
        "fresh": fresh,
        "megabytes": round(size / 1e6, 1),
        "apply_ms": milliseconds(total, 1),
        "locked_ms": milliseconds(locked, 1),
        "most_locked_ms": milliseconds([max(locked)], 1),
    }


def make_data(folder: Path, rows: int) -> Path:
    commands = [["synth", "clicks.csv", "--rows", str(rows)]]
    commands += [["prepare", "clicks.csv", "--schema", "clicks.schema.yaml", "-o", "clicks"]]
    for command in commands:
        subprocess.run(
            [sys.executable, "-m", "tesserec", "data", *command], cwd=folder, check=True, capture_output=True
        )
    return folder / "clicks"


def train(report: Report, folder: Path, data: Path) -> None:
    """CPU time that a delta costs the thread that trains, and that which writes it; one every second."""
    taken: list[float] = []
    written: list[float] = []
    version, told = folder / "1", time.monotonic()
    version.mkdir()
    (version / "manifest.json").write_text("{}")
    writer = DeltaWriter(version)

    def stepped(state: State, loss: float, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1:
            start = time.thread_time()
            changes = trainer.learner.changes()
            taken.append(time.thread_time() - start)
            writer.write(changes.tables, changes.dense, step=state.step, newest=changes.newest)
            written.append(time.thread_time() - start - taken[-1])
            told = time.monotonic()

    values = {**CONFIG, "data": {"path": str(data), "valid": None}, "output": str(folder / "run")}
    config = parse_config({**values, "train": {"epochs": 2}}, TrainConfig)
    trainer = Trainer(config, watcher=Watcher(stepped=stepped))
    trainer.learner.watch()
    trainer.fit()
    report.add(
        {
            "part": "train",
            "deltas": writer.sequence,
            "megabytes": round(delta_path(version, writer.sequence).stat().st_size / 1e6, 1),
            "changes_ms": milliseconds(taken, 1),
            "write_ms": milliseconds(written, 1),
        }
    )


def note(report: Report, turns: int) -> None:
    """What noting costs a step of 2048 samples of 26 ids each, in a pool of 34 million rows."""
    rng, bounds = np.random.default_rng(0), np.array([0, 34_000_000])
    rows = np.unique(rng.integers(0, bounds[1], 2048 * 26))
    (part,) = RowGrad.from_rows(bounds, rows, np.zeros((len(rows), 1), np.float32)).parts
    bits = np.zeros(bounds[1] // 64 + 1, np.uint64)
    times = []
    for _ in range(turns + 1):
        start = time.thread_time()
        mark_rows(part.lanes, bits)
        times.append(time.thread_time() - start)
    report.add({"part": "note", "rows": len(rows), "note_ms": milliseconds(times[1:], 1)})


def staleness(report: Report, folder: Path, data: Path) -> None:
    output, repository = folder / "online", folder / "online_repository"
    options = [
        f"data.path={data}",
        "model.name=dlrm",
        "data.valid=null",
        f"output={output}",
        "train.epochs=3",
    ]
    (folder / "online.yaml").write_text("optimizer: {rows: {name: rowwise_adagrad, lr: 0.02}}")
    command = [sys.executable, "-m", "tesserec", "train", str(folder / "online.yaml")]
    command += [word for option in options for word in ("--set", option)]
    with subprocess.Popen(
        [*command, "--publish", str(repository / "model")], stderr=subprocess.DEVNULL
    ) as run:
        version = repository / "model" / "1"
        _wait(lambda: delta_path(version, 1).exists() or run.poll() is not None)
        timed = Timed()
        follower = Follower(version, Artefact.open(version).model(), timed, timed)
        ages, polled = [], 0.0
        while run.poll() is None:
            if time.monotonic() - polled >= POLL:
                follower.poll()
                polled = time.monotonic()
            if follower.sequence > 1:
                ages.append(follower.staleness())
            time.sleep(0.01)
    p50, p99 = np.quantile(ages, [0.5, 0.99]).round(2).tolist()
    line = {"deltas": follower.sequence, "p50_s": p50, "p99_s": p99, "most_s": round(max(ages), 2)}
    report.add({"part": "staleness", **line})


def _wait(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.01)


def main() -> None:
    args = arguments(__doc__, parts=("apply", "train", "staleness"))
    rows = 100_000 if args.quick else 200_000
    with Report("serve_deltas") as report, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "apply" in args.parts:
            apply(report, folder, 0.2 if args.quick else 2, args.turns)
        if {"train", "staleness"} & set(args.parts):
            data = make_data(folder, rows)
        if "train" in args.parts:
            note(report, args.turns)
            train(report, folder, data)
        if "staleness" in args.parts:
            staleness(report, folder, data)


if __name__ == "__main__":
    main()
