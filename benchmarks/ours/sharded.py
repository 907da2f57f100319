"""Our side of the benchmarks with several ranks: DLRM, trained as `tesserec train` does it, from memory.

    mpiexec -n RANKS python -m mpi4py -m benchmarks.ours.sharded

Rank 0 hands every request on to the others, and answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count, cycle, islice, repeat
from typing import Any

import numpy as np

from benchmarks.cases import KAGGLE, LR, TABLE_SCALE, dlrm_batches, dlrm_weights, fill
from benchmarks.harness import Line, requests, serve
from tesserec.autograd import one_thread_blas, set_num_threads
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import DatasetInfo, SparseFeature
from tesserec.embeddings import KeyedJaggedTensor, Pool
from tesserec.sharding.comm import Comm, world
from tesserec.train.config import TrainConfig
from tesserec.train.learner import Learner


class ShardedDLRM:
    """A method trains so many steps -> (seconds, the last loss, of the global batch)."""

    def __init__(self, comm: Comm):
        self.comm = comm

    def build(
        self,
        dim: int,
        optimizer: str,
        batch_size: int,
        sizes: Sequence[int] = KAGGLE,
        length: int = 1,
        layers: Sequence[int] = (512, 256),
        sharding: Line | None = None,
        train: Line | None = None,
    ) -> None:
        """Bottom and top of `layers`, tables of `sizes` with bags of `length`; SGD for what is dense.

        sharding, train: keys of these sections of a training config.
        """
        self.batch_size, self.sizes, self.length = batch_size, list(sizes), length
        config, info = configured(dim, optimizer, batch_size, sizes, length, layers, sharding, train)
        self.keys = [feature.name for feature in info.sparse]
        self.learner = Learner(config, info, 1_000_000, self.comm)
        if tuple(layers) == (512, 256) and self.sizes == KAGGLE:
            set_values(self.learner, dim)

    def load(self, batches: int, ids: str = "log") -> None:
        """Make the batches, which all turns go on with; this rank's part of each. ids: see `cases.draw`."""
        part = self.batch_size // self.comm.size
        first, bags = self.comm.rank * part, len(self.keys) * part
        lengths = np.full(bags, self.length)
        made = []
        for dense, drawn, labels in dlrm_batches(batches, self.batch_size, self.sizes, self.length, ids):
            mine = drawn[:, first * self.length : (first + part) * self.length].ravel()
            kjt = KeyedJaggedTensor.from_lengths(self.keys, mine, lengths)
            made.append(Batch(dense[first : first + part], kjt, labels[first : first + part, None]))
        self.shares: Iterator[Any] = self.learner.shares(cycle(made))
        self.steps = count()

    def threads(self, n: int) -> None:
        set_num_threads(n)

    def ours(self, steps: int) -> tuple[float, float]:
        """What `tesserec train` does: ids of the next batch are sent meanwhile."""
        self.comm.barrier()
        start, loss = time.perf_counter(), 0.0
        with one_thread_blas():
            for step, share in islice(zip(self.steps, self.shares, strict=False), steps):
                loss = self.learner.learn(share, step)
        self.comm.barrier()
        return time.perf_counter() - start, loss

    def bytes_per_step(self, steps: int) -> float:
        """What all ranks send to others in a step, dense gradients too, the mean of so many."""
        before = [comm.bytes_sent for comm in channels(self.learner)]
        self.ours(steps)
        sent = sum(comm.bytes_sent for comm in channels(self.learner)) - sum(before)
        every: list[int] = self.comm.gather_objects(sent)
        return sum(every) / steps


def configured(
    dim: int,
    optimizer: str,
    batch_size: int,
    sizes: Sequence[int] = KAGGLE,
    length: int = 1,
    layers: Sequence[int] = (512, 256),
    sharding: Line | None = None,
    train: Line | None = None,
) -> tuple[TrainConfig, DatasetInfo]:
    """The run that `ShardedDLRM.build` describes, and its data set."""
    model = {"name": "dlrm", "embedding_dim": dim, "bottom": list(layers), "top": list(layers)}
    settings = {
        "data": {"path": ".", "batch_size": batch_size, "valid": None},
        "model": {**model, "pooling": "sum"},
        "optimizer": {"dense": {"name": "sgd", "lr": LR}, "rows": {"name": optimizer, "lr": LR}},
        "sharding": sharding or {},
        "train": train or {},
    }
    features = [SparseFeature(f"C{i}", rows, length > 1) for i, rows in enumerate(sizes, 1)]
    dense = tuple(f"I{i}" for i in range(1, 14))
    info = DatasetInfo("memory", labels=("label",), dense=dense, sparse=tuple(features))
    return TrainConfig.model_validate(settings), info


def channels(learner: Learner) -> list[Comm]:
    """All that the learner sends through."""
    sharded = learner.sharded
    return [learner.comm, *([sharded.ids_comm, sharded.dense.comm] if sharded else [])]


def set_values(learner: Learner, dim: int) -> None:
    """The parameters that all sides start with."""
    dense = [t for _, t in learner.model.named_parameters() if not isinstance(t, Pool)]
    arrays = [array for pair in dlrm_weights(dim) for array in pair]
    for tensor, array in zip(dense, arrays, strict=True):
        tensor.data[...] = array
    for pool in {pool for _, pool in learner.model.named_parameters() if isinstance(pool, Pool)}:
        for table in pool.tables:
            fill(pool.data[table.rows], TABLE_SCALE, table.origin.rows[0])


def handed_on(comm: Comm) -> Iterator[Line]:
    """The requests that rank 0 is sent, on every rank. Collective."""
    asked = (dict(request) for request in requests()) if comm.rank == 0 else repeat({})
    for request in asked:
        found = comm.gather_objects(request)[0]
        if not found:
            return
        yield found
    comm.gather_objects({})


def main() -> None:
    comm = world()
    serve(ShardedDLRM(comm), handed_on(comm), silent=comm.rank > 0)


if __name__ == "__main__":
    main()
