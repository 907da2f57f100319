"""Estimate beside measurement of a run, what is far off, and the factors that make up for it.

A stage's measurement is the time in which its thread had a core: so it does not count who waits for whom, nor
who else was on the cores, and neither does the estimate of a stage. Between hosts, what even the rank that
waited least had to wait is counted as well. The step is compared as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.document import add_plan
from tesserec.sharding.planner.estimate import CostModel, Estimate
from tesserec.sharding.planner.result import Beside, Comparison, Document
from tesserec.sharding.planner.schedule import STAGES
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload
from tesserec.train.measured import Measured
from tesserec.train.plan_case import Case, Sources, read_case
from tesserec.train.plan_document import new_document
from tesserec.train.run import RunFolder

Numbers = npt.NDArray[np.float64]

FAR = 0.15  # relative difference that is worth words
LEAST = 0.02  # of a step: shorter stages are not fitted, nor talked about
SMALLEST = 0.1  # that a factor gets by one fit
SPANS: Mapping[str, str] = {"reduction": "reduce_dense"}  # stages whose span has another name
EXCHANGES: Mapping[str, tuple[str, ...]] = {
    "input_dist": ("ids",),
    "look_up": ("vectors",),
    "row_grads": ("gradients", "replicas"),
    "reduction": ("reduction",),
    "update": ("columns",),
}


@dataclass(frozen=True, eq=False)
class Compared:
    """A run beside its estimate, by which `case` and `plan`."""

    case: Case
    plan: ShardingPlan
    measured: Measured
    comparison: Comparison

    def document(self) -> Document:
        """All about the plan, and the comparison."""
        document = new_document(self.case, "compared")
        add_plan(document, self.plan, self.case.estimate(self.plan))
        document["comparison"] = self.comparison
        document["notes"] += findings(self.comparison)
        return document

    def refitted(self, topology: Topology) -> Topology:
        """`topology`, of which the case's has some ranks, with factors that make up for the differences."""
        return refitted(topology, self.case.costs, self.plan, self.comparison)


def compared(path: Path, *, topology: str = "", machine: str = "", stats: str = "") -> Compared:
    """The run in the folder `path`, as estimated for a topology file or preset; else for the file `machine`.

    RunError, MeasuredError where there is no run, or it has measured nothing; else as `read_case`.
    """
    run = RunFolder.open(path)
    measured = Measured.read(run.measured)
    source = str(run.path / "config.yaml")
    case = read_case(Sources(source, topology=topology, machine=machine, ranks=measured.ranks, stats=stats))
    notes, threads = case.notes, case.topology.threads_of(0)
    if threads != measured.threads:
        notes += (f"the run had {measured.threads} threads on each rank, the topology says {threads}",)
    whole = measured.plan == ""
    plan = make_plan(case.shapes, 1, default="table_wise") if whole else ShardingPlan.load(run.plan)
    comparison = compare(case.workload, plan, case.estimate(plan), measured, str(path))
    return Compared(replace(case, notes=notes), plan, measured, comparison)


def compare(
    workload: Workload, plan: ShardingPlan, estimate: Estimate, measured: Measured, run: str
) -> Comparison:
    """Every number that both have; None where only one does."""
    return Comparison(
        run=run,
        steps=measured.steps,
        step=_beside(estimate.step_seconds, max(measured.stages["step"]["seconds"])),
        stages={stage: _pairs(estimate.stages[stage], at_work(measured, stage)) for stage in STAGES},
        memory=dict(_memory(estimate, measured)),
        sent_bytes=dict(_sent(estimate, measured)) if measured.ranks > 1 else {},
        tables={name: _table(workload, plan, estimate, measured, name) for name in estimate.tables},
    )


def at_work(measured: Measured, stage: str) -> Numbers | None:
    """(W,) seconds of a stage that were its own: see above. None if there was no such stage."""
    found = measured.stages.get(SPANS.get(stage, stage))
    if found is None:
        return None
    on_the_way = min(found["waiting_seconds"]) if len(set(measured.hosts)) > 1 else 0.0
    return np.array(found["busy_seconds"]) + on_the_way


def factors(
    comparison: Comparison, doubled: Mapping[str, float], before: Mapping[str, float]
) -> dict[str, float]:
    """{stage: what its seconds are to be multiplied with}: the busiest rank's estimate is then as measured.

    before: the factors that the estimate was made with; doubled: {stage: the busiest rank's estimate with
    twice those}, for not all of a stage is multiplied. Stages that hardly count keep theirs.
    """
    least = LEAST * (comparison["step"]["measured"] or 0.0)
    found = dict(before)
    for stage, pairs in comparison["stages"].items():
        pair = highest(pairs)
        estimated, measured = pair["estimated"], pair["measured"]
        if estimated and measured and max(estimated, measured) >= least and doubled[stage] > estimated:
            more = (measured - estimated) / (doubled[stage] - estimated)
            found[stage] = round(before.get(stage, 1.0) * max(SMALLEST, 1 + more), 4)
    return found


def refitted(topology: Topology, costs: CostModel, plan: ShardingPlan, comparison: Comparison) -> Topology:
    """`topology` with factors by which `costs`, of some of its ranks, would have estimated as measured."""
    hosts = [costs.topology.host_of(rank).device for rank in range(costs.ranks)]
    twice, devices = _doubled(costs, plan), dict(topology.devices)
    for name, device in topology.devices.items():
        here = [rank for rank, of_rank in enumerate(hosts) if of_rank == name]
        if here:
            doubled = {stage: float(seconds[here].max()) for stage, seconds in twice.items()}
            found = factors(_of_ranks(comparison, here), doubled, device.factors)
            devices[name] = replace(device, factors=found)
    return replace(topology, devices=devices)


def _doubled(costs: CostModel, plan: ShardingPlan) -> Mapping[str, Numbers]:
    """{stage: (W,) seconds} with factors twice as large."""
    devices = {
        name: replace(device, factors={s: 2 * device.factors.get(s, 1.0) for s in STAGES})
        for name, device in costs.topology.devices.items()
    }
    return CostModel(costs.workload, replace(costs.topology, devices=devices)).estimate(plan).stages


def _of_ranks(comparison: Comparison, ranks: Sequence[int]) -> Comparison:
    """Stages of some of the ranks."""
    stages = comparison["stages"].items()
    mine = {stage: [pairs[r] for r in ranks if r < len(pairs)] for stage, pairs in stages}
    return {**comparison, "stages": mine}


def findings(comparison: Comparison) -> list[str]:
    """What is more than `FAR` off, and what to do about it, in words; most important first."""
    step, least = comparison["step"], LEAST * (comparison["step"]["measured"] or 0.0)
    found = [f"the step is {_off(step)}"] if _is_far(step) else []
    late = {stage: highest(pairs) for stage, pairs in comparison["stages"].items()}
    far = [s for s, p in late.items() if _is_far(p) and max(p["estimated"] or 0, p["measured"] or 0) >= least]
    found += [f"{stage} is {_off(late[stage])}" for stage in far]
    if found:
        found.append(
            "to plan with what was measured: --refit FILE; after a change of machine or load, "
            "`tesserec plan calibrate` anew"
        )
    total = highest(comparison["memory"]["total"])
    if _is_far(total):
        found.append(f"memory is {_off(total)}; keep as much free: reserve_bytes of the device")
    far = [name for name, table in comparison["tables"].items() if any(map(_is_far, _reads(table)))]
    if far:
        more = f" and {len(far) - 3} more" if len(far) > 3 else ""
        found.append(
            f"ids or rows of {', '.join(far[:3])}{more} are not as the statistics say: make them of all of "
            "the data, `tesserec data stats`, and give them with --stats"
        )
    return found


def highest(pairs: Sequence[Beside]) -> Beside:
    """The highest estimate and the highest measurement of all ranks."""
    estimates = (pair["estimated"] for pair in pairs if pair["estimated"] is not None)
    seen = (pair["measured"] for pair in pairs if pair["measured"] is not None)
    return _beside(max(estimates, default=None), max(seen, default=None))


def _reads(table: Mapping[str, Beside]) -> Iterator[Beside]:
    """What statistics decide."""
    yield from (table[key] for key in ("ids", "rows") if key in table)


def _memory(estimate: Estimate, measured: Measured) -> Iterator[tuple[str, list[Beside]]]:
    seen = {name: np.array(values) for name, values in measured.memory.items()}
    peak = seen["peak"] + seen["untouched"]
    rows, state = estimate.memory["rows"], estimate.memory["state"]
    yield "rows", _pairs(rows, seen["rows"])
    yield "state", _pairs(state, seen["state"])
    yield "rest", _pairs(estimate.rank_bytes - rows - state, peak - seen["rows"] - seen["state"])
    yield "total", _pairs(estimate.rank_bytes, peak)


def _sent(estimate: Estimate, measured: Measured) -> Iterator[tuple[str, list[Beside]]]:
    for stage, names in EXCHANGES.items():
        sent = np.sum([estimate.sent[name] for name in names], axis=0)
        found = measured.stages.get(SPANS.get(stage, stage))
        yield stage, _pairs(sent, None if found is None else np.array(found["sent_bytes"]))


def _table(
    workload: Workload, plan: ShardingPlan, estimate: Estimate, measured: Measured, name: str
) -> dict[str, Beside]:
    mine, seen = estimate.tables[name], measured.tables.get(name, {})
    held, dim = plan.rectangles(name), workload.by_name[name].dim
    split = any(cols != (0, dim) for _, cols in held)
    copied = any(len(ranks) > 1 for ranks in held.values())
    told = copied or (split and workload.optimizer.whole_rows)  # such bytes are not counted by table
    sent = [seen[key] for key in ("id_bytes", "vector_bytes", "gradient_bytes") if key in seen]
    found = {
        "ids": _beside(mine.ids, seen.get("ids_here")),
        "rows": _beside(mine.rows_touched, None if told or split else seen.get("rows")),
        "sent_bytes": _beside(mine.sent_bytes, None if told or not sent else sum(sent)),
        "lookup_seconds": _beside(mine.lookup_seconds, seen.get("lookup_seconds")),
        "update_seconds": _beside(mine.update_seconds, seen.get("update_seconds")),
    }
    return {key: pair for key, pair in found.items() if pair["estimated"] or pair["measured"]}


def _pairs(estimated: Numbers, measured: Numbers | None) -> list[Beside]:
    seen = [None] * len(estimated) if measured is None else measured.tolist()
    pairs = zip(estimated.tolist(), seen, strict=False)  # of groups of replicas, the first is estimated
    return [_beside(a, b) for a, b in pairs]


def _beside(estimated: float | None, measured: float | None) -> Beside:
    return Beside(estimated=estimated, measured=measured)


def _is_far(pair: Beside) -> bool:
    estimated, measured = pair["estimated"], pair["measured"]
    return bool(estimated and measured and abs(estimated / measured - 1) > FAR)


def _off(pair: Beside) -> str:
    """`estimated 23 % too low`."""
    off = (pair["estimated"] or 0.0) / (pair["measured"] or 1.0) - 1
    return f"estimated {abs(off):.0%} too {'high' if off > 0 else 'low'}".replace("%", " %")
