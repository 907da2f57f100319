"""Real steps of a workload: batches drawn from its features, learned from on ranks that are threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings import ROW_OPTIMIZERS, EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from tesserec.embeddings.allocation import planning
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.comm import Comm
from tesserec.sharding.model import shard
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.workload import Feature, Table, Workload
from tesserec.sharding.slabs import Slabs
from tesserec.sharding.threads import run_ranks

Numbers = npt.NDArray[np.float64]

MAKE: Mapping[str, Any] = ROW_OPTIMIZERS


def drawn(feature: Feature, samples: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """(lengths (B,), ids (L,)) of random bags; rows of a class are alike, and lie as `ordered` says."""
    lengths = rng.choice(feature.lengths.values, samples, p=feature.lengths.chances).astype(np.int64)
    held = feature.frequencies
    classes = rng.choice(len(held.counts), int(lengths.sum()), p=held.shares)
    rows = held.bounds[classes] + rng.random(len(classes)) * held.counts[classes]
    ids = np.minimum(rows.astype(np.int64), int(held.rows) - 1)
    if not held.ordered:
        ids = np.random.default_rng(0).permutation(int(held.rows))[ids]
    return lengths, ids


def batches(workload: Workload, ranks: int, rng: np.random.Generator) -> list[KeyedJaggedTensor]:
    """A global batch, in the parts of the ranks."""
    features = [feature for table in workload.tables for feature in table.features]
    parts, samples = [], workload.batch_size // ranks
    for _ in range(ranks):
        found = [drawn(feature, samples, rng) for feature in features]
        lengths, ids = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        parts.append(KeyedJaggedTensor.from_lengths([feature.name for feature in features], ids, lengths))
    return parts


def config_of(table: Table) -> EmbeddingBagConfig:
    pooling: Any = "mean" if table.mean else "sum"
    names = tuple(feature.name for feature in table.features)
    return EmbeddingBagConfig(table.name, *table.shape, names, pooling=pooling, data_type=table.data_type)


def sent_bytes(workload: Workload, plan: ShardingPlan, steps: int = 4) -> dict[str, Numbers]:
    """{"ids", "vectors", "grads" (with replicas), "columns": (W,) bytes that left each rank in a step}."""
    rng = np.random.default_rng(7)
    given = [batches(workload, plan.num_ranks, rng) for _ in range(steps)]

    def work(comm: Comm) -> Any:
        with planning():
            collection = EmbeddingBagCollection([config_of(table) for table in workload.tables], seed=0)
        codecs = Codecs(workload.forward, workload.backward)
        model: Any = shard(collection, plan, comm, codecs=codecs, bitwise=workload.bitwise)
        pools = [(name, p) for name, p in model.named_parameters() if p in model.collections[""].pools]
        optimizer = MAKE[workload.optimizer.name](pools, lr=0.1)
        found = np.zeros((steps, 4))
        for k, parts in enumerate(given):
            counts = [model.ids_comm.bytes_sent]
            dist = model.input_dist(parts[comm.rank])
            found[k, 0] = model.ids_comm.bytes_sent - counts[0]
            counts = [comm.bytes_sent]
            looked = model.look_up(dist)
            counts.append(comm.bytes_sent)
            outlet = model.collections[""].outlet
            grad = np.ones_like(looked.outputs[outlet].values)
            grads = model.lookups.row_grads(dist, {outlet: Slabs([(0, grad)])})
            counts.append(comm.bytes_sent)
            for pool, rows in grads.items():
                pool.grad = rows
            model.step([optimizer])
            counts.append(comm.bytes_sent)
            found[k, 1:] = np.diff(counts)
        return found.mean(axis=0)

    every = np.array(run_ranks(plan.num_ranks, work))
    return dict(zip(("ids", "vectors", "grads", "columns"), every.T, strict=True))
