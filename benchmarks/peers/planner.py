"""The peer's side of `planner_torchrec`: TorchRec's planner, and its estimates for any plan.

    python -m benchmarks.peers.planner

A plan is {table: {"kind": …, "kernel": …, "shards": [[first row, past the last, first column, past the
last, rank], …]}}; kinds and kernels have TorchRec's names. Nothing is allocated: tables are on device
"meta".
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.planners import EmbeddingShardingPlanner
from torchrec.distributed.planner.proposers import (
    DynamicProgrammingProposer,
    UniformProposer,
)
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    PlannerError,
    Shard,
    ShardingOption,
    Topology,
)
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from benchmarks.harness import serve

GIB = 1 << 30
Line = dict[str, Any]

# default: what the planner does by itself, a grid search, two greedy proposers and the uniform one
PROPOSERS: dict[str, Any] = {
    "default": lambda: None,
    "dynamic": DynamicProgrammingProposer,
    "uniform": UniformProposer,
}


class Planner:
    """One case at a time: `case`, then any number of `plan` and `score`."""

    def case(
        self, tables: list[Line], machine: Line, ranks: int, per_host: int, batch: int, reserve: float
    ) -> None:
        """tables: name, rows, dim, length; machine: GiB, GiB/s; batch: of a rank; reserve: a share."""
        configs = [
            EmbeddingBagConfig(
                name=t["name"], num_embeddings=t["rows"], embedding_dim=t["dim"], feature_names=[t["name"]]
            )
            for t in tables
        ]
        self.tables = EmbeddingBagCollection(configs, device=torch.device("meta"))
        apply_optimizer_in_backward(RowWiseAdagrad, self.tables.parameters(), {"lr": 0.01})
        self.batch, self.reserve = batch, reserve
        self.lengths = {t["name"]: float(t["length"]) for t in tables}
        self.constraints = {
            name: ParameterConstraints(
                pooling_factors=[length],
                compute_kernels=None if machine["ddr"] else ["dense", "fused"],
            )
            for name, length in self.lengths.items()
        }
        self.topology = Topology(
            world_size=ranks,
            local_world_size=per_host,
            compute_device="cuda",
            hbm_cap=int(machine["hbm"] * GIB),
            ddr_cap=int(machine["ddr"] * GIB),
            hbm_mem_bw=machine["hbm_speed"] * GIB / 1e3,
            ddr_mem_bw=machine["ddr_speed"] * GIB / 1e3,
            hbm_to_ddr_mem_bw=machine["hbm_to_ddr"] * GIB / 1e3,
            intra_host_bw=machine["inside"] * GIB / 1e3,
            inter_host_bw=machine["network"] * GIB / 1e3,
        )
        self.sharder: Any = EmbeddingBagCollectionSharder()

    def plan(self, proposer: str, limit: int) -> Line:
        """The plan, or its error; seconds of planning. limit: seconds after which it proposes no more."""
        planner = EmbeddingShardingPlanner(
            topology=self.topology,
            batch_size=self.batch,
            constraints=self.constraints,
            proposer=PROPOSERS[proposer](),
            storage_reservation=FixedPercentageStorageReservation(self.reserve),
            timeout_seconds=limit,
            stats=[],
        )
        start = time.perf_counter()
        try:
            planner.plan(self.tables, [self.sharder])
        except PlannerError as error:
            return {"seconds": time.perf_counter() - start, "error": error.error_type.value}
        seconds = time.perf_counter() - start
        found = planner._best_plan or []
        return {"seconds": seconds, "plan": {option.name: described(option) for option in found}}

    def score(self, plan: Line) -> Line:
        """By TorchRec's estimators: seconds of the busiest device, bytes of the fullest, what it may hold."""
        options = self._estimated([self._option(name, **table) for name, table in plan.items()])
        busy, held = ([0.0] * self.topology.world_size for _ in range(2))
        for option in options:
            for shard in option.shards:
                busy[shard.rank] += shard.perf.total / 1e3
                held[shard.rank] += shard.storage.hbm
        room = (1 - self.reserve) * self.topology.devices[0].storage.hbm
        return {"seconds": max(busy), "mean": sum(busy) / len(busy), "bytes": max(held), "room": room}

    def costs(self, shards: list[tuple[str, str, int]]) -> list[tuple[float, int]]:
        """(seconds, bytes) of each shard, of which it gets: the table, the kind of sharding, its columns.

        Its rows are all of the table's; where they are not replicated, they count in bytes only.
        """
        made = []
        for name, kind, cols in shards:
            rows = self.tables.embedding_bags[name].weight.shape[0]
            made.append(self._option(name, kind, kernel(kind), [[0, rows, 0, cols, 0]]))
        found = [option.shards[0] for option in self._estimated(made)]
        return [(shard.perf.total / 1e3, shard.storage.hbm) for shard in found]

    def _estimated(self, options: list[ShardingOption]) -> list[ShardingOption]:
        data = build_sharder_data_map({sharder_name(EmbeddingBagCollection): self.sharder})
        EmbeddingPerfEstimator(self.topology, self.constraints).estimate(options, data)
        EmbeddingStorageEstimator(self.topology, self.constraints).estimate(options, data)
        return options

    def _option(self, name: str, kind: str, kernel: str, shards: list[list[int]]) -> ShardingOption:
        return ShardingOption(
            name=name,
            tensor=self.tables.embedding_bags[name].weight,
            module=("", self.tables),
            input_lengths=[self.lengths[name]],
            batch_size=self.batch,
            sharding_type=kind,
            partition_by=get_partition_by_type(kind),
            compute_kernel=kernel,
            shards=[
                Shard(size=[bottom - top, right - left], offset=[top, left], rank=rank)
                for top, bottom, left, right, rank in shards
            ],
        )


def kernel(kind: str) -> str:
    """The kernel of a kind of sharding, in a device's own memory."""
    return "dense" if kind == "data_parallel" else "fused"


def described(option: ShardingOption) -> Line:
    """A table of a plan, without its empty shards."""
    shards = []
    for shard in option.shards:
        (rows, cols), (top, left) = shard.size, shard.offset
        if rows and cols:
            shards.append([top, top + rows, left, left + cols, shard.rank])
    return {"kind": option.sharding_type, "kernel": option.compute_kernel, "shards": shards}


if __name__ == "__main__":
    logging.disable()
    serve(Planner())
