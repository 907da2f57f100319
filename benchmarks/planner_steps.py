"""What the planner says of a training step, and what the step then takes: seconds, bytes, memory.

    python -m benchmarks.planner_steps --machine machine.yaml

DLRM on tables of skewed ids, some of them several a sample, in at least six plans on one and on two ranks,
one of them the plan that the planner itself would take. Every plan trains as `tesserec train` does it, from
Parquet, in a process of its own; all of them take turns, and a plan's time is the median of its turns. Ranks
share this machine's cores. The estimates are made before anything runs, from the same config, statistics of
the same data, and the file that `tesserec plan calibrate` wrote.

`error` is predicted / measured - 1; `memory_error` is that of the resident bytes of the fullest rank;
`sent_error` that of the bytes that leave ranks in a step. `spearman` compares the order of the plans. Stages
are predicted / measured milliseconds of the busiest rank, in which the stage's thread had a core; busy_ms:
those of all threads of the busiest rank together.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.harness import Line, Report, Side
from benchmarks.sharded_step import mpi, threads_of
from tesserec.dataio.config import read_config
from tesserec.dataio.dataset import Dataset, DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import Shape, Shard, ShardingPlan, even_cut
from tesserec.sharding.planner.estimate import CostModel, Estimate
from tesserec.sharding.planner.search import Budget, search
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload
from tesserec.train.comparison import at_work, refitted
from tesserec.train.comparison import compare as beside_run
from tesserec.train.config import TrainConfig
from tesserec.train.measured import Measured
from tesserec.train.planning import read_frequencies, workload_of
from tesserec.train.trial import skewed_ids

BATCH, DIM, GROUP = 4096, 64, 8192  # rows of a group: decoding, too, is spread evenly over the steps
# rows, ids of a sample (at most: lists have 1 to 2 n - 1), exponent of Zipf's law; most frequent rows first
FEATURES: list[tuple[int, int, float]] = [
    (1_500_000, 10, 1.05),
    (1_200_000, 1, 1.05),
    (800_000, 5, 0.8),
    (500_000, 1, 1.1),
    (300_000, 1, 1.05),
    (150_000, 3, 1.2),
    (60_000, 1, 0.6),
    (20_000, 1, 1.05),
    (5_000, 1, 1.0),
    (1_000, 1, 0.8),
    (200, 1, 1.0),
    (30, 1, 0.5),
]
CONFIG: Line = {
    "data": {"path": "data", "batch_size": BATCH, "valid": None, "streams": 2, "shuffle": False},
    "model": {"name": "dlrm", "embedding_dim": DIM, "bottom": [64], "top": [128, 64], "pooling": "sum"},
    "optimizer": {"dense": {"name": "sgd", "lr": 0.05}, "rows": {"name": "rowwise_adagrad", "lr": 0.05}},
    "train": {"epochs": 1000, "checkpoint_seconds": None},
}
WITHIN_SECONDS, WITHIN_BYTES, RANKED = 0.15, 0.02, 0.9


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as name, Report("planner_steps") as report:
        folder = Path(name)
        write_data(folder, args.groups)
        config = read_config(folder / "config.yaml", TrainConfig)
        machine = read_config(args.machine, Topology)
        for ranks in args.ranks:
            compare(folder, config, machine.with_ranks(ranks), args, report)


def arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--machine", type=Path, required=True, help="what `tesserec plan calibrate` wrote")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plans", nargs="+", help="only these")
    parser.add_argument("--refit", metavar="PLAN", help="also estimate as refitted by this plan's run")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30, help="of a turn")
    parser.add_argument("--groups", type=int, default=96, help=f"of {GROUP:,} rows of data")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of the planner's own search")
    parser.add_argument("--quick", action="store_true", help="few rows and turns: does it run?")
    parser.add_argument("--folder", help="where the data goes; by default the system's temporary folder")
    args = parser.parse_args()
    if args.quick:
        args.turns, args.steps, args.groups, args.budget = 2, 10, 16, 2.0
    return args


def write_data(folder: Path, groups: int) -> None:
    """The data set and its config in `folder`."""
    (folder / "data").mkdir()
    names = [f"C{i}" for i in range(1, len(FEATURES) + 1)]
    dense = tuple(f"I{i}" for i in range(1, 14))
    writer: Any = None
    for group in range(groups):
        rng = np.random.default_rng([7, group])
        columns: dict[str, Any] = {"label": (rng.random(GROUP) < 0.25).astype(np.float32)}
        columns |= {column: rng.random(GROUP, dtype=np.float32) for column in dense}
        columns |= {name: skewed_ids(*spec, rng, GROUP) for name, spec in zip(names, FEATURES, strict=True)}
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(folder / "data" / "train.parquet", table.schema)
        writer.write_table(table, row_group_size=GROUP)
    writer.close()
    sparse = tuple(
        SparseFeature(name, rows, length > 1) for name, (rows, length, _) in zip(names, FEATURES, strict=True)
    )
    splits = {"train": Split(("train.parquet",), groups * GROUP)}
    info = DatasetInfo("skewed", ("label",), dense=dense, sparse=sparse, splits=splits)
    write_dataset_info(folder / "data", info)
    settings = CONFIG | {"data": {**CONFIG["data"], "path": str(folder / "data")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def compare(
    folder: Path, config: TrainConfig, topology: Topology, args: argparse.Namespace, report: Report
) -> None:
    """All plans on so many ranks: estimates, then measurements, then lines for both."""
    ranks = topology.num_ranks
    workload = workload_for(config)
    model = CostModel(workload, topology)
    plans = plans_for(workload, topology, args.budget)
    if args.plans:
        plans = {name: plan for name, plan in plans.items() if name in args.plans}
    estimates = {name: model.estimate(plan) for name, plan in plans.items()}
    measured = measure(folder, plans, ranks, args.turns, args.steps)
    lines = [{"ranks": ranks, "plan": name, **line_of(estimates[name], *measured[name])} for name in plans]
    if args.refit in plans:
        fitting, estimate, (_, seen) = plans[args.refit], estimates[args.refit], measured[args.refit]
        told = beside_run(workload, fitting, estimate, seen, args.refit)
        again = CostModel(workload, refitted(topology, model, fitting, told))
        lines = [line | line_again(again.estimate(plans[line["plan"]]), line) for line in lines]
    for line in lines:
        report.add(line)
    report.add({"ranks": ranks, **summary(lines, "predicted_ms", "error")})
    if args.refit in plans:
        others = [line for line in lines if line["plan"] != args.refit]
        told_again = summary(others, "refitted_ms", "refitted_error")
        report.add({"ranks": ranks, "refitted_by": args.refit, **told_again})


def workload_for(config: TrainConfig) -> Workload:
    dataset = Dataset.open(config.data.path)
    reads, _ = read_frequencies(dataset, config, "")
    return workload_of(config, dataset, reads, measure=True)


def plans_for(workload: Workload, topology: Topology, budget: float) -> dict[str, ShardingPlan]:
    """{name: plan}: the kinds of `make_plan`, mixtures of them, and what the planner finds.

    One rank has pieces instead of ranks: they cost what it takes to hand vectors over.
    """
    shapes, ranks = workload.shapes(), topology.num_ranks
    large = [name for name, (rows, _) in shapes.items() if rows >= 300_000]
    mixed = {name: ("row_wise", "hot_cold:20000", "column_wise")[i % 3] for i, name in enumerate(large)}
    kinds: dict[str, tuple[str, Mapping[str, str]]] = {
        "row_wise": ("row_wise", {}),
        "table_wise": ("table_wise", {}),
        "column_wise": ("column_wise", {}),
        "auto": ("auto", {}),
        "hot_cold": ("hot_cold", {}),
        "mixed": ("table_wise", mixed),
    }
    found = {
        name: make_plan(shapes, max(2, ranks), tables, default) for name, (default, tables) in kinds.items()
    }
    if ranks == 1:
        found = {name: on_one_rank(plan, shapes) for name, plan in found.items()}
        found["grid"] = ShardingPlan(tuple(s for n, shape in shapes.items() for s in quarters(n, shape)), 1)
        del found["auto"]  # the same as table_wise, but for tables of no weight
    found["planned"] = planned(workload, topology, budget)
    return found


def planned(workload: Workload, topology: Topology, budget: float) -> ShardingPlan:
    """What `tesserec plan` takes."""
    return search(workload, topology, budget=Budget.of(budget)).plan


def on_one_rank(plan: ShardingPlan, shapes: Mapping[str, Shape]) -> ShardingPlan:
    """The same rectangles, all on rank 0."""
    held = {(shard.table, shard.rectangle) for shard in plan.shards}
    shards = (Shard(table, rows, cols, 0) for table, (rows, cols) in sorted(held))
    made = ShardingPlan(tuple(shards), 1)
    made.check(shapes)
    return made


def quarters(table: str, shape: Shape) -> list[Shard]:
    """Halves of rows by halves of columns."""
    spans = (even_cut(extent, 2) for extent in shape)
    rows, cols = ([span for span in spans_of if span[0] < span[1]] for spans_of in spans)
    return [Shard(table, r, c, 0) for r in rows for c in cols]


def measure(
    folder: Path, plans: Mapping[str, ShardingPlan], ranks: int, turns: int, steps: int
) -> dict[str, tuple[list[float], Measured]]:
    """{plan: (seconds of a step in each turn, what its run measured of itself)}."""
    with ExitStack() as stack:
        sides = {name: stack.enter_context(side(folder, name, plan, ranks)) for name, plan in plans.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(turns + 1):
            for name in list(sides)[:: -1 if turn % 2 else 1]:
                took = sides[name]("steps", steps=steps)["seconds"]
                if turn:  # the first warms up
                    seconds[name].append(took)
        return {name: (seconds[name], Measured.parsed(each("measured"))) for name, each in sides.items()}


def side(folder: Path, name: str, plan: ShardingPlan, ranks: int) -> Side:
    """A run of the plan, ready to train."""
    path, output = folder / f"{name}-{ranks}.json", folder / f"run-{name}-{ranks}"
    plan.save(path)
    settings = [f"sharding.plan={path}", f"output={output}"]
    return Side(
        mpi(ranks), "benchmarks.ours.planned", str(folder / "config.yaml"), *settings, env=threads_of(ranks)
    )


def line_of(estimate: Estimate, turns: Sequence[float], measured: Measured) -> Line:
    """Predicted beside measured."""
    took, memory, ranks = statistics.median(turns), measured.memory, range(measured.ranks)
    stages = {stage: at_work(measured, stage) for stage in estimate.stages}
    of_ranks = [measured.stages["step"]["busy_seconds"][r] + beside(measured, r) for r in ranks]
    peak = max(a + b for a, b in zip(memory["peak"], memory["untouched"], strict=True))
    sent = sum(sum(stage["sent_bytes"]) for name, stage in measured.stages.items() if name != "step")
    held = float(estimate.rank_bytes.max())
    found: Line = {
        "predicted_ms": round(estimate.step_seconds * 1e3, 3),
        "measured_ms": round(took * 1e3, 3),
        "error": round(estimate.step_seconds / took - 1, 4),
        "spread": round((max(turns) - min(turns)) / took, 3),
        "busy_ms": round(max(of_ranks) * 1e3, 3),
        "predicted_MB": round(held / 1e6, 1),
        "measured_MB": round(peak / 1e6, 1),
        "memory_error": round(held / peak - 1, 4),
    }
    if sent:
        found["sent_error"] = round(float(estimate.traffic.sum()) / sent - 1, 4)
    for stage, seconds in estimate.stages.items():
        seen = stages[stage]
        both = float(seconds.max()), 0.0 if seen is None else float(seen.max())
        found[stage] = "/".join(f"{each * 1e3:.2f}" for each in both)
    return found


def line_again(estimate: Estimate, line: Line) -> Line:
    """The step, as estimated after a refit."""
    again = estimate.step_seconds * 1e3
    return {"refitted_ms": round(again, 3), "refitted_error": round(again / line["measured_ms"] - 1, 4)}


def beside(measured: Measured, rank: int) -> float:
    """Seconds of a step that a rank's other threads had a core."""
    found = (measured.stages.get(name) for name in ("read", "input_dist", "reduce_dense"))
    return float(sum(stage["busy_seconds"][rank] for stage in found if stage))


def summary(lines: Sequence[Line], milliseconds: str, error: str) -> Line:
    """How well the plans of one number of ranks were told."""
    predicted, measured = ([line[key] for line in lines] for key in (milliseconds, "measured_ms"))
    errors, memory = ([abs(line[key]) for line in lines] for key in (error, "memory_error"))
    return {
        "plans": len(lines),
        "worst_error": max(errors),
        "worst_memory_error": max(memory),
        "spearman": round(spearman(predicted, measured), 3),
        "met": max(errors) < WITHIN_SECONDS and max(memory) < WITHIN_BYTES,
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks; of equal values, their mean rank."""
    if len(a) < 2:
        return 1.0
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    array = np.asarray(values)
    below = (array[:, None] > array).sum(axis=1)
    equal = (array[:, None] == array).sum(axis=1)
    ranks: npt.NDArray[np.float64] = below + (equal - 1) / 2
    return ranks


if __name__ == "__main__":
    main()
