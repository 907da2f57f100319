"""The cost model: what a plan takes in a step, in seconds and bytes, before anything is run.

    model = CostModel(workload, topology)
    estimate = model.estimate(plan)

A plan's loads are sums over its pieces (`CostModel.pieces`), and the step is made of sums and maxima of these
(`Schedule`): so a search can add up what it tries. `estimate` uses the very same numbers.

Modelled is the engine as it is: see `traffic` for what is sent, `costs` for what it takes, `memory` for what
has to be in memory at once, `schedule` for what waits for what. Not modelled: the start of a run, checkpoints
and validation; ranks that are slowed down by something else; links whose switches are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import PlanError, ShardingPlan
from tesserec.sharding.planner.costs import Costs
from tesserec.sharding.planner.exchanges import Exchanges, Placed, sent_bytes
from tesserec.sharding.planner.memory import ON_TIER, PART, PARTS, base_bytes, piece_bytes
from tesserec.sharding.planner.schedule import COLUMN, COLUMNS, STAGES, Bound, Schedule
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.traffic import Pieces, Traffic
from tesserec.sharding.planner.workload import Table, Workload

Numbers = npt.NDArray[np.float64]

CALLS: Numbers = np.array(
    [0, 1, 0, 1, 0, 3, 0, 1], np.float64
)  # of a phase; replicas also send counts and ids


@dataclass(frozen=True, eq=False)
class Loads:
    """What n pieces cost: (n, K) seconds by `COLUMNS`, and (n, M) bytes by `memory.PARTS`.

    everyone: on every rank of the kind of host that was asked for; holder: on each holder there, on top.
    """

    everyone: Numbers
    holder: Numbers
    everyone_bytes: Numbers
    holder_bytes: Numbers


@dataclass(frozen=True)
class TableEstimate:
    """Of one table. stages: {stage: seconds}, the sum of all ranks; the rest: bytes of a step, or held.

    imbalance: ids of the busiest rank of those that hold it, by their mean. hits: share of reads that do not
    go to the table's tier, None where the device has no cache in front of it.
    """

    stages: Mapping[str, float]
    seconds: float  # of the rank that has most to do for it
    lookup_seconds: float  # of all ranks: reading and pooling rows, without moving vectors
    update_seconds: float  # of all ranks: sorting, summing and updating
    sent_bytes: float  # between ranks, both ways
    rows_bytes: float  # of all ranks
    state_bytes: float
    ids: float  # looked up on all ranks, in a step
    rows_touched: float  # distinct ones
    imbalance: float
    hits: float | None


@dataclass(frozen=True, eq=False)
class Estimate:
    """Of one plan. stages: {stage: (W,) seconds}; memory: {part: (W,) bytes}; traffic: (W, W), of a step.

    sent: {exchange: (W,) bytes that leave a rank}. tier_bytes: {tier: (W,) bytes in it}. path: what the step
    consists of, in order.
    """

    step_seconds: float
    samples_per_second: float
    stages: dict[str, Numbers]
    path: tuple[Bound, ...]
    traffic: Numbers
    sent: dict[str, Numbers]
    memory: dict[str, Numbers]
    tier_bytes: dict[str, Numbers]
    tables: dict[str, TableEstimate]

    @cached_property
    def rank_bytes(self) -> Numbers:
        """(W,) memory of each rank, all parts."""
        total: Numbers = np.sum(list(self.memory.values()), axis=0)
        return total

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        arrays = {
            name: {key: array.tolist() for key, array in getattr(self, name).items()}
            for name in ("stages", "sent", "memory", "tier_bytes")
        }
        return {
            "step_seconds": self.step_seconds,
            "samples_per_second": self.samples_per_second,
            "path": [asdict(bound) for bound in self.path],
            "traffic": self.traffic.tolist(),
            **arrays,
            "tables": {name: asdict(table) for name, table in self.tables.items()},
        }


class CostModel:
    """What plans of `workload` cost on `topology`.

    base: (W, K) seconds and base_bytes: (W, M) bytes of each rank, whatever the plan; kinds: (W,) of
    `topology.hosts`. With groups of replicas, W is the ranks of the first group, for which plans are made.
    """

    def __init__(self, workload: Workload, topology: Topology):
        groups = workload.replica_groups
        if topology.num_ranks % groups:
            raise PlanError(f"{topology.num_ranks} ranks are not {groups} groups of one size")
        self.workload, self.topology = workload, topology
        self.ranks = topology.num_ranks // groups
        self.kinds = np.array(topology.kinds_of_ranks[: self.ranks])
        self.hosts = np.array(topology.hosts_of_ranks[: self.ranks])
        self.costs = [Costs(workload, topology, kind) for kind in range(len(topology.hosts))]
        self.base: Numbers = np.stack([cost.base for cost in self.costs])[self.kinds]
        by_kind = [base_bytes(workload, topology, kind) for kind in range(len(self.costs))]
        self.base_bytes: Numbers = np.stack(by_kind)[self.kinds]

    @cached_property
    def schedule(self) -> Schedule:
        """How loads become the time of a step."""
        latency = max(cost.latency for cost in self.costs)
        cores = np.stack([cost.cores for cost in self.costs])[self.kinds]
        dense = np.array([cost.dense_seconds() for cost in self.costs])[self.kinds]
        return Schedule(CALLS * latency, cores, 2 * latency, dense)

    def pieces(
        self,
        table: Table,
        rows: Any,
        cols: Any,
        holders: Any = 1,
        *,
        kind: int = 0,
        tier: str | None = None,
        beside: Any = None,
    ) -> Loads:
        """What pieces of a table cost, on hosts of one kind, wherever they lie.

        rows, cols: (n, 2) half-open spans. holders: (n,) how many ranks hold each. tier: where its rows lie.
        beside: (n,) of the other ranks that hold the piece, or other columns of its rows, the share in the
        same host; as if they were strewn over all ranks if None.
        """
        made = self._pieces(table, rows, cols, holders, beside)
        order, where = _alike(made)
        traffic = Traffic(order, self.workload, self.ranks)
        found = (*self.costs[kind].loads(traffic, tier), *piece_bytes(traffic))
        return Loads(*(array[where] for array in found))

    def step(self, loads: Numbers) -> float:
        """Seconds of a step, of (W, K) loads, `base` among them."""
        return self.schedule.step(loads)

    def estimate(self, plan: ShardingPlan) -> Estimate:
        """Everything about a plan. PlanError if it does not fit the workload's tables or the ranks."""
        self._check(plan)
        return _Estimating(self, plan).result()

    def _check(self, plan: ShardingPlan) -> None:
        if plan.num_ranks != self.ranks:
            raise PlanError(f"the plan is for {plan.num_ranks} ranks, the topology has {self.ranks}")
        plan.check(self.workload.shapes())

    def _pieces(self, table: Table, rows: Any, cols: Any, holders: Any, beside: Any) -> Pieces:
        rows, cols = (np.atleast_2d(np.asarray(spans, np.float64)) for spans in (rows, cols))
        held = np.broadcast_to(np.asarray(holders, np.float64), len(rows))
        if beside is None:
            beside = (self.costs[0].neighbours - 1) / max(self.ranks - 1, 1)
        return Pieces(table, rows, cols, held, np.broadcast_to(np.asarray(beside, np.float64), len(rows)))


def _alike(pieces: Pieces) -> tuple[Pieces, npt.NDArray[np.int64]]:
    """(pieces without those that cost the same as another, which of them each was)."""
    ordered = pieces.table.frequencies.ordered
    rows = pieces.rows if ordered else np.column_stack([0 * pieces.height, pieces.height])
    key = np.column_stack([rows, pieces.width, pieces.holders, pieces.beside])
    _, first, where = np.unique(key, axis=0, return_index=True, return_inverse=True)
    mine = (getattr(pieces, name)[first] for name in ("rows", "cols", "holders", "beside"))
    return Pieces(pieces.table, *mine), where.reshape(-1)


class _Estimating:
    """The sums over the pieces of a plan, table by table."""

    def __init__(self, model: CostModel, plan: ShardingPlan):
        self.model, self.plan = model, plan
        self.loads, self.bytes = model.base.copy(), model.base_bytes.copy()
        self.on_tier = np.zeros((model.ranks, len(model.topology.tier_names)))
        self.exchanges = Exchanges(model.ranks, model.workload.dense, model.topology.num_ranks)
        self.tables = {table.name: self._add(table) for table in model.workload.tables}

    def result(self) -> Estimate:
        """The estimate."""
        model, schedule = self.model, self.model.schedule
        step = schedule.step(self.loads)
        first, sent = model.topology.tier_names[0], self.exchanges.matrices()
        self.on_tier[:, 0] += np.delete(self.bytes, ON_TIER, axis=1).sum(axis=1)
        in_tiers = dict(zip(model.topology.tier_names, self.on_tier.T, strict=True))
        return Estimate(
            step,
            model.workload.batch_size / step,
            self._stages(),
            tuple(schedule.bounds(self.loads)),
            np.sum(list(sent.values()), axis=0),
            {name: matrix.sum(axis=1) for name, matrix in sent.items()},
            dict(zip(PARTS, self.bytes.T.copy(), strict=True)),
            {name: held for name, held in in_tiers.items() if held.any() or name == first},
            self.tables,
        )

    def _stages(self) -> dict[str, Numbers]:
        """Seconds that each rank is at work, or its links; with what collectives take for nothing."""
        found = {stage: np.zeros(self.model.ranks) for stage in STAGES}
        for name, (stage, _) in COLUMNS.items():
            found[stage] += self.loads[:, COLUMN[name]]
        for stage, seconds in self.model.schedule.calls(self.loads).items():
            found[stage] += seconds
        return found

    def _add(self, table: Table) -> TableEstimate:
        placed = Placed.of(table, self.plan, self.model.hosts)
        tier = self.plan.tiers.get(table.name)
        pieces = self.model._pieces(table, placed.rows, placed.cols, placed.counts, placed.beside)
        busy = np.zeros((self.model.ranks, len(COLUMNS)))
        for kind in np.unique(self.model.kinds):
            self._add_kind(int(kind), table, placed, tier, busy)
        traffic = Traffic(pieces, self.model.workload, self.model.ranks)
        self.loads += busy
        self.exchanges.add(placed, traffic)
        return self._table(placed, traffic, busy)

    def _add_kind(self, kind: int, table: Table, placed: Placed, tier: str | None, busy: Numbers) -> None:
        """What a table costs the ranks of one kind."""
        found = self.model.pieces(
            table, placed.rows, placed.cols, placed.counts, kind=kind, tier=tier, beside=placed.beside
        )
        here, mine = self.model.kinds == kind, self.model.kinds[placed.ranks] == kind
        ranks, which = placed.ranks[mine], placed.which[mine]
        busy[here] += found.everyone.sum(axis=0)
        np.add.at(busy, ranks, found.holder[which])
        self.bytes[here] += found.everyone_bytes.sum(axis=0)
        np.add.at(self.bytes, ranks, found.holder_bytes[which])
        column = self._tier_number(tier, kind)
        np.add.at(self.on_tier, (ranks, column), found.holder_bytes[which][:, ON_TIER].sum(axis=1))

    def _tier_number(self, tier: str | None, kind: int) -> int:
        device = self.model.topology.devices[self.model.topology.hosts[kind].device]
        return self.model.topology.tier_names.index(device.tier(tier).name)

    def _table(self, placed: Placed, traffic: Traffic, busy: Numbers) -> TableEstimate:
        by_stage = dict.fromkeys(STAGES, 0.0)
        for name, (stage, _) in COLUMNS.items():
            by_stage[stage] += float(busy[:, COLUMN[name]].sum())
        asked = np.bincount(placed.ranks, traffic.rows_read[placed.which], self.model.ranks)
        held = np.unique(placed.ranks)
        _, holder = piece_bytes(traffic)
        rows, state = ((holder[:, PART[part]] @ placed.counts) for part in ("rows", "state"))
        mean = float(asked[held].mean())
        return TableEstimate(
            stages=by_stage,
            seconds=float(busy.sum(axis=1).max()),
            lookup_seconds=float(busy[:, COLUMN["lookup"]].sum()),
            update_seconds=float(busy[:, COLUMN["update"]].sum()),
            sent_bytes=sent_bytes(traffic),
            rows_bytes=float(rows),
            state_bytes=float(state),
            ids=float(asked.sum()),
            rows_touched=float(self._touched(placed)),
            imbalance=float(asked.max() / mean) if mean else 1.0,
            hits=self._hits(placed, traffic),
        )

    def _touched(self, placed: Placed) -> float:
        ids = self.model.workload.batch_size * placed.table.mean_length
        return float(placed.table.frequencies.distinct(ids))

    def _hits(self, placed: Placed, traffic: Traffic) -> float | None:
        """Share of the reads that the caches of the first holder's kind answer."""
        cost = self.model.costs[int(self.model.kinds[placed.ranks[0]])]
        return cost.hits(traffic)
