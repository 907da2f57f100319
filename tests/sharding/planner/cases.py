"""Small things to plan for: workloads and topologies that search is tried on."""

from __future__ import annotations

import numpy as np

from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.workload import Dense, Feature, RowOptimizer, Table, Workload


def topology(ranks: int = 2, hosts: int = 1, gigabytes: float = 8.0, *, disk: bool = False) -> Topology:
    """Hosts of gpus, or one; each rank with so much memory, and perhaps a slow tier."""
    tiers = (Tier("hbm", gigabytes * 1e9, 1e12), Tier("ssd", 1e12, 2e9, line=4096.0))
    gpu = Device("gpu", tiers[: 1 + disk], 1e14)
    inside, network = Link(1e-5, 1e11), Link(3e-5, 1e10)
    host = Host(ranks // hosts, "gpu", inside, count=hosts)
    return Topology("test", {"gpu": gpu}, (host,), network if hosts > 1 else None)


def workload(
    tables: int = 5,
    *,
    seed: int = 0,
    rows: float = 1e5,
    batch: int = 8192,
    optimizer: str = "rowwise_adagrad",
) -> Workload:
    """Tables of all sizes, some read by long bags, some of skewed ids."""
    random = np.random.default_rng(seed)
    made = []
    for k in range(tables):
        size = int(rows * random.lognormal(0, 1.5)) + 8
        ids = Frequencies.zipf(size, 1.1) if k % 2 else Frequencies.uniform(size)
        feature = Feature(f"t{k}", Lengths.fixed(20 if k % 3 == 0 else 1), ids)
        made.append(Table(f"in.t{k}", size, 32 * (1 + k % 2), features=(feature,)))
    dense = Dense(parameters=10_000, flops=1e5)
    return Workload(
        tuple(made), batch, optimizer=RowOptimizer.named(optimizer), dense=dense, reads_data=False
    )
