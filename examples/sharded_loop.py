"""A training loop of your own on several ranks: mpiexec -n 2 python -m mpi4py examples/sharded_loop.py

Also in one process, where the ranks are one. Ranks have unequal numbers of batches here; they stop together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import tesserec
from tesserec.autograd import Adam
from tesserec.autograd.losses import bce_with_logits
from tesserec.embeddings import KeyedJaggedTensor, RowWiseAdagrad, planning
from tesserec.embeddings.pool import Pool
from tesserec.models import DLRM, Features
from tesserec.sharding import Comm, lockstep, make_plan, shard, table_shapes, watch, world

SIZES = {"user": 100_000, "item": 20_000, "country": 200}
Batch = tuple[np.ndarray, KeyedJaggedTensor, np.ndarray]


def batches(rank: int, size: int) -> Iterator[Batch]:
    """This rank's half (third, …) of global batches of 1,024 samples."""
    rng = np.random.default_rng(rank)
    for _ in range(20 + rank):
        ids = {name: rng.integers(0, rows, 1024 // size) for name, rows in SIZES.items()}
        labels = (ids["country"] % 2).astype(np.float32)
        yield rng.random((1024 // size, 4), np.float32), KeyedJaggedTensor.from_dense(ids), labels


def main() -> None:
    comm = world()
    with watch(comm, timeout=60):  # a rank that dies or hangs ends all of them, with its reason
        train(comm)


def train(comm: Comm) -> None:
    with planning():  # tables take no memory yet: no rank ever holds all of them
        model = DLRM(Features(num_dense=4, sparse=SIZES), seed=0)
    plan = make_plan(table_shapes(model), comm.size, {"inputs.sparse.user": "row_wise"})
    sharded = shard(tesserec.compile(model), plan, comm)

    parameters = list(sharded.named_parameters())
    dense = Adam(((n, p) for n, p in parameters if not isinstance(p, Pool)), lr=0.01)
    rows = RowWiseAdagrad(((n, p) for n, p in parameters if isinstance(p, Pool)), lr=0.05)
    for step, (x, ids, labels) in enumerate(lockstep(comm, batches(comm.rank, comm.size))):
        loss = bce_with_logits(sharded(x, ids), labels, reduction="sum") / 1024  # of the global batch
        loss.backward()
        sharded.step([dense, rows])
        total = comm.all_reduce(np.array([loss.item()]))[0]
        if comm.rank == 0 and step % 5 == 0:
            print(f"step {step}: loss {total:.4f}")


if __name__ == "__main__":
    main()
