"""Calibration: this machine measured as training uses it, in ranks, and what was found as a topology.

What each rank does is in `calibrate_rank`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tesserec import __version__
from tesserec.dataio.config import parse_config
from tesserec.embeddings.memory import available_memory
from tesserec.sharding.launch import launch
from tesserec.sharding.planner.grids import Curve, Kernels
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.train.trial import in_step

MOST_RANKS = 8  # measured at once, unless told
INTERRUPTED = (130, -2)

Progress = Callable[[int, int, str], None]


class CalibrationError(RuntimeError):
    """Measuring did not come to its end; nothing was written."""


def calibrate(ranks: int, progress: Progress) -> Topology:
    """This machine with `ranks` ranks. progress: (points done, points in all, what is being done).

    CalibrationError where the ranks fail; KeyboardInterrupt goes through.
    """
    start, counts = time.perf_counter(), (1, ranks) if ranks > 1 else (1,)
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(TemporaryDirectory(prefix="tesserec-"))) for _ in counts]
        found = [_measured_in(n, folder, progress) for n, folder in zip(counts, folders, strict=True)]
        each = [tuple(parse_config(one, Kernels) for one in part["kernels"]) for part in found]
        topology = _topology(tuple(chain(*each)), found[-1], ranks)
        progress(1, 1, "trials")
        # the trial was with all threads, which come last
        each = [
            (*kernels[:-1], in_step(kernels[-1], folder, topology.with_ranks(n)))
            for kernels, folder, n in zip(each, folders, counts, strict=True)
        ]
    return _dated(_topology(tuple(chain(*each)), found[-1], ranks), time.perf_counter() - start)


def _measured_in(ranks: int, folder: Path, progress: Progress) -> dict[str, Any]:
    """What `ranks` ranks have found; their trial stays in `folder`."""
    with _watching(folder, ranks, progress):
        status = launch(ranks, [str(folder)], ("-m", "tesserec.train.calibrate_rank"))
    if status in INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise CalibrationError(f"measuring in {ranks} ranks ended with status {status}; see above")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@contextmanager
def _watching(folder: Path, ranks: int, progress: Progress) -> Iterator[None]:
    """Meanwhile a thread hands on what the ranks say of their progress."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            if (folder / "progress").exists():
                at, total = (folder / "progress").read_text().split() or ("0", "1")
                progress(int(at), int(total), f"{ranks} rank{'s' * (ranks > 1)}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _topology(kernels: tuple[Kernels, ...], found: Mapping[str, Any], ranks: int) -> Topology:
    """Data-sheet numbers, which a measured device hardly needs, are read off the grids."""
    last = kernels[-1]
    widest = last.lookup["float32"][max(last.lookup["float32"])]
    bandwidth = 4 * max(last.lookup["float32"]) / widest.seconds[-1] * last.ranks
    available = cores()
    memory = float(available_memory() or 1 << 33)
    device = Device(
        "cpu",
        (Tier("dram", memory, bandwidth),),
        flops=last.ranks / last.single["flop"] * last.threads,
        threads=available,
        row_share=1.0,
        flop_share=1.0,
        process_bytes=found["process_bytes"],
        kernels=kernels,
    )
    host = Host(ranks, "cpu", _link(found["messages"]))
    return Topology(platform.node() or "this machine", {"cpu": device}, (host,))


def _dated(topology: Topology, seconds: float) -> Topology:
    """With the conditions that it was measured in, and what names it."""
    kernels = (one for device in topology.devices.values() for one in device.kernels)
    told = json.dumps([dataclasses.asdict(one) for one in kernels])
    fingerprint = hashlib.sha256(told.encode()).hexdigest()[:12]
    return replace(
        topology, measured={**_conditions(), "seconds": round(seconds), "fingerprint": fingerprint}
    )


def _link(messages: Mapping[str, float]) -> Link:
    """messages: {bytes: seconds}; without any, what is usual within a host."""
    if not messages:
        return Link(20e-6, 4e9)
    sizes, seconds = [float(size) for size in messages], list(messages.values())
    bandwidth = (sizes[-1] - sizes[-2]) / max(seconds[-1] - seconds[-2], 1e-9)
    rising = tuple(np.maximum.accumulate(seconds).tolist())
    return Link(rising[0], bandwidth, curve=Curve(tuple(sizes), rising))


def _conditions() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "mpi4py")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "cpu": _cpu(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "tesserec": __version__,
        **versions,
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor()
    )


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
