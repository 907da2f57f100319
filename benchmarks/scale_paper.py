"""On paper: memory and time of a training step of 1,000 tables, 10 TB, on 64 hosts of 8 GPUs.

    python -m benchmarks.scale_paper

Nothing is run: `benchmarks.formulas` over real plans of `make_plan`. docs/scale.md says where the numbers of
the machine come from, and what the lines mean.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from statistics import NormalDist

from benchmarks.formulas import Cluster, Workload, memory, seconds, step
from benchmarks.harness import Line, Report
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import Shard, ShardingPlan, even_cut

DIM, TABLES, TOTAL = 128, 1000, 10e12
GB = 1e9

# H100 SXM: data sheet; NVLink 4 and one 400 Gb/s InfiniBand port for each GPU, one direction. The shares are
# assumptions: docs/scale.md.
H100 = Cluster(
    hosts=64,
    ranks_per_host=8,
    memory=80 * GB,
    memory_speed=3350 * GB,
    inside=450 * GB,
    network=50 * GB,
    flops=495e12,  # TF32
    row_share=0.6,
    wire_share=0.8,
    flop_share=0.5,
)

# 512 samples a GPU and 638 MFLOP a sample: model A of Mudigere et al., ISCA 2022, table 3
MODEL = Workload({}, {}, DIM, samples=512, item_bytes=2, dense_flops=638e6, dense_parameters=200_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer hosts and tables: does it run?")
    args = parser.parse_args()
    cluster = replace(H100, hosts=4) if args.quick else H100
    work = workload(TABLES // 16 if args.quick else TABLES, TOTAL / 16 if args.quick else TOTAL)
    with Report("scale_paper") as report:
        for name, plan in plans(work, cluster).items():
            for wire, number_bytes in {"float32": 4.0, "float16": 2.0, "int8": 1 + 2 / DIM}.items():
                line = case(plan, replace(work, wire_bytes=number_bytes), cluster)
                report.add({"plan": name, "wire": wire, **line})


def workload(count: int, total: float) -> Workload:
    """`count` float16 tables of log-normal sizes (sigma 1.5), bags of 1 to 100 ids, mean 21.5."""
    sizes = [math.exp(1.5 * NormalDist().inv_cdf((k + 0.5) / count)) for k in range(count)]
    scale = total / sum(sizes) / (DIM * MODEL.item_bytes)
    names = [f"t{k}" for k in range(count)]
    rows = {name: max(1, round(size * scale)) for name, size in zip(names, sizes, strict=True)}
    lengths = {f"t{k}": 100 ** ((k * 619 % count + 0.5) / count) for k in range(count)}  # 619: as if shuffled
    return replace(MODEL, rows=rows, lengths=lengths)


def plans(work: Workload, cluster: Cluster) -> dict[str, ShardingPlan]:
    """By one kind for all tables, by two, and `balanced`."""
    shapes = {name: (rows, work.dim) for name, rows in work.rows.items()}
    hosts = [rank // cluster.ranks_per_host for rank in range(cluster.ranks)]
    small = {name for name, rows in work.rows.items() if rows * work.item_bytes * DIM <= cluster.memory / 8}
    kinds = {
        kind: dict.fromkeys(shapes, kind) for kind in ("row_wise", "table_row_wise", "table_column_wise")
    }
    mixed = {name: "table_wise" if name in small else "table_row_wise" for name in shapes}
    kinds["table_wise, large table_row_wise"] = mixed
    made = {name: make_plan(shapes, cluster.ranks, chosen, hosts=hosts) for name, chosen in kinds.items()}
    return made | {"whole where they fit, balanced": balanced(work, cluster)}


def balanced(work: Workload, cluster: Cluster) -> ShardingPlan:
    """Tables whole, or in 2, 4, 8, … even spans of rows; heaviest first, to the least busy rank with room.

    What the planner will do better. Busy is who reads and sends much; a table is cut where its parts would
    not fit into half of a rank's memory.
    """
    busy, free = [0.0] * cluster.ranks, [0.8 * cluster.memory] * cluster.ranks
    shards = []
    for name in sorted(work.rows, key=lambda name: -_busy(name, work)):
        size = work.rows[name] * (work.item_bytes * DIM + work.state_bytes)
        parts = next(n for n in (1, 2, 4, 8, 16, 32) if size / n <= cluster.memory / 2)
        for rows in even_cut(work.rows[name], parts):
            rank = min((r for r in range(cluster.ranks) if free[r] >= size / parts), key=busy.__getitem__)
            busy[rank], free[rank] = busy[rank] + _busy(name, work) / parts, free[rank] - size / parts
            shards.append(Shard(name, rows, (0, DIM), rank))
    return ShardingPlan(tuple(shards), cluster.ranks)


def _busy(name: str, work: Workload) -> float:
    """Bytes that one sample costs the holder of a table: vectors out, gradients in, rows read and updated."""
    memory_to_network = H100.memory_speed * H100.row_share / (H100.network * H100.wire_share)
    return DIM * (2 * work.wire_bytes + work.lengths[name] * (4 + 3 * work.item_bytes) / memory_to_network)


def case(plan: ShardingPlan, work: Workload, cluster: Cluster) -> Line:
    """Memory of the fullest GPU, GB it sends to other hosts, ms of each stage, samples per second."""
    made = step(plan, work, cluster)
    spent = seconds(made, work, cluster)
    sent = sum(float(way.network[0].max()) for way in (made.ids, made.vectors, made.gradients, made.columns))
    line: Line = {"GB": round(memory(made, work, cluster) / GB, 1), "sent_GB": round(sent / GB, 2)}
    line |= {f"{stage}_ms": round(taken * 1e3, 2) for stage, taken in spent.items()}
    return line | {"samples_per_s": round(work.samples * cluster.ranks / spent["step"])}


if __name__ == "__main__":
    main()
