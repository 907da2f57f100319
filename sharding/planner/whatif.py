"""What if the batch, the ranks or the links were other than they are: the same plan there, and a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tesserec.sharding.plan import PlanError, ShardingPlan
from tesserec.sharding.planner.estimate import CostModel, Estimate
from tesserec.sharding.planner.grids import TopologyError
from tesserec.sharding.planner.result import Variation
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload

Planner = Callable[[Workload, Topology], Estimate]  # of the best plan; PlanError where nothing fits
What = Literal["batch", "ranks", "bandwidth", "several"]

FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Change:
    """What is other than planned; None for what is not. bandwidth: a factor of all links."""

    batch: int | None = None
    ranks: int | None = None
    bandwidth: float | None = None

    def of(self, workload: Workload, topology: Topology) -> tuple[Workload, Topology]:
        """Both, changed. PlanError, TopologyError where they cannot be so."""
        if self.ranks is not None:
            topology = topology.with_ranks(self.ranks)
        if self.bandwidth is not None:
            topology = topology.scaled(bandwidth=self.bandwidth)
        batch = workload.batch_size if self.batch is None else self.batch
        if batch < 1 or batch % topology.num_ranks:
            raise PlanError(f"{topology.num_ranks} ranks cannot share a batch of {batch:,} evenly")
        return replace(workload, batch_size=batch), topology

    @property
    def what(self) -> What:
        """The one thing that is other."""
        given = [name for name in ("batch", "ranks", "bandwidth") if getattr(self, name) is not None]
        names: dict[str, What] = {"batch": "batch", "ranks": "ranks", "bandwidth": "bandwidth"}
        return names[given[0]] if len(given) == 1 else "several"

    @property
    def words(self) -> str:
        """`batch 4,096, 4 ranks, links × 2`."""
        batch = [] if self.batch is None else [f"batch {self.batch:,}"]
        ranks = [] if self.ranks is None else [f"{self.ranks:,} rank{'s' * (self.ranks > 1)}"]
        links = [] if self.bandwidth is None else [f"links × {self.bandwidth:g}"]
        return ", ".join(batch + ranks + links) or "as planned"


@dataclass(frozen=True)
class Planned:
    """A plan, what it is for, and who would make others. rank_bytes: as in `Constraints`."""

    workload: Workload
    topology: Topology
    plan: ShardingPlan
    make: Planner
    rank_bytes: Mapping[str, float] = field(default_factory=dict)

    def sensitivity(self) -> Iterator[Variation]:
        """Half and twice the batch, the ranks and the links; each beside the case that was planned."""
        ranks, batch = self.topology.num_ranks, self.workload.batch_size
        for factor in FACTORS:
            yield self.vary(Change(batch=round(batch * factor)), factor)
        for factor in FACTORS:
            if round(ranks * factor) >= 1:
                yield self.vary(Change(ranks=round(ranks * factor)), factor)
        for factor in FACTORS if ranks > 1 else ():
            yield self.vary(Change(bandwidth=factor), factor)

    def vary(self, change: Change, factor: float = 0.0) -> Variation:
        """The step of the plan and of a new one, where `change` is so. factor: 1 for the planned case."""
        try:
            workload, topology = change.of(self.workload, self.topology)
        except (PlanError, TopologyError) as error:
            return _variation(change, factor, None, None, str(error))
        same, note = self._same(workload, topology)
        if factor == 1:
            return _variation(change, factor, same, same, note)
        try:
            new = self.make(workload, topology)
        except PlanError:
            return _variation(change, factor, same, None, "nothing fits")
        better = same if same is not None and same.step_seconds < new.step_seconds else new
        return _variation(change, factor, same, better, note)

    def _same(self, workload: Workload, topology: Topology) -> tuple[Estimate | None, str]:
        """(what the plan takes there, ""), or why it cannot be used."""
        if self.plan.num_ranks * workload.replica_groups != topology.num_ranks:
            return None, f"the plan is for {self.plan.num_ranks} ranks"
        estimate = CostModel(workload, topology).estimate(self.plan)
        return (
            (estimate, "") if fits(estimate, topology, self.rank_bytes) else (None, "the plan does not fit")
        )


def fits(estimate: Estimate, topology: Topology, rank_bytes: Mapping[str, float]) -> bool:
    """Whether no rank has more in a tier than that holds, or than `rank_bytes` allows."""
    return all(
        (
            used
            <= np.minimum(topology.tier_bytes(tier)[: len(used)], rank_bytes.get(tier, np.inf)) * (1 + 1e-9)
        ).all()
        for tier, used in estimate.tier_bytes.items()
    )


def _variation(
    change: Change, factor: float, same: Estimate | None, new: Estimate | None, note: str
) -> Variation:
    (same_speed, same_step), (new_speed, new_step) = _numbers(same), _numbers(new)
    return Variation(
        what=change.what,
        label=change.words,
        factor=factor,
        samples_per_second_same=same_speed,
        samples_per_second_new=new_speed,
        step_seconds_same=same_step,
        step_seconds_new=new_step,
        note=note,
    )


def _numbers(estimate: Estimate | None) -> tuple[float | None, float | None]:
    """(samples per second, seconds of a step)."""
    return (None, None) if estimate is None else (estimate.samples_per_second, estimate.step_seconds)
