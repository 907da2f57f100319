"""DLRM at Criteo-Kaggle table sizes by `tesserec train` on one and two ranks: speed, timeline, the same AUC.

    python -m benchmarks.sharded_criteo --timeline folder

From Parquet to updated tables (33.8 M rows, D 16, bottom and top 512-256, batch 2,048), labels planted
(`dlrm_parquet.write_data`), so that the AUC of 131,072 other rows says something. The two ranks share two
cores, so they cannot be faster than one process with two threads: what is asked is what sharding costs.
Speed is that of the steps after the first 64, which compile and warm up: the difference of a long and a
short run. `overlap` is the share of the time of input_dist, on its own thread, in which the main thread was
in a step.

Sums of partial sums differ from whole ones in the last bit, where several ranks hold a row or a bag's rows,
and training makes much of it: `slices of 1,024` is one rank whose sums are rounded otherwise, to compare
with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cases import BATCH, KAGGLE
from benchmarks.dlrm_parquet import GROUP, write_data
from benchmarks.harness import Line, Report
from benchmarks.trainings import train
from tesserec.dataio.dataset import DatasetInfo, SparseFeature, Split, write_dataset_info

CONFIG = {
    "data": {"path": "data", "batch_size": BATCH},
    "model": {"name": "dlrm", "embedding_dim": 16, "bottom": [512, 256], "top": [512, 256], "pooling": "sum"},
    "optimizer": {"dense": {"name": "sgd", "lr": 0.1}, "rows": {"name": "rowwise_adagrad", "lr": 0.05}},
    "train": {"checkpoint_seconds": None},
}
WARM = 64  # steps
RUNS: dict[str, tuple[int, Line]] = {
    "1 rank": (1, {}),
    "1 rank, slices of 1,024": (1, {"train.slice_size": 1024}),
    "2 ranks, auto": (2, {}),
    "2 ranks, row_wise": (2, {"sharding.default": "row_wise"}),
    "2 ranks, auto, bitwise": (2, {"train.deterministic": "bitwise"}),
}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="fewer rows: does it run?")
    parser.add_argument(
        "--timeline", type=Path, default=Path("benchmarks/results"), help="folder for timelines"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Report("sharded_criteo") as report:
        folder = Path(name)
        make_data(folder, (4 if args.quick else 16) * GROUP)
        for run, (ranks, settings) in RUNS.items():
            timeline = args.timeline.absolute() / f"timeline {run.replace(',', '')}.json".replace(" ", "_")
            report.add({"run": run, **measure(folder, ranks, settings, timeline)})


def make_data(folder: Path, rows: int) -> None:
    """A data set of `rows` rows and two row groups for validation, and the config."""
    data = folder / "data"
    data.mkdir()
    write_data(data / "train.parquet", rows)
    write_data(data / "valid.parquet", 2 * GROUP, seed=1)
    sparse = tuple(SparseFeature(f"C{i}", size) for i, size in enumerate(KAGGLE, 1))
    splits = {"train": Split(("train.parquet",), rows), "valid": Split(("valid.parquet",), 2 * GROUP)}
    dense = tuple(f"I{i}" for i in range(1, 14))
    write_dataset_info(data, DatasetInfo("kaggle", ("label",), dense=dense, sparse=sparse, splits=splits))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))


def measure(folder: Path, ranks: int, settings: Line, timeline: Path) -> Line:
    """Samples per second, AUC, log loss; what the timeline says."""
    short = train(folder, "run", {**settings, "train.max_steps": WARM, "data.valid": "null"}, ranks)
    long = train(folder, "run", settings, ranks, timeline)
    samples, seconds = (long[key] - short[key] for key in ("samples", "training_seconds"))
    valid = long["best_validation"]
    line = {"samples_per_s": round(samples / seconds), "auc": valid["auc"], "log_loss": valid["log_loss"]}
    return line | stages(json.loads(timeline.read_text())["traceEvents"])


def stages(events: list[dict[str, Any]]) -> Line:
    """Milliseconds per step of each span of rank 0, the median one, and how much of input_dist is hidden."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X" and event["pid"] == 0:
            spans.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    middle = {
        f"{name}_ms": round(sorted(end - start for start, end in found)[len(found) // 2] / 1e3, 2)
        for name, found in sorted(spans.items())
    }
    hidden = [covered(one, spans["step"]) for one in spans.get("input_dist", [])]
    total = sum(end - start for start, end in spans.get("input_dist", []))
    return middle | ({"overlap": round(sum(hidden) / total, 3)} if total else {})


def covered(one: tuple[float, float], others: list[tuple[float, float]]) -> float:
    """How much of a span lies in others, which do not overlap."""
    return sum(max(0.0, min(one[1], end) - max(one[0], start)) for start, end in others)


if __name__ == "__main__":
    main()
