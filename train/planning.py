"""A training run as numbers for the planner: its config and what is known of its data, as a `Workload`.

The model is made in full but for its tables, so names, shapes, pooling and optimizer state are the engine's
own. What its dense part costs is counted from the captured forward pass or, on the machine that is planned
for, measured by running its slices for a moment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tesserec.autograd.compiler.capture import Capture, Record, Uncapturable, capture
from tesserec.autograd.compiler.fusion import fused
from tesserec.autograd.compiler.lowerings import lower
from tesserec.autograd.compiler.model import compile
from tesserec.autograd.compiler.program import Program
from tesserec.autograd.module import Module
from tesserec.autograd.random import random_stream
from tesserec.autograd.tensor import Tensor
from tesserec.autograd.workers import one_thread_blas
from tesserec.dataio.batch import Batch
from tesserec.dataio.collect import collect_stats
from tesserec.dataio.dataset import DataError, Dataset, DatasetInfo
from tesserec.dataio.stream import BUFFER_ROWS
from tesserec.embeddings.collection import named_collections
from tesserec.embeddings.config import EmbeddingBagConfig, EmbeddingConfig
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.memory import planning
from tesserec.embeddings.pool import Pool
from tesserec.sharding.comm import LocalComm
from tesserec.sharding.model import shard, table_shapes
from tesserec.sharding.placement import make_plan
from tesserec.sharding.planner import workload as planner
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.statistics import features_of
from tesserec.train.config import ShardingSection, TrainConfig
from tesserec.train.learner import Learner, looked_up, new_model, tolerant_features
from tesserec.train.step import StepOptions, losses_and_gradients

# a dense model is as fast on tables of few rows; lookups of the measured one cost next to nothing
SMALL_TABLE = 16
# ops whose result takes a multiplication and an addition for each number of the last axis of its argument
PRODUCTS = ("matmul", "linear", "linear_relu", "pairwise_dot")
MEASURED_SECONDS = 1.0
SAMPLED_ROWS = 500_000  # of data without statistics: a second or so


@dataclass(frozen=True, eq=False)
class Reads:
    """How a feature reads its table: how many ids a bag has, and which."""

    lengths: Lengths
    frequencies: Frequencies


def read_frequencies(dataset: Dataset, config: TrainConfig, stats: str) -> tuple[dict[str, Reads], str]:
    """({feature: how it is read}, in words where that is from): the file `stats`, or a sample of the data.

    DataError, PlanError where either cannot be read, or the file is of other features.
    """
    if stats:
        found = _reads(_text(Path(stats)), stats)
        if lacking := [f.name for f in dataset.info.sparse if f.name not in found]:
            raise DataError(
                f"{stats}: has no feature {lacking[0]!r}, which {dataset.path} has; make those of this data: "
                f"tesserec data stats {dataset.path} -o {stats}"
            )
        return found, stats
    try:
        sample = collect_stats(dataset, config.data.train, rows=SAMPLED_ROWS)
    except DataError:
        if not tolerant_features(dataset.info, config):
            raise
        return {}, "assumed to be one id a sample, uniform: there are ids that the tables do not have"
    share = "all" if sample.rows == sample.of_rows else f"{sample.rows:,} of {sample.of_rows:,}"
    return _reads(
        json.dumps(sample.to_dict())
    ), f"{share} rows of {dataset.path}, split {config.data.train!r}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; make it with `tesserec data stats DATA -o {path}`"
        ) from None


def _reads(text: str, source: str = "") -> dict[str, Reads]:
    return {name: Reads(*feature) for name, feature in features_of(text, source).items()}


def workload_of(
    config: TrainConfig, dataset: Dataset, reads: Mapping[str, Reads], *, measure: bool = False
) -> planner.Workload:
    """What a step of the run has to do. No table is allocated.

    reads: by feature; where one is missing, one id a sample, uniform. measure: run the dense model for a
    second, on this machine. ConfigError, ModelError as in training.
    """
    alone = config.model_copy(update={"sharding": ShardingSection()})
    with planning():
        learner = Learner(alone, dataset.info, total_steps=1)
    sharding = config.sharding
    tables = (
        _table(prefix, pool, table, reads)
        for prefix, collection in named_collections(learner.model)
        for pool in collection.pools
        for table in (place.config for place in pool.tables)
    )
    return planner.Workload(
        _in_order(tables, table_shapes(learner.model)),
        config.data.batch_size,
        optimizer=planner.RowOptimizer.of(config.optimizer.rows.name, learner.row_optimizer),
        dense=_dense(config, dataset.info, learner, reads, measure),
        forward=sharding.forward,
        backward=sharding.backward,
        slice_size=config.train.slice_size,
        streams=config.data.streams,
        buffer_rows=buffer_rows(config, dataset),
        epoch_rows=dataset.split(config.data.train).rows,
        bitwise=config.train.deterministic == "bitwise",
        replica_groups=sharding.replica_groups,
        sync_every=sharding.sync_every,
    )


def buffer_rows(config: TrainConfig, dataset: Dataset) -> int:
    """Rows that are decoded at once: whole row groups, as large as those of the first file."""
    split, files = dataset.split(config.data.train), dataset.files(config.data.train)
    metadata = pq.read_metadata(files[0])
    group = max((metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)), default=1)
    wanted = -(-BUFFER_ROWS // group) * group if config.data.shuffle else group
    return max(1, min(wanted, -(-split.rows // config.data.streams)))


def _in_order(tables: Any, shapes: Mapping[str, Any]) -> tuple[planner.Table, ...]:
    """As the model has them: pools keep tables of one width together."""
    by_name = {table.name: table for table in tables}
    return tuple(by_name[name] for name in shapes)


def _table(prefix: str, pool: Pool, config: EmbeddingConfig, reads: Mapping[str, Reads]) -> planner.Table:
    rows, pooled = config.num_embeddings, isinstance(config, EmbeddingBagConfig)
    features = []
    for name in config.feature_names:
        known = reads.get(name) or Reads(Lengths.fixed(1), Frequencies.uniform(rows))
        features.append(planner.Feature(name, known.lengths, known.frequencies.resized(rows)))
    return planner.Table(
        prefix + config.name,
        rows,
        config.embedding_dim,
        pool.data_type,
        pooled=pooled,
        mean=isinstance(config, EmbeddingBagConfig) and config.pooling == "mean",
        features=tuple(features),
    )


def _dense(
    config: TrainConfig, info: DatasetInfo, learner: Learner, reads: Mapping[str, Reads], measure: bool
) -> planner.Dense:
    """All that is no table. Counted from one slice of made-up samples."""
    parameters = sum(p.data.size for p in learner.model.parameters() if not isinstance(p, Pool))
    kept = learner.dense_optimizer.state_dict().values()
    state = sum(array.size for array in kept if isinstance(array, np.ndarray))
    twin = _Twin(config, info, reads)
    flops, activations = twin.counted()
    return planner.Dense(
        parameters,
        flops or 2.0 * parameters,
        twin.measured() if measure else None,
        activations or 8.0 * _widths(learner.model),
        state_numbers=round(state / max(1, parameters)),
        columns=len(info.dense),
        sharded=config.sharding.dense == "sharded",
    )


class _Twin:
    """The model of a run on tables of a few rows, and a slice of samples for it."""

    def __init__(self, config: TrainConfig, info: DatasetInfo, reads: Mapping[str, Reads]):
        small = tuple(replace(f, num_embeddings=min(f.num_embeddings, SMALL_TABLE)) for f in info.sparse)
        data = config.data.model_copy(update={"unseen": {}})
        plain = config.model_copy(update={"data": data, "sharding": ShardingSection()})
        self.config, self.size = config, config.train.slice_size
        self.model = new_model(plain, replace(info, sparse=small))
        self.batch = _made_up(replace(info, sparse=small), reads, self.size)

    def counted(self) -> tuple[float, float]:
        """(operations of the forward pass, bytes that it and the way back need) of a sample; 0 if unknown."""
        try:
            with random_stream(np.random.default_rng(0)):
                captured = capture(self.model, (self.batch.dense, self.batch.sparse), ())
        except Uncapturable:
            return 0.0, 0.0
        return sum(map(_flops, captured.records)) / self.size, _arena(captured) / self.size

    def measured(self) -> float:
        """Seconds of a sample, forward and backward, on one thread: the lower quartile of many slices.

        Of the thread's own time, so that it does not matter who else is on the cores. In two digits: what is
        left is noise, and the same case is to give the same plan.
        """
        model = shard(self.model, make_plan(table_shapes(self.model), 1), LocalComm())
        batch = looked_up(self.batch, model, model.input_dist(self.batch.sparse))
        fast: Module = compile(model, slice_size=self.size) if self.config.train.compile else model
        options, seconds = StepOptions(seed=0, slice_size=self.size), list[float]()
        with one_thread_blas():
            begin = time.perf_counter()
            while len(seconds) < 8 or time.perf_counter() - begin < MEASURED_SECONDS:
                start = time.thread_time()
                losses_and_gradients(fast, [batch], 0, options, float(self.size))
                seconds.append(time.thread_time() - start)
        found = np.quantile(seconds[2:], 0.25) / self.size  # the first ones compile
        return float(f"{found:.1e}")


def _widths(model: Module) -> int:
    """Numbers of a sample that dense layers give, as far as their parameters tell."""
    return sum(p.data.shape[-1] for p in model.parameters() if p.ndim == 2 and not isinstance(p, Pool))


def _made_up(info: DatasetInfo, reads: Mapping[str, Reads], samples: int) -> Batch:
    """Random samples with as many ids as the data's have on average."""
    rng = np.random.default_rng(0)
    names = [feature.name for feature in info.sparse]
    lengths = [max(1, round(reads[n].lengths.mean)) if n in reads else 1 for n in names]
    ids = [
        rng.integers(0, feature.num_embeddings, samples * length)
        for feature, length in zip(info.sparse, lengths, strict=True)
    ]
    sparse = KeyedJaggedTensor.from_lengths(names, np.concatenate(ids), np.repeat(lengths, samples))
    dense = rng.standard_normal((samples, len(info.dense)), np.float32)
    labels = rng.integers(0, 2, (samples, max(1, len(info.labels)))).astype(np.float32)
    return Batch(dense, sparse, labels)


def _flops(record: Record) -> float:
    """Of one op, all samples."""
    first = record.args[0] if record.args else None
    if record.op.__name__ in PRODUCTS and isinstance(first, Tensor | np.ndarray):
        return 2.0 * record.result.size * first.shape[-1]
    return float(record.result.size)


def _arena(captured: Capture) -> int:
    """Bytes that a slice works in, as the compiled model lays them out."""
    return Program(fused(captured), lower).size
