"""All that may be done with one table: every kind of sharding, at several counts and shares, in every tier.

An option says which rectangles there are, not where: pieces go to ranks of their own when plans are put
together. What lies on every rank is said apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import Rectangle, Shard, even_cut
from tesserec.sharding.planner.constraints import KINDS, ParameterConstraints, allowed_ranks
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.workload import Table, Workload

Cuts = npt.NDArray[np.int64]  # rising, from 0 to all

HOT_SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)  # of the ids, to rows that every rank has
_MIN_WIDTH = 4  # columns of a piece, unless constraints say otherwise
_EVEN = 1.1  # spans of rows are cut by work where the busiest of even ones has so many times the mean
_EXACT_COUNTS = 8  # all numbers of pieces up to here, powers of two beyond
_MANY = 64  # ranks, of more only some counts


@dataclass(frozen=True, eq=False)
class ShardingOption:
    """One way to shard a table.

    pieces:     (P, 4) first and last row and column of each rectangle that one rank holds, any rank.
    groups:     (P,) pieces of one group share a host, those of different groups do not; all -1: anywhere.
    everywhere: rectangles that every rank holds.
    home:       where the pieces are now, if they have a place; then `holders` and `beside` may say of each
                how many ranks hold it, and the share of the others in its host, as `traffic.Pieces` has it.
    """

    table: str
    kind: str
    tier: str
    pieces: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    everywhere: tuple[Rectangle, ...] = ()
    home: tuple[int, ...] | None = None
    holders: npt.NDArray[np.float64] | None = None
    beside: npt.NDArray[np.float64] | None = None

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for options that are the same but for the word."""
        return self.tier, hash(self.pieces.tobytes()), hash(self.groups.tobytes()), self.everywhere, self.home

    def shards(self, ranks: Sequence[int], num_ranks: int) -> Iterator[Shard]:
        """The shards, with each piece on its rank."""
        for rows, cols in self.everywhere:
            for rank in range(num_ranks):
                yield Shard(self.table, rows, cols, rank)
        for (top, bottom, left, right), rank in zip(self.pieces.tolist(), ranks, strict=True):
            yield Shard(self.table, (top, bottom), (left, right), int(rank))

    def __str__(self) -> str:
        """`row_wise, 8 pieces in hbm`."""
        hot = sum(rows[1] - rows[0] for rows, _ in self.everywhere)
        count = len(self.pieces)
        words = f"{self.kind}, {count} pieces" if count > 1 else self.kind
        return f"{words}{f', {hot:,} hot rows' if self.kind == 'hot_cold' else ''}, in {self.tier}"


def enumerate_options(
    table: Table, workload: Workload, topology: Topology, asked: ParameterConstraints
) -> list[ShardingOption]:
    """The options of a table that its constraints allow, whether they fit or not. Empty if there is none.

    Where there are groups of replicas, for the ranks of the first.
    """
    made = _Options(table, workload, topology, asked)
    found: dict[tuple[object, ...], ShardingOption] = {}
    for kind in KINDS:
        if asked.kinds is None or kind in asked.kinds:
            for option in made.of(kind):
                if (asked.min_pieces or 0) <= len(option.pieces) <= (asked.max_pieces or len(option.pieces)):
                    found.setdefault(option.key, option)
    tiers = [tier for tier in topology.tier_names if asked.tiers is None or tier in asked.tiers]
    few = made.num_ranks > _MANY and len(tiers) > 1  # there columns are cut only in the fastest
    return [
        replace(option, tier=tier)
        for k, tier in enumerate(tiers)
        for option in found.values()
        if not few or k == 0 or ("column" not in option.kind and option.kind != "grid_shard")
    ]


class _Options:
    """The options of one table, by kind."""

    def __init__(self, table: Table, workload: Workload, topology: Topology, asked: ParameterConstraints):
        self.table, self.tier = table, topology.tier_names[0]
        every = topology.num_ranks // workload.replica_groups
        ranks = [rank for rank in allowed_ranks(asked, topology) if rank < every]
        homes = [topology.hosts_of_ranks[rank] for rank in ranks]
        self.num_ranks, self.num_hosts = len(ranks), len(set(homes))
        self.per_host = max((homes.count(host) for host in set(homes)), default=0)
        self.everywhere = self.num_ranks == every and (asked.max_replicas or every) >= every
        self.width = asked.min_width or min(_MIN_WIDTH, table.dim)
        # where columns tell each other, it counts whether they share a host
        self.scopes = workload.optimizer.whole_rows and self.num_hosts > 1

    def of(self, kind: str) -> Iterator[ShardingOption]:
        """Those of a kind."""
        match kind:
            case "data_parallel":
                if self.everywhere and self.num_ranks > 1:
                    yield self._option(kind, np.empty((0, 4), np.int64), everywhere=((0, self.table.rows),))
            case "table_wise":
                yield self._option(kind, _grid([0, self.table.rows], [0, self.table.dim]))
            case "row_wise":
                for count in _counts(min(self.num_ranks, self.table.rows), self.per_host):
                    for cuts in self._cuts(count):
                        yield self._option(kind, _grid(cuts, [0, self.table.dim]))
            case "column_wise":
                for count in _counts(min(self.num_ranks, self.table.dim // self.width), self.per_host):
                    yield from self._columns(kind, count)
            case "table_row_wise":
                if 1 < self.per_host <= self.table.rows:
                    for cuts in self._cuts(self.per_host):
                        yield self._inside(kind, _grid(cuts, [0, self.table.dim]))
            case "table_column_wise":
                if 1 < self.per_host <= self.table.dim // self.width:
                    yield self._inside(kind, _grid([0, self.table.rows], _cut(self.table.dim, self.per_host)))
            case "grid_shard":
                yield from self._grids()
            case _:
                if self.everywhere and self.num_ranks > 1:
                    yield from self._hot_cold()

    def _option(
        self,
        kind: str,
        pieces: npt.NDArray[np.int64],
        groups: npt.NDArray[np.int64] | None = None,
        everywhere: tuple[tuple[int, int], ...] = (),
    ) -> ShardingOption:
        anywhere = np.full(len(pieces), -1)
        held = tuple((rows, (0, self.table.dim)) for rows in everywhere)
        groups = anywhere if groups is None or self.num_hosts == 1 else groups
        return ShardingOption(self.table.name, kind, self.tier, pieces.astype(np.int64), groups, held)

    def _inside(self, kind: str, pieces: npt.NDArray[np.int64]) -> ShardingOption:
        """All pieces on one host."""
        return self._option(kind, pieces, np.zeros(len(pieces), np.int64))

    def _columns(self, kind: str, count: int) -> Iterator[ShardingOption]:
        pieces = _grid([0, self.table.rows], _cut(self.table.dim, count))
        if not self.scopes:
            yield self._option(kind, pieces)
            return
        if count <= self.per_host:
            yield self._inside(kind, pieces)
        if count <= self.num_hosts:
            yield self._option(kind, pieces, np.arange(count))

    def _grids(self) -> Iterator[ShardingOption]:
        """Columns on one host with their rows, or each column's rows on a host of its own."""
        most = min(self.num_ranks, self.table.dim // self.width)
        for width in _some_counts(most, self.num_ranks):
            for height in _some_counts(min(self.num_ranks // width, self.table.rows), self.num_ranks):
                pieces = _grid(_cut(self.table.rows, height), _cut(self.table.dim, width))
                if not self.scopes:
                    yield self._option("grid_shard", pieces)
                    continue
                if width * height <= self.per_host:
                    yield self._inside("grid_shard", pieces)
                if height <= self.per_host and width <= self.num_hosts:
                    columns = pieces[np.argsort(pieces[:, 2], kind="stable")]
                    yield self._option("grid_shard", columns, np.repeat(np.arange(width), height))

    def _hot_cold(self) -> Iterator[ShardingOption]:
        """Rows that get a share of the ids on every rank, the others in spans of even size, or even work."""
        table, ids = self.table, self.table.frequencies
        if not ids.ordered:
            return
        tops = {round(float(ids.rows_for(share))): share for share in HOT_SHARES}
        for hot in (hot for hot in tops if 0 < hot < table.rows):
            for count in (1, *_counts(min(self.num_ranks, table.rows - hot), self.per_host)):
                even = hot + _cut(table.rows - hot, count)
                for cuts in (even, *self._by_work(even)):
                    yield self._option("hot_cold", _grid(cuts, [0, table.dim]), everywhere=((0, hot),))

    def _cuts(self, count: int) -> Iterator[Cuts]:
        even = _cut(self.table.rows, count)
        yield from (even, *self._by_work(even))

    def _by_work(self, even: Cuts) -> Iterator[Cuts]:
        """The same span of rows cut so that each part gets as many ids, unless even parts nearly do."""
        ids, count = self.table.frequencies, len(even) - 1
        shares = ids.share(even[:-1], even[1:])
        if count == 1 or shares.max() * count <= _EVEN * shares.sum():
            return
        at = ids.share(0, even[0]) + shares.sum() * np.arange(count + 1) / count
        cuts = np.rint(ids.row_at(np.minimum(at, 1.0))).astype(np.int64)
        cuts[0], cuts[-1] = even[0], even[-1]
        steps = np.arange(count + 1)
        cuts = np.maximum.accumulate(cuts - steps) + steps  # a row each, at least
        yield np.minimum(cuts, even[-1] - count + steps)


def _counts(most: int, per_host: int) -> list[int]:
    """Numbers of pieces from 2 to `most`: of many ranks fewer."""
    if most <= _MANY:
        some = {*range(2, _EXACT_COUNTS + 1), *(1 << k for k in range(1, 7)), per_host, most}
    else:
        some = {2, *(4**k for k in range(1, 16)), per_host, most}
    return sorted(count for count in some if 2 <= count <= most)


def _some_counts(most: int, ranks: int) -> list[int]:
    """Of a grid's rows or columns."""
    return [1 << k for k in range(1, 7 if ranks <= _MANY else 4) if 1 << k <= most]


def _cut(extent: int, parts: int) -> Cuts:
    return np.array([0, *(hi for _, hi in even_cut(extent, parts))], np.int64)


def _grid(rows: Sequence[int] | Cuts, cols: Sequence[int] | Cuts) -> npt.NDArray[np.int64]:
    """(P, 4) the rectangles between cuts of rows and of columns."""
    rows, cols = np.asarray(rows), np.asarray(cols)
    made = np.empty((len(rows) - 1, len(cols) - 1, 4), np.int64)
    made[:, :, 0], made[:, :, 1] = rows[:-1, None], rows[1:, None]
    made[:, :, 2], made[:, :, 3] = cols[:-1], cols[1:]
    return made.reshape(-1, 4)
