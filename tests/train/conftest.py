"""A small learnable data set, and runs on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tesserec.dataio.config import parse_config
from tesserec.dataio.dataset import DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.train.config import TrainConfig
from tesserec.train.loop import Interrupted, State, Trainer

ROWS = {"train": 640, "valid": 300, "test": 200}
BATCH = 64  # 10 batches an epoch
USERS, ITEMS, GENRES = 23, 41, 7


def write_dataset(folder: Path, *, seed: int = 0) -> Path:
    """Prepared data whose label depends on all columns; `p_true` is its probability."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    effects = [rng.standard_normal(size) for size in (USERS, ITEMS, GENRES)]
    for split, rows in ROWS.items():
        user, item = rng.integers(0, USERS, rows), rng.integers(0, ITEMS, rows)
        genres = [rng.integers(0, GENRES, rng.integers(0, 4)) for _ in range(rows)]
        price = rng.standard_normal(rows).astype(np.float32)
        logits = effects[0][user] + effects[1][item] + price + [effects[2][g].sum() for g in genres]
        p_true = 1 / (1 + np.exp(-logits))
        columns = {
            "label": (rng.random(rows) < p_true).astype(np.float32),
            "weight": rng.uniform(0.5, 2, rows).astype(np.float32),
            "group": user,
            "price": price,
            "user": user,
            "item": item,
            "genres": pa.array(genres, pa.list_(pa.int64())),
            "p_true": p_true,
        }
        pq.write_table(pa.table(columns), folder / f"{split}.parquet", row_group_size=100)
    info = DatasetInfo(
        "tiny",
        labels=("label",),
        weight="weight",
        group="group",
        dense=("price",),
        sparse=(
            SparseFeature("user", USERS),
            SparseFeature("item", ITEMS),
            SparseFeature("genres", GENRES, True),
        ),
        keep=("p_true",),
        splits={split: Split((f"{split}.parquet",), rows) for split, rows in ROWS.items()},
    )
    write_dataset_info(folder, info)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("train") / "data")


def settings(data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A run of 3 epochs with everything on that has state. changes: dotted keys with __ for dots."""
    values: dict[str, Any] = {
        "data": {"path": str(data), "batch_size": BATCH},
        "model": {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [16], "dropout": 0.1},
        "optimizer": {
            "dense": {"name": "adam", "lr": 0.05},
            "rows": {"name": "rowwise_adagrad", "lr": 2.0},
        },
        "schedule": {"name": "cosine", "warmup": 3},
        "plateau": {"gamma": 0.5, "patience": 0},
        "train": {
            "epochs": 3,
            "slice_size": 16,
            "log_every": 4,
            "validate_every": 6,
            "clip_norm": 1.0,
            "early_stopping": {"patience": 9},
        },
        "output": str(output),
    }
    for dotted, value in changes.items():
        *sections, last = dotted.split("__")
        node = values
        for section in sections:
            node = node[section]
        node[last] = value
    return values


Train = Callable[..., Trainer]
Stop = Callable[[State], bool]


def never(state: State) -> bool:
    return False


@pytest.fixture
def configure(data: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """`configure(name, **changes)`: the configuration of run tmp_path/name."""
    return lambda name="run", **changes: parse_config(settings(data, tmp_path / name, **changes), TrainConfig)


@pytest.fixture
def train(configure: Callable[..., TrainConfig]) -> Train:
    """`train(name, resume=…, stop=…, **changes)`: the Trainer of run tmp_path/name, finished or stopped."""

    def run(name: str = "run", *, resume: bool = False, stop: Stop = never, **changes: Any) -> Trainer:
        trainer = Trainer(configure(name, **changes), resume=resume, should_stop=lambda: stop(trainer.state))
        with suppress(Interrupted):
            trainer.fit()
        return trainer

    return run
