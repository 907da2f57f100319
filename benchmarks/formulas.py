"""What a step of a plan costs on paper: bytes for each rank and link, then seconds. docs/scale.md explains.

Ids are taken to be uniform and independent, the worst case for what is touched: skewed ones touch fewer
row spans and fewer distinct rows. Every rank has the same share of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import Shard, ShardingPlan

Bytes = npt.NDArray[np.float64]  # one number for each rank

SORT_BYTES = 64  # of memory traffic per id, for grouping a batch's ids by row: 8 bytes, 4 passes, in and out


@dataclass(frozen=True)
class Cluster:
    """Equal hosts of equal ranks. Speeds: bytes per second, one direction; shares: what one gets of them."""

    hosts: int
    ranks_per_host: int
    memory: float  # bytes of a rank
    memory_speed: float  # of a rank
    inside: float  # of a rank, to the others of its host
    network: float  # of a link between hosts
    flops: float  # of a rank
    ranks_per_link: int = 1
    latency: float = 20e-6  # seconds of one exchange of nothing
    access: int = 64  # bytes that memory moves at least
    row_share: float = 1.0
    wire_share: float = 1.0
    flop_share: float = 1.0

    @property
    def ranks(self) -> int:
        return self.hosts * self.ranks_per_host


@dataclass(frozen=True)
class Workload:
    """rows, lengths: of each table, {name: rows}, {name: ids in a bag}; samples: of a rank's batch."""

    rows: dict[str, int]
    lengths: dict[str, float]
    dim: int
    samples: int
    item_bytes: int = 4
    state_bytes: int = 4  # of a row, by its optimizer: row-wise Adagrad
    wire_bytes: float = 4.0  # of a number of a vector or a gradient on its way
    whole_rows: bool = True  # the row optimizer looks at whole rows, as row-wise Adagrad does
    dense_flops: float = 0.0  # of a sample, forward
    dense_parameters: int = 0


class Way:
    """Bytes between ranks, (2, W): leaving and reaching each, `inside` its host and over the `network`."""

    def __init__(self, ranks: int):
        self.inside, self.network = np.zeros((2, ranks)), np.zeros((2, ranks))

    def seconds(self, cluster: Cluster) -> float:
        """The busiest rank's and link's time; both kinds of link work at once."""
        inside = float(self.inside.max()) / cluster.inside
        network = float(per_link(self.network, cluster).max()) / cluster.network
        return cluster.latency + max(inside, network) / cluster.wire_share


@dataclass(frozen=True)
class Step:
    """What a step moves. ids … columns: between ranks; the rest by rank."""

    ids: Way
    vectors: Way
    gradients: Way
    replicas: Way  # sums of the gradients of touched rows, to the others that hold them
    columns: Way  # the same, to those that hold other columns of these rows
    lookup: Bytes  # memory traffic of reading rows
    update: Bytes
    held: Bytes


def touched(length: float, share: float) -> float:
    """The chance that a bag of `length` ids has one in a `share` of the rows."""
    return float(1 - (1 - share) ** length)


def id_bytes(rows: int) -> int:
    """Of an id on its way: the narrowest of 1, 2, 4 that holds it."""
    return 1 if rows <= 1 << 8 else 2 if rows <= 1 << 16 else 4


def step(plan: ShardingPlan, work: Workload, cluster: Cluster) -> Step:
    """The bytes of one step of `plan`."""
    ranks = cluster.ranks
    ways, amounts = [Way(ranks) for _ in range(5)], [np.zeros(ranks) for _ in range(3)]
    made = Step(ways[0], ways[1], ways[2], ways[3], ways[4], *amounts)
    asked, answered = np.zeros(ranks), np.zeros(ranks)
    for shard in plan.shards:
        holders = len(plan.replicas(shard))
        length, share = work.lengths[shard.table], _row_share(shard, work)
        bags = work.samples * ranks / holders  # which this holder answers for
        hit, ids = bags * touched(length, share), bags * length * share
        for total, amount in zip(amounts, _memory(shard, ids, work, cluster), strict=True):
            total[shard.rank] += amount
        abroad = 1 - holders / ranks  # the part that is not asked by itself
        count = 1 if length > 1 else 0  # bytes of a bag's length
        asked[shard.rank] += abroad * (ids * id_bytes(_rows(shard)) + hit * count)
        answered[shard.rank] += abroad * hit * _width(shard) * work.wire_bytes
        if holders > 1:
            told = told_rows(holders, ids, _rows(shard))
            _spread(made.replicas, shard.rank, told * (4 + 4 * _width(shard)), cluster)
        if _width(shard) < work.dim and work.whole_rows:
            _tell_siblings(
                made.columns, plan, shard, 4 * _width(shard) * distinct(ids, _rows(shard)), cluster
            )
    for rank in range(ranks):
        _collect(made.ids, rank, asked[rank], cluster)
        _spread(made.vectors, rank, answered[rank], cluster)
        _collect(made.gradients, rank, answered[rank], cluster)
    return made


def seconds(made: Step, work: Workload, cluster: Cluster) -> dict[str, float]:
    """{stage: seconds}; "step" is their sum, less what goes on while the dense part is computed.

    Hidden are the ids of the next batch and the sum of dense gradients, as far as the dense part lasts.
    "flat": the step where dense gradients are summed over all ranks at once.
    """
    speed = cluster.memory_speed * cluster.row_share
    spent = {
        "ids": made.ids.seconds(cluster),
        "lookup": float(made.lookup.max() / speed),
        "vectors": made.vectors.seconds(cluster),
        "dense": 3 * work.dense_flops * work.samples / (cluster.flops * cluster.flop_share),
        "all_reduce": all_reduce_seconds(work, cluster),
        "gradients": made.gradients.seconds(cluster) + made.replicas.seconds(cluster) - cluster.latency,
        "columns": made.columns.seconds(cluster),
        "update": float(made.update.max() / speed),
    }
    flat = {**spent, "all_reduce": flat_all_reduce_seconds(work, cluster)}
    return {**spent, "step": _overlapped(spent), "flat": _overlapped(flat)}


def _overlapped(spent: dict[str, float]) -> float:
    return sum(spent.values()) - min(spent["dense"], spent["ids"] + spent["all_reduce"])


def all_reduce_seconds(work: Workload, cluster: Cluster) -> float:
    """Sum of dense gradients: within hosts, between the ranks of one place on each host, and back."""
    size, hosts, each = 4 * work.dense_parameters, cluster.hosts, cluster.ranks_per_host
    inside = 2 * size * (1 - 1 / each) / cluster.inside
    network = 2 * size / each * (1 - 1 / hosts) * cluster.ranks_per_link / cluster.network
    return 4 * cluster.latency + (inside + network) / cluster.wire_share


def flat_all_reduce_seconds(work: Workload, cluster: Cluster) -> float:
    """The same by a reduce-scatter and an all-gather over all ranks at once: what waits for the links."""
    size, ranks, each = 4 * work.dense_parameters, cluster.ranks, cluster.ranks_per_host
    network = 2 * size * (1 - each / ranks) * cluster.ranks_per_link / cluster.network
    inside = 2 * size * (each - 1) / ranks / cluster.inside
    return 2 * cluster.latency + max(inside, network) / cluster.wire_share


def memory(made: Step, work: Workload, cluster: Cluster) -> float:
    """Bytes of the fullest rank: rows, state, vectors of two batches, gradients of one, the dense part."""
    vectors = work.samples * len(work.rows) * work.dim * 4
    dense = 4 * 4 * work.dense_parameters  # weight, gradient, two numbers of an optimizer
    return float(made.held.max()) + 3 * vectors + dense


def distinct(ids: float, rows: int) -> float:
    """Expected number of distinct rows among `ids` uniform ones."""
    return float(-rows * np.expm1(-ids / rows))


def told_rows(holders: int, ids: float, rows: int) -> float:
    """Rows that one of the holders of a rectangle sends to others: what it touched to all of them.

    Or, where that is less, to one for each row, which sums, and tells all.
    """
    mine, all_of_them = distinct(ids, rows), distinct(ids * holders, rows)
    return min((holders - 1) * mine, (1 - 1 / holders) * mine + (holders - 1) / holders * all_of_them)


def per_link(amounts: Bytes, cluster: Cluster) -> Bytes:
    """(2, ranks) to (2, links)."""
    summed: Bytes = amounts.reshape(len(amounts), -1, cluster.ranks_per_link).sum(2)
    return summed


def _memory(shard: Shard, ids: float, work: Workload, cluster: Cluster) -> tuple[float, float, float]:
    """Memory traffic of looking up and of updating, and bytes held, of one shard."""
    width, rows = _width(shard), _rows(shard)
    row = max(cluster.access, width * work.item_bytes)
    update = ids * (SORT_BYTES + 4 * width) + 2 * distinct(ids, rows) * (row + cluster.access)
    return ids * row, update, rows * (width * work.item_bytes + work.state_bytes)


def _spread(way: Way, rank: int, amount: float, cluster: Cluster) -> None:
    """`rank` sends `amount` in even parts to all the others."""
    ranks, per_host = cluster.ranks, cluster.ranks_per_host
    each, first = amount / max(ranks - 1, 1), rank // per_host * per_host
    way.inside[0, rank] += each * (per_host - 1)
    way.inside[1, first : first + per_host] += each
    way.inside[1, rank] -= each
    way.network[0, rank] += each * (ranks - per_host)
    way.network[1, :first] += each
    way.network[1, first + per_host :] += each


def _tell_siblings(way: Way, plan: ShardingPlan, shard: Shard, amount: float, cluster: Cluster) -> None:
    """`amount` to each rank that holds other columns of the shard's rows."""
    for (rows, cols), ranks in plan.rectangles(shard.table).items():
        if rows == shard.rows and cols != shard.cols:
            for rank in ranks:
                here = rank // cluster.ranks_per_host == shard.rank // cluster.ranks_per_host
                link = way.inside if here else way.network
                link[0, shard.rank] += amount
                link[1, rank] += amount


def _collect(way: Way, rank: int, amount: float, cluster: Cluster) -> None:
    """All the others send `rank` even parts of `amount`."""
    back = Way(cluster.ranks)
    _spread(back, rank, amount, cluster)
    way.inside += back.inside[::-1]
    way.network += back.network[::-1]


def _rows(shard: Shard) -> int:
    return shard.rows[1] - shard.rows[0]


def _width(shard: Shard) -> int:
    return shard.cols[1] - shard.cols[0]


def _row_share(shard: Shard, work: Workload) -> float:
    return _rows(shard) / work.rows[shard.table]
