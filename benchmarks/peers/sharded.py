"""The peer's side of `sharded_step`: TorchRec's DistributedModelParallel on gloo, tables whole on ranks.

    python -m benchmarks.peers.sharded 0 RANKS

Rank 0 starts the others, hands every request on to them, and answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
import torch.distributed as dist
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.cases import KAGGLE, LR, TABLE_SCALE, dlrm_batches, fill, owners
from benchmarks.harness import requests, serve
from benchmarks.peers.dlrm import ROW_OPTIMIZERS, set_weights

KEYS = [f"C{i}" for i in range(1, 27)]
CPU = torch.device("cpu")


class ShardedDLRM:
    """A method trains so many steps -> (seconds, the last loss, of the global batch)."""

    def __init__(self, rank: int, ranks: int):
        self.rank, self.ranks = rank, ranks

    def build(self, dim: int, optimizer: str) -> None:
        """Bottom 512-256-D, top 512-256-1, the Kaggle tables; updates of rows in the backward pass."""
        configs = [
            EmbeddingBagConfig(name=key, embedding_dim=dim, num_embeddings=rows, feature_names=[key])
            for key, rows in zip(KEYS, KAGGLE, strict=True)
        ]
        tables = EmbeddingBagCollection(configs, device=torch.device("meta"))
        kind, options = ROW_OPTIMIZERS[optimizer]
        apply_optimizer_in_backward(kind, tables.parameters(), options)
        model = DLRMTrain(DLRM(tables, 13, [512, 256, dim], [512, 256, 1]))
        set_weights(model, dim)
        sharder = EmbeddingBagCollectionSharder()
        places = {key: table_wise(rank=rank) for key, rank in zip(KEYS, owners(self.ranks), strict=True)}
        placed = construct_module_sharding_plan(tables, places, sharder, device_type="cpu")
        self.model = DistributedModelParallel(
            model,
            device=CPU,
            plan=ShardingPlan({"model.sparse_arch.embedding_bag_collection": placed}),
            sharders=[sharder],
            data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=True),
        )
        for name, rows in self.model.named_parameters():
            if "embedding_bags" in name:
                fill(rows.detach().view(-1, dim).numpy(), TABLE_SCALE)
        dense = [p for n, p in self.model.named_parameters() if "embedding_bags" not in n]
        self.dense_optimizer = torch.optim.SGD(dense, lr=LR)
        self.pipeline: Any = None

    def load(self, batches: int, batch_size: int) -> None:
        """Make the batches, which all methods go on with in turn; this rank's part of each."""
        part = batch_size // self.ranks
        mine = slice(self.rank * part, (self.rank + 1) * part)
        lengths, offsets = torch.ones(26 * part, dtype=torch.int32), torch.arange(26 * part + 1)

        def batch(dense: Any, ids: Any, labels: Any) -> Batch:
            values = torch.from_numpy(ids[:, mine].reshape(-1))
            kjt = KeyedJaggedTensor(KEYS, values, lengths=lengths, offsets=offsets.int())
            return Batch(torch.from_numpy(dense[mine]), kjt, torch.from_numpy(labels[mine]))

        made = [batch(*arrays) for arrays in dlrm_batches(batches, batch_size)]
        self.batches: Iterator[Batch] = cycle(made)

    def threads(self, n: int) -> None:
        torch.set_num_threads(n)

    def torchrec(self, steps: int) -> tuple[float, float]:
        """The plain loop."""

        def step() -> Any:
            self.dense_optimizer.zero_grad()
            loss, _ = self.model(next(self.batches))
            loss.backward()
            self.dense_optimizer.step()
            return loss

        return self._timed(step, steps)

    def pipelined(self, steps: int) -> tuple[float, float]:
        """`TrainPipelineSparseDist`: the ids of the next batch are sent during a step."""
        if self.pipeline is None:
            self.pipeline = TrainPipelineSparseDist(self.model, self.dense_optimizer, CPU)
        self.pipeline.attach()
        timed = self._timed(lambda: self.pipeline.progress(self.batches)[0], steps)
        self.pipeline.detach()  # so that the plain loop finds its model again
        return timed

    def _timed(self, step: Any, steps: int) -> tuple[float, float]:
        dist.barrier()
        start, loss = time.perf_counter(), torch.zeros(1)
        for _ in range(steps):
            loss = step()
        dist.barrier()
        seconds = time.perf_counter() - start
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        return seconds, mean.item() / self.ranks


def start(rank: int, ranks: int, meeting: str) -> subprocess.Popen[str]:
    """Another rank, which takes requests from its standard input."""
    command = [sys.executable, "-m", "benchmarks.peers.sharded", str(rank), str(ranks), meeting]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def main(rank: int, ranks: int, meeting: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        meeting = meeting or f"{folder}/meet"
        others = [start(other, ranks, meeting) for other in range(1, ranks)] if rank == 0 else []
        os.environ["LOCAL_WORLD_SIZE"] = str(ranks)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)

        def handed_on() -> Iterator[dict[str, Any]]:
            for request in requests():
                for other in others:
                    print(json.dumps(request), file=other.stdin, flush=True)
                yield request

        serve(ShardedDLRM(rank, ranks), handed_on())
        for other in others:
            other.communicate()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
