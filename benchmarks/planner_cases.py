"""The cases of `planner_torchrec`: tables, machines and loads, and plans in both planners' words.

Machines are those that TorchRec's planner takes for granted (planner/constants.py): GPUs of 32 GiB at 897
GiB/s, 8 on a host, 600 GiB/s between them and 12.5 GiB/s to other hosts, no latencies, no dense model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.harness import Line
from tesserec.sharding.plan import Shard, ShardingPlan
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.workload import Dense, Feature, RowOptimizer, Table, Workload

GIB = float(1 << 30)
PER_HOST = 8
SAMPLES = 512  # of a rank
RESERVE = 0.15  # of a device's memory
DIMS = (16, 32, 64, 128, 256)
SIGMA = 2.0  # of the log-normal number of rows: the largest of 10 tables has a third of all bytes

MACHINE: Line = {
    "hbm": 32,
    "ddr": 0,
    "hbm_speed": 897,
    "ddr_speed": 51,
    "hbm_to_ddr": 32,
    "inside": 600,
    "network": 12.5,
}

SIZES = [(10, 8), (10, 16), (10, 64), (26, 8), (26, 32), (60, 16), (60, 128)]
SIZES += [(100, 16), (100, 64), (200, 32), (400, 96), (1000, 128)]
LOADS = {"loose": 0.4, "tight": 0.85}


@dataclass(frozen=True)
class Case:
    """num_tables on `ranks` devices; rows and their state fill a share `load` of what may be used."""

    num_tables: int
    ranks: int
    load: float

    @property
    def tables(self) -> list[Line]:
        """name, rows, dim, length: log-normal rows, mixed widths, bags of 1 to 100 ids, log-uniform."""
        rng = np.random.default_rng([self.num_tables, self.ranks])
        dims = rng.choice(DIMS, self.num_tables)
        shares = rng.lognormal(0, SIGMA, self.num_tables)
        room = self.load * self.ranks * (1 - RESERVE) * MACHINE["hbm"] * GIB
        rows = np.maximum(1000, shares * room / (shares * (4 * dims + 4)).sum()).astype(np.int64)
        lengths = np.round(100 ** rng.random(self.num_tables))
        columns = enumerate(zip(rows.tolist(), dims.tolist(), lengths.tolist(), strict=True))
        return [{"name": f"t{k}", "rows": r, "dim": d, "length": n} for k, (r, d, n) in columns]

    @property
    def workload(self) -> Workload:
        """As our planner takes it: uniform ids, row-wise Adagrad, float32 on the wire."""
        tables = (Table(t["name"], t["rows"], t["dim"], features=(_feature(t),)) for t in self.tables)
        return Workload(
            tuple(tables),
            SAMPLES * self.ranks,
            optimizer=RowOptimizer.named("rowwise_adagrad"),
            dense=Dense(),
            reads_data=False,
        )

    @property
    def topology(self) -> Topology:
        """As our planner takes it."""
        hbm = Tier("hbm", MACHINE["hbm"] * GIB, MACHINE["hbm_speed"] * GIB)
        gpu = Device("gpu", (hbm,), flops=1e15, row_share=1.0, launch=0.0, reserve_bytes=RESERVE * hbm.bytes)
        host = Host(PER_HOST, "gpu", Link(0.0, MACHINE["inside"] * GIB), count=self.ranks // PER_HOST)
        return Topology("torchrec", {"gpu": gpu}, (host,), Link(0.0, MACHINE["network"] * GIB))


def cases() -> Iterator[tuple[str, Case]]:
    """(name, case), small ones first."""
    for tables, ranks in SIZES:
        for word, load in LOADS.items():
            yield f"{tables}x{ranks} {word}", Case(tables, ranks, load)


def ours(plan: Line, ranks: int) -> ShardingPlan:
    """A plan of TorchRec's as one of ours."""
    shards = (
        Shard(name, (top, bottom), (left, right), rank)
        for name, table in plan.items()
        for top, bottom, left, right, rank in table["shards"]
    )
    return ShardingPlan(tuple(shards), ranks)


def theirs(plan: ShardingPlan) -> Line:
    """A plan of ours as TorchRec says it. ValueError where it has no word for how a table is sharded."""
    return {
        name: {
            "kind": kind_of(name, plan),
            "kernel": "dense" if _replicated(held, plan.num_ranks) else "fused",
            "shards": [[*rows, *cols, rank] for (rows, cols), ranks in held.items() for rank in ranks],
        }
        for name, held in plan.tables.items()
    }


def kind_of(name: str, plan: ShardingPlan) -> str:
    """TorchRec's name for how a table is sharded."""
    held = plan.tables[name]
    if len(held) == 1 and _replicated(held, plan.num_ranks):
        return "data_parallel"
    holders = [rank for ranks in held.values() for rank in ranks]
    rows, cols = {rows for rows, _ in held}, {cols for _, cols in held}
    if len(holders) > len(held) or len(held) != len(rows) * len(cols) or not _even(rows):
        raise ValueError(f"table {name!r}: TorchRec knows no such sharding: {plan.of(name)}")
    if len(rows) == 1:
        return "table_wise" if len(cols) == 1 else "column_wise"
    if len(cols) == 1 and len(set(holders)) == plan.num_ranks:
        return "row_wise"
    for column in cols:
        _check_one_host(name, [held[row, column][0] for row in rows])
    return "table_row_wise" if len(cols) == 1 else "grid_shard"


def _feature(table: Line) -> Feature:
    return Feature(table["name"], Lengths.fixed(table["length"]), Frequencies.uniform(table["rows"]))


def _replicated(held: dict[tuple[tuple[int, int], tuple[int, int]], list[int]], num_ranks: int) -> bool:
    return all(len(ranks) == num_ranks for ranks in held.values())


def _even(spans: set[tuple[int, int]]) -> bool:
    sizes = [hi - lo for lo, hi in spans]
    return max(sizes) - min(sizes) <= 1


def _check_one_host(name: str, ranks: Sequence[int]) -> None:
    hosts = {rank // PER_HOST for rank in ranks}
    if len(hosts) > 1 or len(set(ranks)) < PER_HOST:
        raise ValueError(f"table {name!r}: TorchRec has no rows over ranks {sorted(ranks)}")
