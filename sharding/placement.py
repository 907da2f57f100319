"""A plan from a word for each table: which kind of sharding it gets, and a simple balance by size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from tesserec.sharding.plan import (
    PlanError,
    Shape,
    Shard,
    ShardingPlan,
    column_wise,
    data_parallel,
    grid_shard,
    hot_cold,
    row_wise,
    table_column_wise,
    table_row_wise,
    table_wise,
)

Kind = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
    "hot_cold",
]
KINDS: tuple[str, ...] = ("auto", *get_args(Kind))
SMALL = 1 << 18  # elements, 1 MiB of float32: what is replicated rather than asked for over the wire


def make_plan(
    tables: Mapping[str, Shape],
    num_ranks: int,
    kinds: Mapping[str, str] | None = None,
    default: str = "auto",
    hosts: Sequence[int] | None = None,
) -> ShardingPlan:
    """A plan for {table: (R, D)}: each table is sharded as `kinds` says, or as `default`.

    kinds: {name or pattern: kind}; a table's own name ("C1") stands for its full one ("inputs.vectors.C1"),
    patterns are those of file names ("C1*"), the first that fits counts, full names before all. A kind is one
    of `KINDS`; a number may follow: "table_wise:3" (rank), "table_row_wise:1" (host), "hot_cold:5000" (rows).
    "auto": tables of at most 1 MiB on every rank, those larger than a rank's even share in rows over all
    ranks, others whole on one rank. Largest tables first, whatever is free to go anywhere goes where least
    is. hosts: the host of each rank, `Comm.hosts`; one host unless given.
    """
    chosen = _kinds(tables, kinds or {}, default)
    place = _Placement([0] * num_ranks, list(hosts or [0] * num_ranks), _elements(tables) / num_ranks)
    shards: dict[str, tuple[Shard, ...]] = {}
    for table in sorted(tables, key=lambda name: -math.prod(tables[name])):
        shards[table] = place(table, tables[table], chosen[table])
    plan = ShardingPlan(tuple(shard for table in tables for shard in shards[table]), num_ranks)
    plan.check(tables)
    return plan


class _Placement:
    """Kinds to shards; `load` counts the elements that each rank has been given."""

    def __init__(self, load: list[int], hosts: list[int], share: float):
        self.load, self.hosts, self.share = load, hosts, share

    def __call__(self, table: str, shape: Shape, kind: str) -> tuple[Shard, ...]:
        shards = self._shards(table, shape, kind)
        for shard in shards:
            self.load[shard.rank] += shard.size
        return shards

    def _shards(self, table: str, shape: Shape, kind: str) -> tuple[Shard, ...]:
        name, number = _parsed(table, kind)
        everywhere = range(len(self.load))
        match self._auto(shape) if name == "auto" else name:
            case "data_parallel":
                return data_parallel(table, shape, everywhere)
            case "row_wise":
                return row_wise(table, shape, everywhere)
            case "column_wise":
                return column_wise(table, shape, everywhere)
            case "table_wise":
                return table_wise(table, shape, self._rank(table, number))
            case "table_row_wise":
                return table_row_wise(table, shape, self._host(number), self.hosts)
            case "table_column_wise":
                return table_column_wise(table, shape, self._host(number), self.hosts)
            case "hot_cold":
                hot = min(shape[0], max(1, SMALL // shape[1]) if number is None else number)
                return hot_cold(table, shape, hot, everywhere)
            case _:
                return grid_shard(table, shape, self._grid())

    def _auto(self, shape: Shape) -> str:
        size = math.prod(shape)
        if size <= SMALL:
            return "data_parallel"
        return "row_wise" if size > self.share else "table_wise"

    def _rank(self, table: str, number: int | None) -> int:
        if number is not None and number >= len(self.load):
            raise PlanError(f"table {table!r}: rank {number}: ranks are 0 to {len(self.load) - 1}")
        return self.load.index(min(self.load)) if number is None else number

    def _host(self, number: int | None) -> int:
        if number is not None:
            return number
        loads = dict.fromkeys(self.hosts, 0)
        for host, load in zip(self.hosts, self.load, strict=True):
            loads[host] += load
        return min(loads, key=loads.__getitem__)

    def _grid(self) -> list[list[int]]:
        """Columns over hosts, rows over the ranks of each; on one host, or uneven ones, nearly a square."""
        hosts = sorted(set(self.hosts))
        lines = [[rank for rank, where in enumerate(self.hosts) if where == host] for host in hosts]
        n = len(self.load)
        if len(lines) == 1 or len({len(line) for line in lines}) > 1:
            width = max(w for w in range(1, math.isqrt(n) + 1) if n % w == 0)
            return [list(range(lo, lo + width)) for lo in range(0, n, width)]
        return [list(column) for column in zip(*lines, strict=True)]


def _elements(tables: Mapping[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in tables.values())


def _kinds(tables: Mapping[str, Shape], kinds: Mapping[str, str], default: str) -> dict[str, str]:
    fitting = {
        pattern: [t for t in tables if fnmatchcase(t, pattern) or fnmatchcase(t, f"*.{pattern}")]
        for pattern in kinds
    }
    for pattern, found in fitting.items():
        if not found:
            raise PlanError(f"sharding of {pattern!r}: no such table; the model has {', '.join(tables)}")
    chosen = dict.fromkeys(tables, default)
    for pattern, found in reversed(fitting.items()):
        chosen |= dict.fromkeys(found, kinds[pattern])
    return chosen | {table: kinds[table] for table in tables if table in kinds}


def _parsed(table: str, kind: str) -> tuple[str, int | None]:
    name, colon, number = kind.partition(":")
    numbered = name in ("table_wise", "table_row_wise", "table_column_wise", "hot_cold")
    if name not in KINDS or (colon and not (numbered and number.isdecimal())):
        raise PlanError(f"table {table!r}: sharding {kind!r}: wanted one of {', '.join(KINDS)}")
    return name, int(number) if colon else None
