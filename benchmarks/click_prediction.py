"""ROC AUC on click_prediction_small (KDD Cup 2012, OpenML 1220): mean of a stratified 10-fold validation.

    python benchmarks/click_prediction.py --data /path/to/click_prediction_small

For each fold a tenth of the data is for test and the next tenth, out of its training folds, for early
stopping; vocabularies and bucket boundaries are fitted on the other eight. Settings were chosen by the
early-stopping tenths of folds 0 to 2. The ids of queries, keywords, titles and descriptions are numbered by
about falling frequency, so besides being ids they are bucketized as numbers. Published (AMLB, JMLR 2024, one
hour on eight cores): LightAutoML .728, FLAML .723, TPOT .715, AutoGluon .710, MLJAR .709, H2O .701. Prints
one JSON line per fold and per model; a table on stderr.
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
import numpy.typing as npt

from tesserec.dataio.prepare import prepare
from tesserec.dataio.schema import Schema
from tesserec.train.config import TrainConfig
from tesserec.train.evaluate import evaluate_run
from tesserec.train.loop import Trainer

FILE = "Click_prediction_small.csv"
FOLDS = 10
NUMBERS = ["impression", "depth", "position"]
IDS = [
    "url_hash",
    "ad_id",
    "advertiser_id",
    "query_id",
    "keyword_id",
    "title_id",
    "description_id",
    "user_id",
]
SCHEMA = Schema.model_validate(
    {
        "name": "click_prediction_small",
        "labels": "click",
        "dense": [{"column": column, "transform": "standardize"} for column in NUMBERS],
        "sparse": [
            *({"column": column, "min_count": 10} for column in IDS),
            *({"column": c, "name": f"{c}_range", "encoding": "bucketize", "buckets": 10} for c in IDS),
            *({"column": column, "name": f"{column}_value"} for column in NUMBERS),
        ],
        "split": {"by": "column", "column": "part"},
    }
)
MODELS: dict[str, dict[str, Any]] = {
    "lr": {},
    "fm": {"embedding_dim": 4},
    "deepfm": {"embedding_dim": 8, "hidden": [64, 32], "dropout": 0.5},
}


def stratified(labels: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The fold of each row: within each class, a random permutation dealt out in turn."""
    rng, folds = np.random.default_rng(0), np.empty(len(labels), np.int64)
    for value in (False, True):
        rows = rng.permutation(np.flatnonzero(labels == value))
        folds[rows] = np.arange(len(rows)) % FOLDS
    return folds


def prepare_fold(source: Path, work: Path, fold: int) -> Path:
    """The data set of one fold: its rows for test, those of the next fold for validation."""
    header, *rows = (source / FILE).read_text().splitlines()
    folds = stratified(np.array([row.startswith('"1"') for row in rows]))
    parts = np.select([folds == fold, folds == (fold + 1) % FOLDS], ["test", "valid"], "train")
    raw = work / f"fold-{fold}.csv"
    lines = (f"{row},{part}" for row, part in zip(rows, parts, strict=True))
    raw.write_text("\n".join([f"{header},part", *lines]) + "\n")
    return prepare([raw], SCHEMA, work / f"fold-{fold}").dataset.path


def run(name: str, data: Path, output: Path) -> dict[str, float]:
    """Train one model on one fold -> its AUC on validation and test rows."""
    rows = {"name": "adam", "lr": 0.003, "weight_decay": 0.003}
    config = TrainConfig.model_validate(
        {
            "data": {"path": data, "batch_size": 1024},
            "model": {"name": name, **MODELS[name]},
            "optimizer": {"dense": {"name": "adam", "lr": 0.001}, "rows": rows},
            "train": {"epochs": 60, "early_stopping": {"patience": 5}},
            "output": output,
        }
    )
    start = time.perf_counter()
    Trainer(config).fit()
    seconds = time.perf_counter() - start
    valid, test = (evaluate_run(output, split=split)["model"]["auc"] for split in ("valid", "test"))
    return {"valid_auc": valid, "test_auc": test, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder of {FILE}")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)))
    args = parser.parse_args()
    table = [f"{'model':8}{'folds':>6}{'valid AUC':>18}{'test AUC':>18}"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = {fold: prepare_fold(args.data, work, fold) for fold in args.folds}
        for name in args.models:
            runs = []
            for fold in args.folds:
                runs.append(run(name, data[fold], work / f"{name}-{fold}"))
                print(json.dumps({"model": name, "fold": fold, **runs[-1]}), flush=True)
            values = np.array([[one["valid_auc"], one["test_auc"]] for one in runs])
            (valid, test), (valid_sd, test_sd) = values.mean(axis=0), values.std(axis=0)
            line = {"model": name, "folds": len(runs), "valid_auc": valid, "test_auc": test}
            print(json.dumps({**line, "test_auc_sd": test_sd}), flush=True)
            table.append(f"{name:8}{len(runs):6}{valid:11.4f} ±{valid_sd:.4f}{test:11.4f} ±{test_sd:.4f}")
    print("\n".join(table), file=sys.stderr)


if __name__ == "__main__":
    main()
