"""How good and how fast the planner's search is: the gap to the exact optimum, and a large case on one core.

    python -m benchmarks.planner_search            # 24 small cases beside HiGHS: the gap of each
    python -m benchmarks.planner_search --large    # 1,000 tables, 10 TB, 512 ranks: seconds and peak memory

JSON lines. Small cases: 3 to 8 tables of log-normal sizes on 2 to 4 ranks, loose and tight memory. A gap is
to the bound that HiGHS proved: 0.02 is 2 %.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tesserec.sharding.plan import PlanError
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.milp import optimum
from tesserec.sharding.planner.search import Budget, search
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology
from tesserec.sharding.planner.workload import Dense, Feature, RowOptimizer, Table, Workload

HBM, LARGE = 80e9, 10e12


@dataclass(frozen=True)
class Case:
    """load: share of all memory that the tables take, whole."""

    tables: int
    ranks: int
    hosts: int
    load: float
    skew: float
    seed: int


def cases() -> Iterator[Case]:
    """24 of them."""
    seed = 0
    for tables, ranks, hosts in ((3, 2, 1), (6, 2, 1), (8, 2, 1), (4, 4, 1), (6, 4, 1), (4, 4, 2)):
        for load, skew in ((0.1, 0.0), (0.1, 1.1), (0.7, 0.0), (0.9, 1.1)):
            yield Case(tables, ranks, hosts, load, skew, seed := seed + 1)


def workload(case: Case, *, batch: int = 65536) -> Workload:
    """Tables whose sizes are log-normal, and bags of 1 to 40 ids."""
    random = np.random.default_rng(case.seed)
    sizes = random.lognormal(0, 1, case.tables)
    rows = np.maximum(1000, sizes / sizes.sum() * case.load * case.ranks * HBM / (4 * 65)).astype(int)
    made = []
    for k, height in enumerate(rows.tolist()):
        ids = Frequencies.zipf(height, case.skew) if case.skew else Frequencies.uniform(height)
        length = float(np.rint(np.exp(random.uniform(0, np.log(40)))))
        made.append(Table(f"t{k}", height, 64, features=(Feature(f"t{k}", Lengths.fixed(length), ids),)))
    dense = Dense(parameters=5_000_000, flops=10e6)
    return Workload(
        tuple(made), batch, optimizer=RowOptimizer.named("rowwise_adagrad"), dense=dense, reads_data=False
    )


def topology(ranks: int, hosts: int = 1) -> Topology:
    """H100s, by data sheet."""
    gpu = Device("gpu", (Tier("hbm", HBM, 3.35e12),), 495e12)
    host = Host(ranks // hosts, "gpu", Link(1e-5, 450e9, share=0.8), count=hosts)
    return Topology("h100", {"gpu": gpu}, (host,), Link(2e-5, 50e9, share=0.8) if hosts > 1 else None)


def paper() -> Workload:
    """1,000 tables, 10 TB in float16: `docs/scale.md`."""
    random = np.random.default_rng(0)
    sizes = random.lognormal(0, 1.5, 1000)
    made = []
    for k, height in enumerate((sizes / sizes.sum() * LARGE / 256).astype(int).tolist()):
        length = float(np.rint(np.exp(random.uniform(0, np.log(100)))))
        feature = Feature(f"t{k}", Lengths.fixed(length), Frequencies.uniform(height))
        made.append(Table(f"t{k}", height, 128, "float16", features=(feature,)))
    dense = Dense(parameters=200_000_000, flops=638e6)
    return replace(
        Workload(tuple(made), 262_144, optimizer=RowOptimizer.named("rowwise_adagrad"), dense=dense),
        forward="fp16",
        backward="fp16",
        reads_data=False,
    )


def measure_small(seconds: float) -> Iterator[dict[str, object]]:
    """A line for each case: what was found, what is proved."""
    for case in cases():
        line: dict[str, object] = {"case": case.__dict__}
        started = time.perf_counter()
        try:
            found = search(workload(case), topology(case.ranks, case.hosts), budget=Budget.of(5))
        except PlanError as error:
            yield line | {"error": str(error)}
            continue
        searched = time.perf_counter()
        best = optimum(found.draft.space, found.draft.cost, seconds)
        yield line | {
            "step_seconds": found.estimate.step_seconds,
            "optimum_seconds": best.seconds,
            "bound_seconds": best.bound,
            "gap": found.draft.cost / best.bound - 1,
            "proved": best.is_proved,
            "options": len(found.draft.space.options),
            "search_seconds": searched - started,
            "milp_seconds": time.perf_counter() - searched,
        }


def measure_large(seconds: float) -> dict[str, object]:
    """Of the whole call, on one core."""
    started, cpu = time.perf_counter(), time.process_time()
    found = search(paper(), topology(512, 64), budget=Budget.of(seconds))
    return {
        "case": "1,000 tables, 10 TB, 512 ranks",
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "search_seconds": found.seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "step_seconds": found.estimate.step_seconds,
        "bound_seconds": found.bound_seconds,
        "proposer": found.proposer,
        "stopped": found.stopped,
        "best_of": found.best_of,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of HiGHS for a case, or of the large search"
    )
    options = parser.parse_args()
    if options.large:
        print(json.dumps(measure_large(options.seconds)))
        return
    gaps: list[float] = []
    for line in measure_small(options.seconds):
        print(json.dumps(line), flush=True)
        if isinstance(gap := line.get("gap"), float):
            gaps.append(gap)
    print(json.dumps({"cases": len(gaps), "worst_gap": max(gaps), "mean_gap": float(np.mean(gaps))}))


if __name__ == "__main__":
    main()
