"""On paper: memory and time of a training step of 1,000 tables, 10 TB, on 64 hosts of 8 GPUs.

    python -m benchmarks.scale_paper

Nothing is run: the planner's cost model over plans of one kind for all tables, of two kinds, and the
planner's own. The tables are those of examples/ten_terabytes.yaml, the machine is the preset h100x64:
`tesserec plan examples/ten_terabytes.yaml --topology h100x64` makes and explains the same plan.
docs/scale.md says where the numbers of the machine come from, and what the lines mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from benchmarks.harness import ROOT, Line, Report
from tesserec.dataio.config import read_config
from tesserec.sharding.codecs import Name
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.search import Budget, search
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload, WorkloadFile
from tesserec.train.plan_case import topology_file

GB = 1e9
WHOLE = 10 * GB  # tables below may stay whole
WIRES: Mapping[str, Name] = {"float32": "fp32", "float16": "fp16", "int8": "int8"}
BUDGET = Budget(200_000_000)  # of work: about a minute on one core


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer hosts and tables: does it run?")
    args = parser.parse_args()
    work = read_config(ROOT / "examples" / "ten_terabytes.yaml", WorkloadFile).workload()
    topology = read_config(topology_file("h100x64"), Topology)
    if args.quick:
        topology = topology.with_ranks(32)
        work = replace(work, tables=work.tables[::16], batch_size=work.batch_size // 16)
    with Report("scale_paper") as report:
        for name, plan in plans(work, topology):
            for wire, codec in WIRES.items():
                model = CostModel(replace(work, forward=codec, backward=codec), topology)
                report.add({"plan": name, "wire": wire, **case(plan, model)})


def plans(work: Workload, topology: Topology) -> Iterator[tuple[str, ShardingPlan]]:
    """By one kind for all tables, by two, and the planner's, for float16 on the wire."""
    shapes, hosts = work.shapes(), topology.hosts_of_ranks
    for kind in ("row_wise", "table_row_wise", "table_column_wise"):
        yield kind, make_plan(shapes, topology.num_ranks, default=kind, hosts=hosts)
    small = {t.name for t in work.tables if t.rows * t.dim * t.item_bytes <= WHOLE}
    mixed = {name: "table_wise" if name in small else "table_row_wise" for name in shapes}
    yield "table_wise, large table_row_wise", make_plan(shapes, topology.num_ranks, mixed, hosts=hosts)
    yield "planned", search(work, topology, budget=BUDGET).plan


def case(plan: ShardingPlan, model: CostModel) -> Line:
    """Memory of the fullest GPU, GB that the busiest sends, ms of the step and its parts, samples per second.

    The parts are those of the critical path, and sum to the step.
    """
    found = model.estimate(plan)
    sent = np.sum(list(found.sent.values()), axis=0)
    line: Line = {
        "GB": round(float(found.rank_bytes.max()) / GB, 1),
        "sent_GB": round(float(sent.max()) / GB, 2),
    }
    line |= {f"{part.name}_ms": round(part.seconds * 1e3, 2) for part in found.path}
    line |= {"step_ms": round(found.step_seconds * 1e3, 1)}
    return line | {"samples_per_s": round(found.samples_per_second)}


if __name__ == "__main__":
    main()
