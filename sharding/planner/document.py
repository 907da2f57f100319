"""The document of `planner.result` from a plan and its estimate: numbers gathered, nothing computed anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.planner.describe import placement_of
from tesserec.sharding.planner.estimate import Estimate, TableEstimate
from tesserec.sharding.planner.frequencies import Frequencies
from tesserec.sharding.planner.moves import MovedPiece, bytes_of, moves, seconds_of
from tesserec.sharding.planner.result import (
    FORMAT,
    PIECES,
    VERSION,
    Curve,
    Document,
    MovePart,
    MovesPart,
    Outcome,
    Phase,
    Piece,
    RanksPart,
    StepPart,
    TablePart,
    TierPart,
    TopologyPart,
    WorkloadPart,
)
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Table, Workload

Numbers = npt.NDArray[np.float64]

_POINTS = 48  # of a curve
_MOVES = 200
_MOST_RANKS = 64  # of which the traffic between each two is shown


@dataclass(frozen=True)
class About:
    """What the numbers do not say. made: ISO time; source, topology_source: files or presets."""

    title: str
    source: str
    topology_source: str
    statistics: str
    made: str
    version: str  # of Tesserec
    notes: tuple[str, ...] = ()


def document_of(
    about: About, workload: Workload, topology: Topology, outcome: Outcome = "planned"
) -> Document:
    """All that is known before there is a plan; `add_plan` adds what a plan does."""
    tables = sorted(workload.tables, key=lambda table: -table.rows * table.dim * table.item_bytes)
    return Document(
        format=FORMAT,
        version=VERSION,
        outcome=outcome,
        title=about.title,
        made=about.made,
        tesserec=about.version,
        notes=list(about.notes),
        workload=_workload(about, workload),
        topology=_topology(about, topology, len(topology.hosts_of_ranks) // workload.replica_groups),
        tables=[_table(table) for table in tables],
    )


def add_plan(document: Document, plan: ShardingPlan, estimate: Estimate) -> None:
    """What `plan` does, in every section."""
    topology, tables = document["topology"], {table["name"]: table for table in document["tables"]}
    document["step"] = step_part(estimate)
    document["ranks"] = _ranks(estimate, topology["hosts"])
    for tier in topology["tiers"]:
        tier["used_bytes"] = _listed(estimate.tier_bytes.get(tier["name"], np.zeros(0)))
    listed = sum(map(len, plan.tables.values())) <= PIECES
    for name, held in plan.tables.items():
        table = tables[name]
        placement = placement_of(held, (table["rows"], table["dim"]), topology["hosts"])
        table["kind"], table["words"] = placement.kind, placement.words
        table["ranks"], table["num_pieces"] = list(placement.ranks), len(held)
        table["pieces"] = [_piece(*item) for item in held.items()] if listed else []
        table["tier"] = plan.tiers.get(name, "") or topology["tiers"][0]["name"]
        _add_costs(table, estimate.tables[name])


def step_part(estimate: Estimate) -> StepPart:
    """What a step takes, and why."""
    path = [Phase(name=b.name, seconds=b.seconds, bound=b.who) for b in estimate.path]
    longest = max(path, key=lambda phase: phase["seconds"])
    share = longest["seconds"] / estimate.step_seconds
    return StepPart(
        seconds=estimate.step_seconds,
        samples_per_second=estimate.samples_per_second,
        bound=f"{longest['name']} of {longest['bound']} ({share:.0%} of the step)",
        path=path,
    )


def moves_part(
    name: str,
    before: ShardingPlan,
    after: ShardingPlan,
    workload: Workload,
    topology: Topology,
    old_seconds: float | None = None,
) -> MovesPart:
    """What travels from the plan `before`, called `name`. old_seconds: of its step, None if it cannot be."""
    pieces = moves(before, after, workload)
    return MovesPart(
        before=name,
        bytes=bytes_of(pieces),
        seconds=seconds_of(pieces, topology),
        moves=[_move(piece) for piece in pieces[:_MOVES]],
        num_moves=len(pieces),
        step_seconds_before=old_seconds,
    )


def _workload(about: About, workload: Workload) -> WorkloadPart:
    tables = workload.tables
    return WorkloadPart(
        source=about.source,
        batch_size=workload.batch_size,
        num_tables=len(tables),
        rows=sum(table.rows for table in tables),
        table_bytes=sum(table.rows * table.dim * table.item_bytes for table in tables),
        ids=sum(table.mean_length for table in tables),
        optimizer=workload.optimizer.name,
        forward=workload.forward,
        backward=workload.backward,
        dense_parameters=workload.dense.parameters,
        dense_flops=workload.dense.flops,
        statistics=about.statistics,
        fingerprint=workload.fingerprint(),
    )


def _topology(about: About, topology: Topology, ranks: int) -> TopologyPart:
    """Of the first `ranks`, for which the plan is."""
    return TopologyPart(
        name=topology.name,
        source=about.topology_source,
        num_ranks=ranks,
        hosts=list(topology.hosts_of_ranks[:ranks]),
        devices=[topology.hosts[kind].device for kind in topology.kinds_of_ranks[:ranks]],
        tiers=[
            TierPart(name=name, limit_bytes=_listed(topology.tier_bytes(name)[:ranks]), used_bytes=[])
            for name in topology.tier_names
        ],
    )


def _table(table: Table) -> TablePart:
    return TablePart(
        name=table.name,
        rows=table.rows,
        dim=table.dim,
        data_type=table.data_type,
        table_bytes=table.rows * table.dim * table.item_bytes,
        features=[feature.name for feature in table.features],
        ids=table.mean_length,
        curve=_curve(table.frequencies),
    )


def _curve(frequencies: Frequencies) -> Curve:
    """Share of the ids that the hottest rows get, at points of like ratio."""
    inner = np.unique(np.rint(np.geomspace(1, max(1.0, frequencies.rows), _POINTS)))
    rows = np.concatenate([[0.0], inner])
    return Curve(rows=_listed(rows), share=_listed(frequencies.hottest(rows)), ordered=frequencies.ordered)


def _ranks(estimate: Estimate, hosts: Sequence[int]) -> RanksPart:
    many = len(hosts) > _MOST_RANKS
    traffic = _by_host(estimate.traffic, hosts) if many else estimate.traffic
    return RanksPart(
        stages=_lists(estimate.stages),
        memory=_lists(estimate.memory),
        traffic=traffic.tolist(),
        traffic_of="hosts" if many else "ranks",
    )


def _by_host(traffic: Numbers, hosts: Sequence[int]) -> Numbers:
    """(W, W) between ranks -> (H, H) between hosts."""
    homes: Numbers = (np.array(hosts)[:, None] == np.arange(max(hosts) + 1)).astype(np.float64)
    found: Numbers = homes.T @ traffic @ homes
    return found


def _add_costs(table: TablePart, estimate: TableEstimate) -> None:
    table["stages"], table["seconds"] = dict(estimate.stages), estimate.seconds
    table["memory_bytes"] = estimate.rows_bytes + estimate.state_bytes
    table["sent_bytes"] = estimate.sent_bytes
    table["imbalance"], table["hits"] = estimate.imbalance, estimate.hits


def _piece(rectangle: tuple[tuple[int, int], tuple[int, int]], ranks: Sequence[int]) -> Piece:
    return Piece(rows=rectangle[0], cols=rectangle[1], ranks=list(ranks))


def _move(piece: MovedPiece) -> MovePart:
    move = piece.move
    return MovePart(
        table=move.table,
        rows=move.rows,
        cols=move.cols,
        before=list(move.before),
        after=list(move.after),
        bytes=piece.bytes * piece.copies,
    )


def _lists(by_name: Mapping[str, Numbers]) -> dict[str, list[float]]:
    return {name: _listed(values) for name, values in by_name.items()}


def _listed(values: Iterable[float]) -> list[float]:
    return [float(value) for value in values]
