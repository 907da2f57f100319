"""How fast this machine decodes batches: data sets of a few shapes, read as training does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tesserec.dataio.dataset import Dataset, DatasetInfo, SparseFeature, Split
from tesserec.dataio.stream import read_batches
from tesserec.sharding.planner.calibration import fitted
from tesserec.sharding.planner.measure import Call, Point

ROWS, BATCH, VOCABULARY = 1 << 15, 2048, 100_000
SHAPES = ((4, 1, 1), (26, 1, 13), (4, 10, 1))  # sparse features, ids of each, dense columns


def reading(folder: Path) -> dict[Point, Any]:
    """{point: the reading of an epoch of a data set}; they are in `folder`, which has to stay."""
    return {("read", *shape): Call(reader(folder, *shape)) for shape in SHAPES}


def reading_prices(times: Mapping[Point, float]) -> dict[str, float]:
    """Seconds of a row, of an id and of a number in a dense column."""
    terms = [(ROWS, ROWS * features * length, ROWS * columns) for features, length, columns in SHAPES]
    taken = [times["read", *shape] for shape in SHAPES]
    return {"read": 0.0, **fitted(("read_row", "read_id", "read_column"), terms, taken)}


def reader(folder: Path, features: int, length: int, columns: int) -> Callable[[], None]:
    """Reads all batches of a new data set of that shape."""
    folder = folder / f"{features}-{length}-{columns}"
    folder.mkdir(parents=True)
    names, dense = [f"C{k}" for k in range(features)], tuple(f"I{k}" for k in range(columns))
    rng, offsets = np.random.default_rng(0), np.arange(0, ROWS * length + 1, length, dtype=np.int32)
    table: dict[str, Any] = {name: rng.random(ROWS, np.float32) for name in ("label", *dense)}
    for name in names:
        ids = pa.array(rng.integers(0, VOCABULARY, ROWS * length))
        table[name] = pa.ListArray.from_arrays(pa.array(offsets), ids) if length > 1 else ids
    pq.write_table(pa.table(table), folder / "train.parquet", row_group_size=ROWS // 2)
    sparse = tuple(SparseFeature(name, VOCABULARY, length > 1) for name in names)
    splits = {"train": Split(("train.parquet",), ROWS)}
    dataset = Dataset(folder, DatasetInfo("read", ("label",), dense=dense, sparse=sparse, splits=splits))

    def read() -> None:
        for _ in read_batches(dataset, "train", BATCH, prefetch=0):
            pass

    return read
