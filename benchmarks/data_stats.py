"""`tesserec data stats`: rows a second, peak memory, and how well its curves foretell batches.

    python -m benchmarks.data_stats [--rows 2097152]

26 features at Criteo-Kaggle table sizes, one id each, prepared Parquet in row groups of 65,536. Three sets:
`log` (log-uniform, frequent rows first, as in vocabularies), `zipf` (exponent 1.05, strewn, as hashes are),
`uniform`. Each command runs in a process of its own, start included; memory is its largest resident set.

distinct, hottest: the largest error of the curves of the three largest tables, against other ids of the same
source. distinct: of the distinct rows of batches of 65,536 and of 1,048,576 ids, relative; hottest: of the
share of the ids that go to the hottest 1 % of the rows, absolute.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cases import KAGGLE, draw, zipf_chances
from benchmarks.harness import machine
from benchmarks.prepare_csv import measured
from tesserec.dataio.dataset import DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.sharding.planner.frequencies import Frequencies
from tesserec.sharding.planner.statistics import features_of

GROUP = 65_536
NAMES = [f"C{i}" for i in range(1, 27)]
LARGEST = sorted(range(26), key=lambda i: -KAGGLE[i])[:3]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32 * GROUP)
    args = parser.parse_args()
    print(json.dumps({"benchmark": "data_stats", **machine()}), flush=True)
    for kind in ("log", "zipf", "uniform"):
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(case(Path(name), kind, args.rows)), flush=True)


def case(folder: Path, kind: str, rows: int) -> dict[str, Any]:
    """Write a data set, count it, ask the curves."""
    write(folder, kind, rows)
    output = folder / "stats.json"
    measured("data", "stats", str(folder), "--rows", "1")  # kernels are compiled once
    seconds, peak = min(measured("data", "stats", str(folder), "-o", str(output)) for _ in range(3))
    line: dict[str, Any] = {"ids": kind, "rows": rows, "seconds": round(seconds, 1)}
    line |= {"rows_per_minute": round(rows / seconds * 60), "peak_GB": round(peak / 1e9, 2)}
    line["json_MB"] = round(output.stat().st_size / 1e6, 2)
    found = features_of(output.read_bytes())
    errors = [foretold(found[NAMES[i]][1], kind, KAGGLE[i]) for i in LARGEST]
    return line | {key: round(max(error[key] for error in errors), 4) for key in errors[0]}


def write(folder: Path, kind: str, rows: int) -> None:
    """A prepared data set of `rows` rows."""
    with pq.ParquetWriter(
        folder / "train.parquet", pa.schema([(name, pa.int64()) for name in NAMES])
    ) as file:
        for group in range(rows // GROUP):
            rng = np.random.default_rng([0, group])
            columns = {name: draw(kind, size, GROUP, rng) for name, size in zip(NAMES, KAGGLE, strict=True)}
            file.write_table(pa.table(columns), row_group_size=GROUP)
    sparse = tuple(SparseFeature(name, size) for name, size in zip(NAMES, KAGGLE, strict=True))
    splits = {"train": Split(("train.parquet",), rows // GROUP * GROUP)}
    write_dataset_info(folder, DatasetInfo(kind, sparse=sparse, splits=splits))


def foretold(curve: Frequencies, kind: str, rows: int) -> dict[str, float]:
    """Errors against fresh draws and the true chances."""
    rng = np.random.default_rng([1, rows])
    errors = {}
    for ids in (65_536, 1_048_576):
        counted = len(np.unique(draw(kind, rows, ids, rng)))
        errors[f"distinct_{ids}"] = abs(float(curve.distinct(ids)) / counted - 1)
    truth = {"uniform": 0.01, "log": np.log(rows // 100 + 1) / np.log(rows)}
    share = truth[kind] if kind in truth else zipf_chances(rows)[: rows // 100].sum()
    return errors | {"hottest": abs(float(curve.hottest(rows // 100)) - share)}


if __name__ == "__main__":
    main()
