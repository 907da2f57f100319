"""A trial: a small sharded model trained for a moment, to see what stages take in the midst of a step.

A kernel that is timed by itself has its core, its caches and Python to itself. In a step, batches are decoded
beside it, ids of the next one travel, and ranks wait for each other. So a calibration ends with real steps:
what a stage takes there, as a multiple of what the kernels' times say of it, is its price "in_step_…", and
what is left of the step then is "rest".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tesserec.dataio.dataset import Dataset, DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.sharding.comm import Comm
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.grids import Kernels
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload
from tesserec.train.comparison import compare, refitted
from tesserec.train.config import TrainConfig
from tesserec.train.loop import Trainer
from tesserec.train.measured import Measured
from tesserec.train.planning import read_frequencies, workload_of
from tesserec.train.ranks import on_first_rank

STEPS, BATCH, DIM, GROUP = 96, 4096, 48, 8192
GROUPS = 52  # more than the steps need: no epoch begins among them
MOST_REST = 0.25  # of a step: more is the work of other processes, which no step of ours explains
# rows, ids of a sample (lists have 1 to 2 n - 1), Zipf's exponent, how it is sharded on several ranks
FEATURES: tuple[tuple[int, int, float, str], ...] = (
    (600_000, 4, 1.05, "row_wise"),
    (400_000, 1, 1.05, "table_wise"),
    (200_000, 8, 0.9, "column_wise"),
    (100_000, 1, 1.1, "table_wise"),
    (30_000, 2, 1.2, "hot_cold:5000"),
    (2_000, 1, 0.8, "data_parallel"),
    (50, 1, 0.5, "data_parallel"),
)
NAMES = [f"C{i}" for i in range(1, len(FEATURES) + 1)]


def trial(folder: Path, comm: Comm) -> None:
    """Train, and leave in `folder` what the run measured of itself. Collective; takes a few seconds."""
    on_first_rank(comm, lambda: _prepare(folder, comm.size))
    Trainer(trial_config(folder, comm.size), comm=comm, overwrite=True).fit()


def trial_config(folder: Path, ranks: int) -> TrainConfig:
    """What is trained. Without shuffling, batches are decoded evenly: bursts would count by chance."""
    dlrm = {"name": "dlrm", "embedding_dim": DIM, "bottom": [128, 64], "top": [256, 128], "pooling": "sum"}
    settings: dict[str, Any] = {
        "data": {
            "path": folder / "data",
            "batch_size": BATCH,
            "valid": None,
            "streams": ranks,
            "shuffle": False,
        },
        "model": dlrm,
        "optimizer": {"dense": {"name": "sgd", "lr": 0.01}, "rows": {"name": "rowwise_adagrad", "lr": 0.01}},
        "train": {"epochs": STEPS, "max_steps": STEPS, "checkpoint_seconds": None},
        "sharding": {"plan": folder / "plan.json"},
        "output": folder / "run",
    }
    return TrainConfig.model_validate(settings)


def in_step(kernels: Kernels, folder: Path, topology: Topology) -> Kernels:
    """`kernels` with the prices that make the estimate of a trial what was measured.

    topology: with as many ranks as the trial in `folder` had, and with these kernels.
    """
    workload, plan = _workload(folder, topology.num_ranks), ShardingPlan.load(folder / "plan.json")
    measured = Measured.read(folder / "run" / "measured.json")
    costs = CostModel(workload, topology)
    found = compare(workload, plan, costs.estimate(plan), measured, "trial")
    (device,) = refitted(topology, costs, plan, found).devices.values()
    fitted = _priced(kernels, {f"in_step_{stage}": factor for stage, factor in device.factors.items()})
    step = _step(workload, plan, topology, fitted)
    rest = min(max(measured.stages["step"]["seconds"]) - step, MOST_REST * step)
    return _priced(fitted, {"rest": round(max(0.0, rest), 7)})


def _workload(folder: Path, ranks: int) -> Workload:
    config = trial_config(folder, ranks)
    dataset = Dataset.open(config.data.path)
    reads, _ = read_frequencies(dataset, config, "")
    return workload_of(config, dataset, reads, measure=True)


def _priced(kernels: Kernels, prices: Mapping[str, float]) -> Kernels:
    return replace(kernels, single={**kernels.single, **prices})


def _step(workload: Workload, plan: ShardingPlan, topology: Topology, kernels: Kernels) -> float:
    devices = {name: replace(device, kernels=(kernels,)) for name, device in topology.devices.items()}
    return CostModel(workload, replace(topology, devices=devices)).estimate(plan).step_seconds


def _prepare(folder: Path, ranks: int) -> None:
    """The data and the plan."""
    (folder / "data").mkdir(parents=True)
    _write_data(folder / "data")
    shapes = {f"inputs.sparse.{name}": (rows, DIM) for name, (rows, *_) in zip(NAMES, FEATURES, strict=True)}
    kinds = dict(zip(shapes, (kind for *_, kind in FEATURES), strict=True))
    make_plan(shapes, ranks, kinds if ranks > 1 else {}, "table_wise").save(folder / "plan.json")


def _write_data(folder: Path) -> None:
    rng, dense = np.random.default_rng(0), tuple(f"I{i}" for i in range(1, 14))
    rows = GROUP * GROUPS
    columns: dict[str, Any] = {"label": (rng.random(rows) < 0.25).astype(np.float32)}
    columns |= {name: rng.random(rows, dtype=np.float32) for name in dense}
    columns |= {name: skewed_ids(*spec[:3], rng, rows) for name, spec in zip(NAMES, FEATURES, strict=True)}
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=GROUP)
    sparse = tuple(
        SparseFeature(name, size, length > 1)
        for name, (size, length, *_) in zip(NAMES, FEATURES, strict=True)
    )
    splits = {"train": Split(("train.parquet",), rows)}
    write_dataset_info(folder, DatasetInfo("trial", ("label",), dense=dense, sparse=sparse, splits=splits))


def skewed_ids(size: int, length: int, exponent: float, rng: np.random.Generator, rows: int) -> Any:
    """A column of ids of Zipf's law, or of lists of 1 to 2 · length - 1 of them."""
    lengths = rng.integers(1, 2 * length, rows)
    ids = _zipf(size, exponent, rng.random(int(lengths.sum())))
    if length == 1:
        return ids
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), ids)


def _zipf(rows: int, exponent: float, quantiles: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Ids at these quantiles: row k about as often as (k + 1)^-exponent."""
    if exponent == 1.0:
        found = (rows + 1) ** quantiles
    else:
        power = 1 - exponent
        found = (1 + quantiles * ((rows + 1) ** power - 1)) ** (1 / power)
    ids: npt.NDArray[np.int64] = np.minimum(found - 1, rows - 1).astype(np.int64)
    return ids
