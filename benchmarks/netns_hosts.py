"""Two hosts of two ranks, a slow link between them: flat plans, plans by host, replica groups. Needs root.

    python -m benchmarks.netns_hosts

Hosts are network namespaces (`benchmarks.netns`), the link is slowed down by a token bucket (tc tbf) at each
host's card. DLRM with 8 tables of 100,000 rows, D 32, bags of 10 Zipf ids, 1,024 samples, small layers:
lookups are nearly all that is sent. Plans: every table split by rows over all ranks (`row_wise`), by rows
over the ranks of one host (`table_row_wise`), by columns there (`table_column_wise`), or whole on a rank
(`table_wise`); `groups` are two replicas of all tables, one a host, averaged every 64 steps. int8: what
crosses is quantized.

`link_MB`: a step's traffic on the busier card, one direction, as the card counts it. `predicted`: by the
planner's cost model, without headers; `predicted_ms`: that at the link's speed, after the time of a step on a
link that is not slowed down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.cases import ZIPF, zipf_chances
from benchmarks.harness import Line, Report, Side, arguments, milliseconds
from benchmarks.netns import Hosts, hosts
from tesserec.sharding.placement import make_plan
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.workload import Dense, Feature, RowOptimizer, Table, Workload

HOSTS, RANKS_PER_HOST = 2, 2
SYNC_EVERY = 64
ROWS, DIM, LENGTH, BATCH, LAYERS = [100_000] * 8, 32, 10, 1024, (64,)
PLANS: dict[str, Line] = {
    "row_wise": {"default": "row_wise"},
    "table_row_wise": {"default": "table_row_wise"},
    "table_column_wise": {"default": "table_column_wise"},
    "table_wise": {"default": "table_wise"},
    "groups": {"default": "row_wise", "replica_groups": 2, "sync_every": SYNC_EVERY},
    "table_row_wise, int8": {"default": "table_row_wise", "forward": "int8", "backward": "int8"},
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TESSEREC_NUM_THREADS": "1"}


def main() -> None:
    args = arguments(__doc__, mbit=[1000, 100], plans=list(PLANS))
    steps, turns = SYNC_EVERY, 1 if args.quick else 2
    with Report("netns_hosts") as report, hosts(HOSTS) as made:
        for name in args.plans:
            for line in measure(made, PLANS[name], args.mbit, steps, turns):
                report.add({"plan": name, **line})


def measure(made: Hosts, sharding: Line, speeds: list[int], steps: int, turns: int) -> Iterator[Line]:
    """Milliseconds of a step and megabytes on the link, at each speed; 0 is as fast as it goes."""
    predicted = link_bytes(sharding) / 1e6
    with side(made, sharding) as ours:
        free = run(made, ours, steps, turns)
        yield {"mbit": 0, **free, "predicted_MB": round(predicted, 3)}
        for mbit in speeds:
            made.slow_down(mbit)
            slow = run(made, ours, steps, turns)
            after = round(free["ms"] + predicted * 8e3 / mbit, 1)
            yield {"mbit": mbit, **slow, "predicted_MB": round(predicted, 3), "predicted_ms": after}
        made.slow_down(0)


def run(made: Hosts, ours: Side, steps: int, turns: int) -> Line:
    """The median turn's milliseconds per step, and what the busier card sent."""
    before = made.bytes_sent()
    seconds = [float(ours("ours", steps=steps)[0]) for _ in range(turns)]
    sent = max(b - a for a, b in zip(before, made.bytes_sent(), strict=True))
    return {"ms": milliseconds(seconds, steps), "link_MB": round(sent / (steps * turns) / 1e6, 3)}


@contextmanager
def side(made: Hosts, sharding: Line) -> Iterator[Side]:
    """Ours on all hosts, ready, first step taken."""
    python = [*made.mpiexec(RANKS_PER_HOST), sys.executable, "-m", "mpi4py"]
    with Side(python, "benchmarks.ours.sharded", env=ONE_THREAD) as ours:
        tables = {"sizes": ROWS, "length": LENGTH, "layers": LAYERS}
        ours("build", dim=DIM, optimizer="sgd", batch_size=BATCH, sharding=sharding, **tables)
        ours("load", batches=SYNC_EVERY, ids="zipf")
        ours("ours", steps=3)
        yield ours


def link_bytes(sharding: Line) -> float:
    """What the busier host sends to the other in a step, by the planner's cost model."""
    here = slice(RANKS_PER_HOST)
    if "replica_groups" in sharding:  # dense gradients, a part for each rank, and tables now and then
        ranks = HOSTS * RANKS_PER_HOST
        dense = 2 * 4 * dense_parameters() * RANKS_PER_HOST * (1 - RANKS_PER_HOST / ranks)
        return dense + averaging_bytes() / SYNC_EVERY
    work = workload(sharding.get("forward", "fp32"), sharding.get("backward", "fp32"))
    topology = machine()
    plan = make_plan(
        work.shapes(), topology.num_ranks, default=sharding["default"], hosts=topology.hosts_of_ranks
    )
    traffic = CostModel(work, topology).estimate(plan).traffic
    return max(float(traffic[here, RANKS_PER_HOST:].sum()), float(traffic[RANKS_PER_HOST:, here].sum()))


def workload(forward: Any, backward: Any) -> Workload:
    """What the planner is told; the ids' frequent rows lie anywhere."""
    tables = []
    for k, rows in enumerate(ROWS):
        feature = Feature(f"t{k}", Lengths.fixed(LENGTH), Frequencies.zipf(rows, ZIPF, ordered=False))
        tables.append(Table(feature.name, rows, DIM, features=(feature,)))
    dense = Dense(dense_parameters(), columns=13)
    sgd = RowOptimizer.named("sgd")
    return Workload(tuple(tables), BATCH, optimizer=sgd, dense=dense, forward=forward, backward=backward)


def machine() -> Topology:
    """The namespaces; only bytes are asked for, so that speeds do not matter."""
    cpu, link = Device("cpu", (Tier("dram", 16e9, 10e9),), flops=1e11), Link(0.0, 1e9)
    return Topology("namespaces", {"cpu": cpu}, (Host(RANKS_PER_HOST, "cpu", link, HOSTS),), link)


def averaging_bytes() -> float:
    """Of one averaging: 8 bytes for each row that the host has touched, and the values of all that were."""
    chances = zipf_chances(ROWS[0])
    ids = SYNC_EVERY * BATCH * LENGTH
    of_host, union = (float(-np.expm1(n * np.log1p(-chances)).sum()) for n in (ids / HOSTS, ids))
    return len(ROWS) * (8 * of_host + 4 * DIM * union)


def dense_parameters() -> int:
    fields = len(ROWS) + 1
    sizes = [13, *LAYERS, DIM], [DIM + fields * (fields - 1) // 2, *LAYERS, 1]
    return sum(i * o + o for layers in sizes for i, o in pairwise(layers))


if __name__ == "__main__":
    main()
