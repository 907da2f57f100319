"""What has to travel from one plan to another, in bytes, and how long that takes over the links."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import Move, ShardingPlan, area
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Workload


@dataclass(frozen=True)
class MovedPiece:
    """A piece that other ranks will hold, rows and state. bytes: that travel, to each rank that lacks it.

    New rows, that no rank has, do not travel.
    """

    move: Move
    bytes: float

    @property
    def ways(self) -> Iterator[tuple[int, int]]:
        """(from, to) of each copy that travels: from the holders in turn."""
        new = [rank for rank in self.move.after if rank not in self.move.before]
        for i, rank in enumerate(new if self.move.before else ()):
            yield self.move.before[i % len(self.move.before)], rank

    @property
    def copies(self) -> int:
        return sum(1 for _ in self.ways)


def moves(before: ShardingPlan, after: ShardingPlan, workload: Workload) -> list[MovedPiece]:
    """The pieces that travel, most bytes first."""
    found = [MovedPiece(move, piece_bytes(move, workload)) for move in before.diff(after)]
    kept = [piece for piece in found if piece.copies]
    return sorted(kept, key=lambda piece: (-piece.bytes * piece.copies, piece.move.table, piece.move.rows))


def piece_bytes(move: Move, workload: Workload) -> float:
    """Rows and optimizer state of one copy; 0 for a table that the workload lacks."""
    table = workload.by_name.get(move.table)
    if table is None:
        return 0.0
    width, height = move.cols[1] - move.cols[0], move.rows[1] - move.rows[0]
    state = float(workload.optimizer.row_bytes(width, table.compute_bytes))
    return area((move.rows, move.cols)) * table.item_bytes + height * state


def bytes_of(pieces: Iterable[MovedPiece]) -> float:
    """That travel in all."""
    return sum(piece.bytes * piece.copies for piece in pieces)


def seconds_of(pieces: Iterable[MovedPiece], topology: Topology) -> float:
    """Of all moves at once: of the busiest link, of those inside hosts and those beyond."""
    ranks = topology.num_ranks
    inside, network = np.zeros((2, ranks)), np.zeros((2, ranks))
    for piece in pieces:
        for a, b in piece.ways:
            if max(a, b) < ranks:
                link = inside if topology.hosts_of_ranks[a] == topology.hosts_of_ranks[b] else network
                link[0, a] += piece.bytes
                link[1, b] += piece.bytes
    return max(_seconds(inside, topology, True), _seconds(network, topology, False))


def _seconds(amounts: npt.NDArray[np.float64], topology: Topology, inside: bool) -> float:
    busiest = 0.0
    for rank in np.flatnonzero(amounts.max(axis=0)):
        link = topology.host_of(int(rank)).inside if inside else topology.network
        if link is not None:
            speed = link.bandwidth * link.share / link.ranks_per_port
            busiest = max(busiest, link.latency + float(amounts[:, rank].max()) / speed)
    return busiest
