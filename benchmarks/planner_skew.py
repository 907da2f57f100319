"""What replicating hot rows is worth on skewed ids: what the planner predicts, and what is measured.

    python -m benchmarks.planner_skew [--machine machine.yaml]

DLRM with 8 tables of 250,000 rows, D 128, one id each, 16,384 samples; id k - 1 comes as often as k^-s, as
in vocabularies that are sorted by count. No rank may hold more of a table than an even share of it and a
tenth of it, so all tables are cut. For each exponent s and number of ranks the planner makes two plans:
`classical`, of kinds that other engines have too (whole tables, rows, columns, grids, replicas), and
`hot_cold`, with hot rows on all ranks and cold ones on one each. Both are trained, in turns. `predicted`
and `measured`: time of a step, classical / hot_cold; above 1, hot and cold rows are worth being told apart.
The machine is that of `tesserec plan calibrate`; 4 ranks share its cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.dlrm_step import turn
from benchmarks.harness import Line, Report, Runs, Side, arguments, milliseconds, ratio, take_turns
from benchmarks.ours.sharded import configured
from benchmarks.sharded_step import mpi
from tesserec.cli.plan_options import machine_file
from tesserec.dataio.config import read_config
from tesserec.dataio.dataset import Dataset, Split
from tesserec.sharding.placement import Kind
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.constraints import Constraints, ParameterConstraints
from tesserec.sharding.planner.describe import placement_of
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.search import Budget, search
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload
from tesserec.train.plan_case import is_this_machine
from tesserec.train.planning import Reads, workload_of

EXPONENTS = (1.05, 1.1, 1.2, 1.3)
SIZES, DIM, LENGTH, BATCH, LAYERS = [250_000] * 8, 128, 1, 16384, (64,)
EXTRA = 0.1  # of a table, beside its even share
BATCHES, STEPS = 8, 4  # of a turn
BUDGET = Budget.of(5)  # seconds of search
CLASSICAL: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "hot_cold")
KINDS_OF: Mapping[str, tuple[Kind, ...]] = {"classical": CLASSICAL, "hot_cold": ("hot_cold",)}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TESSEREC_NUM_THREADS"), "1")


def main() -> None:
    args = arguments(__doc__, ranks=[2, 4], exponents=list(EXPONENTS), machine=[""])
    machine = read_config(args.machine[0] or machine_file(), Topology)
    with Report("planner_skew") as report:
        for ranks in args.ranks:
            for exponent in args.exponents:
                line = compare(exponent, machine.with_ranks(ranks), args.turns)
                report.add({"ranks": ranks, "zipf": exponent, **line})


def compare(exponent: float, topology: Topology, turns: int) -> Line:
    """Both plans, predicted and measured."""
    work = workload(exponent, is_this_machine(topology))
    found = {
        name: search(work, topology, cap(work, topology, kinds), BUDGET) for name, kinds in KINDS_OF.items()
    }
    line: Line = {f"{name}_plan": in_words(each.plan, work, topology) for name, each in found.items()}
    with training({name: each.plan for name, each in found.items()}, exponent) as runs:
        seconds = take_turns(runs, turns)
    predicted = {name: each.estimate.step_seconds for name, each in found.items()}
    for name in KINDS_OF:
        line[f"{name}_predicted_ms"] = round(predicted[name] * 1e3, 2)
        line[f"{name}_ms"] = milliseconds(seconds[name], STEPS)
    line["predicted"] = round(predicted["classical"] / predicted["hot_cold"], 3)
    return line | {"measured": ratio(seconds["classical"], seconds["hot_cold"])}


def workload(exponent: float, measure: bool) -> Workload:
    """What the planner is told. measure: the dense model, on this machine."""
    config, info = configured(DIM, "rowwise_adagrad", BATCH, SIZES, LENGTH, LAYERS)
    reads = {
        feature.name: Reads(Lengths.fixed(LENGTH), Frequencies.zipf(feature.num_embeddings, exponent))
        for feature in info.sparse
    }
    with tempfile.TemporaryDirectory() as folder:  # of the files only their shape is read
        pq.write_table(pa.table({"label": np.zeros(BATCH, np.float32)}), Path(folder, "train.parquet"))
        dataset = Dataset(Path(folder), replace(info, splits={"train": Split(("train.parquet",), BATCH)}))
        return replace(workload_of(config, dataset, reads, measure=measure), reads_data=False)


def cap(work: Workload, topology: Topology, kinds: tuple[Kind, ...]) -> Constraints:
    """Only these kinds, and no more of a table on a rank than its even share and `EXTRA`."""
    table = work.tables[0]
    row = table.dim * table.item_bytes + work.optimizer.row_bytes(table.dim, table.compute_bytes)
    size = table.rows * row * (1 / topology.num_ranks + EXTRA)
    return Constraints(default=ParameterConstraints(kinds=kinds, max_bytes=size))


def in_words(plan: ShardingPlan, work: Workload, topology: Topology) -> list[str]:
    """How tables lie; once for those that lie alike."""
    hosts, shapes = topology.hosts_of_ranks, work.shapes()
    found = (placement_of(plan.rectangles(name), shape, hosts).words for name, shape in shapes.items())
    return list(dict.fromkeys(found))


@contextmanager
def training(plans: Mapping[str, ShardingPlan], exponent: float) -> Iterator[Runs]:
    """Ranks that train by each of the plans, ready."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs = {}
        for name, plan in plans.items():
            path = Path(folder, f"{name}.json")
            path.write_text(plan.to_json())
            side = stack.enter_context(Side(mpi(plan.num_ranks), "benchmarks.ours.sharded", env=ONE_THREAD))
            tables = {"sizes": SIZES, "length": LENGTH, "layers": LAYERS}
            sharding = {"plan": str(path)}
            side("build", dim=DIM, optimizer="rowwise_adagrad", batch_size=BATCH, sharding=sharding, **tables)
            side("load", batches=BATCHES, ids=f"falling:{exponent}")
            side("threads", n=1)
            runs[name] = turn(side, "ours", STEPS)
        yield runs


if __name__ == "__main__":
    main()
