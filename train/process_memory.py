"""The memory of a rank that is of no table's or batch's making: libraries, kernels, threads, channels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tesserec.autograd.workers import one_thread_blas
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import Dataset, DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.dataio.stream import read_batches
from tesserec.sharding.comm import Comm
from tesserec.train.config import TrainConfig
from tesserec.train.learner import Learner
from tesserec.train.sampled import resident_bytes

STEPS, SAMPLES, ROWS = 3, 8, 64


def process_bytes(comm: Comm) -> int:
    """Resident bytes of this process when it has trained a model of no size. Collective; takes a second.

    To be called before anything large was allocated, which may leave memory behind.
    """
    with tempfile.TemporaryDirectory() as folder:
        dataset = _dataset(Path(folder))
        config = TrainConfig.model_validate(
            {
                "data": {"path": folder, "batch_size": SAMPLES * comm.size, "valid": None},
                "model": {"name": "dlrm", "embedding_dim": 8, "bottom": [8], "top": [8]},
                "sharding": {"default": "row_wise"},
            }
        )
        learner = Learner(config, dataset.info, STEPS, comm)
        with one_thread_blas():
            for step, share in enumerate(learner.shares(_batches(dataset, comm))):
                learner.learn(share, step)
        return resident_bytes()


def _batches(dataset: Dataset, comm: Comm) -> Iterator[Batch]:
    batches = read_batches(dataset, "train", SAMPLES * comm.size, rank=comm.rank, size=comm.size)
    return islice(batches, STEPS)


def _dataset(folder: Path) -> Dataset:
    """Of a few rows, with a feature of one id and one of lists."""
    numbers = np.arange(ROWS * 64)
    columns = {
        "label": (numbers % 2).astype(np.float32),
        "number": numbers.astype(np.float32),
        "one": numbers % ROWS,
        "some": pa.array([[i % ROWS, i % 7] for i in numbers.tolist()], pa.list_(pa.int64())),
    }
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=len(numbers) // 4)
    sparse = (SparseFeature("one", ROWS), SparseFeature("some", ROWS, True))
    splits = {"train": Split(("train.parquet",), len(numbers))}
    info = DatasetInfo("memory", labels=("label",), dense=("number",), sparse=sparse, splits=splits)
    write_dataset_info(folder, info)
    return Dataset.open(folder)
