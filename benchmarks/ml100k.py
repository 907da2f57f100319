"""Test AUC and log loss of five models on MovieLens-100k, by RecBole's click-through protocol and split.

    python benchmarks/ml100k.py --data /path/to/ml100k

The folder holds RecBole's atomic files ml-100k.{inter,user,item} and recbole_seed2020_split.csv (columns row,
ctr_split). A label is a rating of 4 or more; features are user, item, timestamp, age, gender, occupation,
release year and the list of genres. Each model trains once per seed and stops early on the validation split,
by which the settings below were chosen too. RecBole publishes for LR: test AUC .7765, log loss .5620. Prints
one JSON line per run and per model; a table on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tesserec.dataio.prepare import prepare
from tesserec.dataio.schema import read_schema
from tesserec.train.config import TrainConfig
from tesserec.train.evaluate import evaluate_run
from tesserec.train.loop import Trainer

NAME = "ml-100k"
SPLIT_FILE = "recbole_seed2020_split.csv"
METRICS = [f"{split}_{metric}" for split in ("valid", "test") for metric in ("auc", "log_loss")]


def settings(rows_lr: float, l2: float, dense_lr: float, batch_size: int) -> dict[str, Any]:
    """The sections of a training config that differ by model: Adam for all, L2 on rows."""
    rows = {"name": "adam", "lr": rows_lr, "weight_decay": l2}
    optimizer = {"dense": {"name": "adam", "lr": dense_lr}, "rows": rows}
    return {"optimizer": optimizer, "data": {"batch_size": batch_size}}


MODELS: dict[str, dict[str, Any]] = {
    "lr": settings(0.01, 1e-5, 0.01, 2048),
    "fm": {"options": {"embedding_dim": 4}, **settings(0.01, 5e-5, 0.01, 4096)},
    "deepfm": {
        "options": {"embedding_dim": 16, "hidden": [64, 32], "dropout": 0.5},
        **settings(0.01, 1e-4, 1e-3, 4096),
    },
    "dcnv2": {
        "options": {
            "embedding_dim": 16,
            "cross_layers": 2,
            "hidden": [128, 64],
            "structure": "parallel",
        },
        **settings(0.02, 4e-4, 3e-4, 4096),
    },
    "dlrm": {
        "options": {"embedding_dim": 8, "bottom": [64], "top": [128], "dropout": 0.5},
        **settings(0.02, 1e-4, 5e-5, 2048),
    },
}


def prepare_split(source: Path, work: Path) -> Path:
    """The data set, prepared by the ready schema; the given split is one more column of the interactions."""
    header, *rows = (source / f"{NAME}.inter").read_text().splitlines()
    _, *splits = (source / SPLIT_FILE).read_text().splitlines()
    joined = [f"{row}\t{line.split(',')[1]}" for row, line in zip(rows, splits, strict=True)]
    raw = work / f"{NAME}.inter"
    raw.write_text("\n".join([f"{header}\tctr_split:token", *joined]) + "\n")
    for side in ("user", "item"):
        (work / f"{NAME}.{side}").symlink_to((source / f"{NAME}.{side}").resolve())
    schema = read_schema("movielens", ["split={by: column, column: ctr_split}"])
    return prepare([raw], schema, work / "prepared").dataset.path


def run(name: str, seed: int, data: Path, work: Path) -> dict[str, float]:
    """Train one model with one seed -> its metrics on the validation and the test split."""
    chosen = MODELS[name]
    config = TrainConfig.model_validate(
        {
            "data": {"path": data, **chosen["data"]},
            "model": {"name": name, **chosen.get("options", {})},
            "optimizer": chosen["optimizer"],
            "train": {"epochs": 150, "seed": seed, "early_stopping": {"patience": 15}},
            "output": work / f"{name}-{seed}",
        }
    )
    start = time.perf_counter()
    state = Trainer(config).fit()
    measured = {"seconds": time.perf_counter() - start, "steps": state.step}
    for split in ("valid", "test"):
        metrics = evaluate_run(work / f"{name}-{seed}", split=split)["model"]
        measured |= {f"{split}_{metric}": metrics[metric] for metric in ("auc", "log_loss")}
    return measured


def summary(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    """{metric: [mean, standard deviation over seeds]}."""
    values = {key: np.array([run[key] for run in runs]) for key in METRICS}
    return {key: [float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else 0.0] for key, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the RecBole files")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    table = [f"{'model':8}" + "".join(f"{key:>18}" for key in METRICS)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = prepare_split(args.data, work)
        for name in args.models:
            runs = []
            for seed in args.seeds:
                runs.append(run(name, seed, data, work))
                print(json.dumps({"model": name, "seed": seed, **runs[-1]}), flush=True)
            means = summary(runs)
            print(json.dumps({"model": name, "seeds": len(runs), **means}), flush=True)
            cells = (f"{mean:>11.4f} ±{sd:.4f}" for mean, sd in (means[key] for key in METRICS))
            table.append(f"{name:8}" + "".join(cells))
    print("\n".join(table), file=sys.stderr)


if __name__ == "__main__":
    main()
