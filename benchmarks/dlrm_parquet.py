"""DLRM at Criteo-Kaggle table sizes, trained from Parquet, beside torch `nn.EmbeddingBag(sparse=True)`.

    python -m benchmarks.dlrm_parquet --peer-python /path/to/peer/.venv/bin/python

Both read the same file (13 float32, 26 int64 log-uniform ids, a label; row groups of 64 k), shuffle, and
train the model of `dlrm_step` with SGD: from Parquet to updated tables. Without --peer-python only ours runs.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cases import BATCH, KAGGLE, Ids, draw
from benchmarks.dlrm_step import turn
from benchmarks.harness import Line, Report, Side, arguments, milliseconds, ratio, take_turns

GROUP = 65536  # rows


def main() -> None:
    args = arguments(__doc__, dims=[16, 64])
    rows, steps = (4 * GROUP, 20) if args.quick else (16 * GROUP, 60)
    with tempfile.TemporaryDirectory() as folder, Report("dlrm_parquet") as report:
        write_data(Path(folder) / "train.parquet", rows)
        for dim in args.dims:
            report.add({"dim": dim, **measure(dim, folder, rows, steps, args.turns, args.peer_python)})


def write_data(path: Path, rows: int, seed: int = 0) -> None:
    """`rows` rows of the shape above; the log-odds of the label are a sum of an effect of each id."""
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    types = [pa.float32()] * 14 + [pa.int64()] * 26
    with pq.ParquetWriter(path, pa.schema(list(zip(names, types, strict=True)))) as writer:
        for group in range(rows // GROUP):
            rng = np.random.default_rng([seed, group])
            dense: list[Any] = [rng.random(GROUP, dtype=np.float32) for _ in range(13)]
            ids: list[Any] = [draw("log", size, GROUP, rng) for size in KAGGLE]
            log_odds = sum(effect(k, column) for k, column in enumerate(ids)) - 1.4
            label = (rng.random(GROUP) < 1 / (1 + np.exp(-log_odds))).astype(np.float32)
            columns = [label, *dense, *ids]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True))), row_group_size=GROUP)


def effect(feature: int, ids: Ids) -> npt.NDArray[np.float64]:
    """What each id adds to the log-odds: uniform in [-.45, .45), the same wherever it is met."""
    scattered = (ids + feature * 1_000_003) * 0.6180339887498949
    effects: npt.NDArray[np.float64] = 0.9 * (scattered - np.floor(scattered)) - 0.45
    return effects


def measure(dim: int, folder: str, rows: int, steps: int, turns: int, peer_python: str | None) -> Line:
    """Milliseconds per step and peak memory of each side, our samples per second, the ratio."""
    with ExitStack() as stack:
        sides = {"ours": stack.enter_context(Side(sys.executable, "benchmarks.ours.dlrm"))}
        if peer_python:
            sides["torch"] = stack.enter_context(Side(peer_python, "benchmarks.peers.dlrm"))
        for side in sides.values():
            side("build", dim=dim, optimizer="sgd")
            side("read", folder=folder, rows=rows)
            side("threads", n=2)
        seconds = take_turns({name: turn(side, name, steps) for name, side in sides.items()}, turns)
        line: Line = {f"{name}_ms": milliseconds(taken, steps) for name, taken in seconds.items()}
        line |= {f"{name}_GB": round(side("peak_bytes") / 1e9, 2) for name, side in sides.items()}
    line["samples_per_s"] = round(BATCH / line["ours_ms"] * 1e3)
    return line | ({"torch": ratio(seconds["torch"], seconds["ours"])} if peer_python else {})


if __name__ == "__main__":
    main()
