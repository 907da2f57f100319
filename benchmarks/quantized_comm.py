"""What quantized communication costs in AUC and saves in bytes, two ranks.

    python -m benchmarks.quantized_comm
    python -m benchmarks.quantized_comm --ml100k /path/to/ml100k

Trains DLRM (D 16, one epoch) on synthetic Criteo-like clicks with a planted truth, or DCN-V2 on
MovieLens-100k by RecBole's protocol (`benchmarks.ml100k`), for each codec of vectors and of their gradients
and each seed, every table split by rows: half of all vectors cross. `auc`: of the validation split, mean
over seeds; `to_fp32`: the mean difference to fp32 of the same seed, `deviation` that of these differences.
`wire_bytes`: of vectors and gradients, over those of fp32. Training makes much of the last bit: `slices of
256` are fp32 whose sums are rounded otherwise, to compare with.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import yaml

from benchmarks import ml100k
from benchmarks.harness import Line, Report
from benchmarks.trainings import tesserec, train

RUNS: dict[str, tuple[str, str, Line]] = {  # codec of vectors, of gradients, other keys
    "fp32": ("fp32", "fp32", {}),
    "fp32, slices of 256": ("fp32", "fp32", {"train.slice_size": 256}),
    "fp16": ("fp16", "fp16", {}),
    "bf16": ("bf16", "bf16", {}),
    "int8 forward": ("int8", "fp32", {}),
    "int8 backward": ("fp32", "int8", {}),
    "int8": ("int8", "int8", {}),
}
DIM = 16
CLICKS = {
    "data": {"path": "prepared", "batch_size": 2048},
    "model": {"name": "dlrm", "embedding_dim": DIM, "bottom": [256, 64], "top": [256, 64]},
    "optimizer": {"dense": {"name": "adam", "lr": 0.003}, "rows": {"name": "rowwise_adagrad", "lr": 0.02}},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ml100k", type=Path, help="folder of RecBole's files; else synthetic clicks")
    parser.add_argument("--rows", type=int, default=300_000, help="of synthetic clicks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="few rows, one seed: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.seeds = 50_000, [0]
    with tempfile.TemporaryDirectory() as name, Report("quantized_comm") as report:
        folder = Path(name)
        make_movies(folder, args.ml100k) if args.ml100k else make_clicks(folder, args.rows)
        plain: list[float] = []
        for run, (forward, backward, others) in RUNS.items():
            settings = {"sharding.default": "row_wise", "sharding.forward": forward, **others}
            settings["sharding.backward"] = backward
            found = [auc(folder, settings, seed) for seed in args.seeds]
            plain = plain or found
            report.add({"codec": run, **summary(found, plain), "wire_bytes": share(forward, backward)})


def make_clicks(folder: Path, rows: int) -> None:
    """Synthetic clicks, prepared, and the config."""
    tesserec(folder, "data", "synth", "clicks.csv", "--rows", str(rows))
    tesserec(folder, "data", "prepare", "clicks.csv", "--schema", "clicks.schema.yaml", "-o", "prepared")
    (folder / "config.yaml").write_text(yaml.safe_dump(CLICKS))


def make_movies(folder: Path, source: Path) -> None:
    """MovieLens-100k, prepared, and the config of `benchmarks.ml100k` for DCN-V2."""
    chosen = ml100k.MODELS["dcnv2"]
    config = {
        "data": {"path": str(ml100k.prepare_split(source, folder)), **chosen["data"]},
        "model": {"name": "dcnv2", **chosen["options"]},
        "optimizer": chosen["optimizer"],
        "train": {"epochs": 60, "early_stopping": {"patience": 15}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def auc(folder: Path, settings: Line, seed: int) -> float:
    """The best AUC of the validation split."""
    report = train(folder, "run", {**settings, "train.seed": seed}, ranks=2)
    return float(report["best_validation"]["auc"])


def summary(found: list[float], plain: list[float]) -> Line:
    """Over seeds."""
    lost = [a - b for a, b in zip(found, plain, strict=True)]
    line: Line = {"auc": round(statistics.mean(found), 5), "to_fp32": round(statistics.mean(lost), 6)}
    return line | ({"deviation": round(statistics.stdev(lost), 6)} if len(lost) > 1 else {})


def share(forward: str, backward: str) -> float:
    """Bytes of a vector there and its gradient back, over those of fp32; int8 has a scale for each."""
    sizes = {"fp32": 4 * DIM, "fp16": 2 * DIM, "bf16": 2 * DIM, "int8": DIM + 2}
    return round((sizes[forward] + sizes[backward]) / (2 * sizes["fp32"]), 4)


if __name__ == "__main__":
    main()
