"""Exchanges: the bytes of a step from rank to rank, of all pieces of a plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tesserec.sharding.comm import SMALL
from tesserec.sharding.plan import Rectangle, ShardingPlan, server
from tesserec.sharding.planner.traffic import WIRE_COUNTS, Traffic
from tesserec.sharding.planner.workload import Dense, Table

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

EXCHANGES = ("ids", "vectors", "gradients", "replicas", "columns", "reduction")


@dataclass(frozen=True, eq=False)
class Placed:
    """The n rectangles of a table in a plan: rows, cols (n, 2), counts (n,) of holders, beside (n,).

    ranks, which: (S,) the rank of each shard, and the number of its rectangle. See `traffic.Pieces`.
    """

    table: Table
    rows: Numbers
    cols: Numbers
    counts: Numbers
    beside: Numbers
    ranks: Integers
    which: Integers

    @classmethod
    def of(cls, table: Table, plan: ShardingPlan, hosts: Integers) -> Placed:
        """hosts: of each rank."""
        held = plan.rectangles(table.name)
        spans = np.array(list(held), np.float64)
        counts = np.array([len(ranks) for ranks in held.values()])
        ranks = np.array([rank for holders in held.values() for rank in holders], np.int64)
        which = np.repeat(np.arange(len(counts)), counts)
        beside = _beside(table, held, hosts)
        return cls(table, spans[:, 0], spans[:, 1], counts.astype(np.float64), beside, ranks, which)

    def holders(self, piece: int) -> Integers:
        """The ranks that hold the rectangle, rising."""
        first = int(np.searchsorted(self.which, piece))
        return self.ranks[first : first + int(self.counts[piece])]


class Exchanges:
    """{exchange: (W, W) bytes from rank to rank}, added up table by table.

    Of what all ranks send alike to a rank, or it to them, only the sums by rank are kept until the end.
    """

    def __init__(self, ranks: int, dense: Dense, world: int):
        """ranks: that share the plan; world: that share the dense parameters."""
        self.ranks = ranks
        self.to_holder = {name: np.zeros(ranks) for name in ("ids", "gradients")}
        self.from_holder = np.zeros(ranks)
        self.of_all = 0.0  # that each rank tells each other about what all of them hold
        self.pairs = {name: np.zeros((ranks, ranks)) for name in EXCHANGES}
        if world > 1:
            self.pairs["reduction"] += _reduced(dense, world)

    def add(self, placed: Placed, traffic: Traffic) -> None:
        """Add what a table costs."""
        alone = placed.counts == 1
        ids = traffic.asked.id_bytes + WIRE_COUNTS * traffic.asked.wires
        mine = alone[placed.which]
        ranks, which = placed.ranks[mine], placed.which[mine]
        np.add.at(self.to_holder["ids"], ranks, ids[which])
        np.add.at(self.to_holder["gradients"], ranks, traffic.grad_bytes[which])
        np.add.at(self.from_holder, ranks, traffic.vector_bytes[which])
        everywhere = (placed.counts == self.ranks) & ~alone & ~traffic.raw
        self.of_all += float(traffic.told_bytes[everywhere].sum()) / max(self.ranks - 1, 1)
        for piece in np.flatnonzero(~alone & ~everywhere).tolist():
            self._add_replicas(placed.holders(piece), piece, float(ids[piece]), traffic)
        if traffic.workload.optimizer.whole_rows and traffic.pieces.is_split.any():
            self._add_columns(placed, traffic)

    def matrices(self) -> dict[str, Numbers]:
        """{exchange: (W, W)}; nothing on the diagonals."""
        found = {name: matrix.copy() for name, matrix in self.pairs.items()}
        for name, amounts in self.to_holder.items():
            found[name] += amounts
        found["vectors"] += self.from_holder[:, None]
        found["replicas"] += self.of_all
        for matrix in found.values():
            np.fill_diagonal(matrix, 0)
        return found

    def _add_replicas(self, holders: Integers, piece: int, ids: float, traffic: Traffic) -> None:
        others = np.setdiff1d(np.arange(self.ranks), holders)
        asked = np.array([server(holders.tolist(), rank) for rank in others.tolist()], np.int64)
        vectors, grads = traffic.vector_bytes[piece], traffic.grad_bytes[piece]
        np.add.at(self.pairs["vectors"], (asked, others), vectors)
        if traffic.raw[piece]:
            for name, size in (("ids", ids), ("gradients", grads)):
                self.pairs[name][:, holders] += size
            return
        np.add.at(self.pairs["ids"], (others, asked), ids)
        np.add.at(self.pairs["gradients"], (others, asked), grads)
        each = traffic.told_bytes[piece] / (len(holders) - 1)
        self.pairs["replicas"][np.ix_(holders, holders)] += each

    def _add_columns(self, placed: Placed, traffic: Traffic) -> None:
        """Of each piece with some columns, what its first holder sends to those of the others."""
        told = traffic.workload.optimizer.told_slots * placed.table.compute_bytes
        size = traffic.rows_updated * traffic.pieces.width * told
        of_rows: dict[tuple[float, ...], list[int]] = {}
        for piece in np.flatnonzero(traffic.pieces.is_split).tolist():
            of_rows.setdefault(tuple(placed.rows[piece]), []).append(piece)
        for alike in of_rows.values():
            holders = [placed.holders(piece).tolist() for piece in alike]
            everyone = sorted({rank for ranks in holders for rank in ranks})
            if len(everyone) == len(alike) == sum(map(len, holders)):  # one each
                sources = [ranks[0] for ranks in holders]
                self.pairs["columns"][np.ix_(sources, everyone)] += size[alike][:, None]
                continue
            for piece, ranks in zip(alike, holders, strict=True):
                for target in set(everyone) - set(ranks):
                    self.pairs["columns"][server(ranks, target), target] += size[piece]


def sent_bytes(traffic: Traffic) -> float:
    """Bytes between ranks that the pieces of a table cost in a step."""
    n, asked = traffic.pieces.holders, traffic.asked
    ids = asked.id_bytes + WIRE_COUNTS * asked.wires + traffic.grad_bytes
    heard = np.where(traffic.raw, n * (traffic.ranks - 1), traffic.ranks - n) * ids
    answered = (traffic.ranks - n) * traffic.vector_bytes
    split = traffic.pieces.is_split & traffic.workload.optimizer.whole_rows
    return float((heard + answered + n * (traffic.told_bytes + traffic.column_bytes * split)).sum())


def _beside(table: Table, held: dict[Rectangle, list[int]], hosts: Integers) -> Numbers:
    """(n,) of the other holders of a rectangle, else of other columns of its rows, the share in its host."""
    found, of_rows = np.zeros(len(held)), dict[tuple[int, int], list[int]]()
    for (rows, cols), ranks in held.items():
        if len(ranks) == 1 and cols[1] - cols[0] < table.dim:
            of_rows.setdefault(rows, []).append(ranks[0])
    if not of_rows and max(map(len, held.values())) == 1:
        return found
    for k, ((rows, _), ranks) in enumerate(held.items()):
        if len(ranks) > 1:
            counts = np.bincount(hosts[ranks])
            found[k] = (counts * (counts - 1)).sum() / (len(ranks) * (len(ranks) - 1))
        elif rows in of_rows and len(of_rows[rows]) > 1:
            alike = hosts[of_rows[rows]] == hosts[ranks[0]]
            found[k] = (alike.sum() - 1) / (len(alike) - 1)
    return found


def _reduced(dense: Dense, world: int) -> float:
    """Bytes of dense gradients from each rank to each other: parts to be summed, and sums.

    Small arrays go to everyone whole, and everyone sums.
    """
    size = 4 * dense.parameters
    return size * (1.0 if size <= SMALL else 2 / world)
