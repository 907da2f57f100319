"""What a user asks of a plan, table by table: which kinds, ranks, tiers, and how much.

tables:
  "user*": {kinds: [row_wise, hot_cold], max_bytes: 20 GB}
  country: {ranks: [0, 1], tiers: [hbm]}
default: {min_width: 16}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, get_args

from annotated_types import Ge, Gt, MinLen

from tesserec.sharding.placement import Kind
from tesserec.sharding.plan import PlanError
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.units import Bytes

KINDS: tuple[str, ...] = get_args(Kind)
REPLICATED = ("data_parallel", "hot_cold")
STRICT = {"extra": "forbid", "allow_inf_nan": False}

Number = Annotated[int, Ge(0)]
Positive = Annotated[int, Gt(0)]


class ConstraintsError(PlanError):
    """Constraints that cannot be met. args: the message, then the path of the key that is wrong."""

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def key(self) -> tuple[str, ...]:
        """The path of the key."""
        return tuple(self.args[1:])


@dataclass(frozen=True)
class ParameterConstraints:
    """What one table may be; None for whatever there is.

    ranks, hosts: where its pieces may be, both if both are given. tiers: memory that its rows may lie in.
    min_width: columns of a piece, at least. min_pieces, max_pieces: that it is cut into, without replicas.
    max_replicas: ranks that hold the same rows. max_bytes: of rows and state of the table on any one rank.
    """

    __pydantic_config__ = STRICT

    kinds: Annotated[tuple[Kind, ...], MinLen(1)] | None = None
    ranks: Annotated[tuple[Number, ...], MinLen(1)] | None = None
    hosts: Annotated[tuple[Number, ...], MinLen(1)] | None = None
    tiers: Annotated[tuple[str, ...], MinLen(1)] | None = None
    min_width: Positive | None = None
    min_pieces: Positive | None = None
    max_pieces: Positive | None = None
    max_replicas: Positive | None = None
    max_bytes: Bytes | None = None

    def over(self, default: ParameterConstraints) -> ParameterConstraints:
        """These, and what `default` says of all that these leave open."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(default, **given)

    def without(self, name: str) -> ParameterConstraints:
        """The same but for one that is dropped."""
        dropped: dict[str, Any] = {name: None}
        return replace(self, **dropped)

    @property
    def given(self) -> list[str]:
        """The names of those that there are."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]


@dataclass(frozen=True)
class Constraints:
    """tables: {name or pattern: what it may be}; the first pattern that fits counts, full names before all.

    default: for all tables, but for what `tables` says of them. rank_bytes: {tier: bytes of a rank that may
    be taken by tables and all else}, if less than there is.
    """

    __pydantic_config__ = STRICT

    tables: Mapping[str, ParameterConstraints] = field(default_factory=dict)
    default: ParameterConstraints = ParameterConstraints()
    rank_bytes: Mapping[str, Bytes] = field(default_factory=dict)

    def of(self, names: Iterable[str], topology: Topology) -> dict[str, ParameterConstraints]:
        """{table: what it may be}. ConstraintsError for what no table or no rank of `topology` can be."""
        tables = list(names)
        fitting = {pattern: _fitting(pattern, tables) for pattern in self.tables}
        for tier in self.rank_bytes:
            _check_names("tier", [tier], topology.tier_names, ("rank_bytes", tier))
        _check(self.default, topology, ("default",))
        for pattern, asked in self.tables.items():
            _check(asked, topology, ("tables", pattern))
        found = dict.fromkeys(tables, self.default)
        for pattern, matching in reversed(fitting.items()):
            found |= dict.fromkeys(matching, self.tables[pattern].over(self.default))
        exact = {t: self.tables[t].over(self.default) for t in tables if t in self.tables}
        for table, merged in (found | exact).items():
            _check_possible(table, merged, topology, self._key(table, fitting))
        return found | exact

    def _key(self, table: str, fitting: Mapping[str, list[str]]) -> tuple[str, ...]:
        patterns = [table] if table in self.tables else [p for p, found in fitting.items() if table in found]
        return ("tables", patterns[0]) if patterns else ("default",)


def allowed_ranks(asked: ParameterConstraints, topology: Topology) -> tuple[int, ...]:
    """The ranks that a table may be on, rising."""
    homes = topology.hosts_of_ranks
    return tuple(
        rank
        for rank in range(topology.num_ranks)
        if (asked.ranks is None or rank in asked.ranks)
        and (asked.hosts is None or homes[rank] in asked.hosts)
    )


def _fitting(pattern: str, tables: list[str]) -> list[str]:
    found = [t for t in tables if fnmatchcase(t, pattern) or fnmatchcase(t, f"*.{pattern}")]
    if not found:
        short = {name.rpartition(".")[2]: name for name in tables}
        near = difflib.get_close_matches(pattern, [*tables, *short], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {_listed(tables)}"
        raise ConstraintsError(f"constraints of {pattern!r}: no such table{hint}", "tables", pattern)
    return found


def _check(asked: ParameterConstraints, topology: Topology, key: tuple[str, ...]) -> None:
    _check_numbers("rank", asked.ranks or (), topology.num_ranks, (*key, "ranks"))
    _check_numbers("host", asked.hosts or (), topology.num_hosts, (*key, "hosts"))
    _check_names("tier", asked.tiers or (), topology.tier_names, (*key, "tiers"))


def _check_numbers(what: str, given: Iterable[int], count: int, key: tuple[str, ...]) -> None:
    for number in given:
        if not 0 <= number < count:
            raise ConstraintsError(f"{'.'.join(key)}: {what} {number}: {what}s are 0 to {count - 1}", *key)


def _check_names(what: str, given: Iterable[str], known: tuple[str, ...], key: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise ConstraintsError(f"{'.'.join(key)}: no {what} {name!r}; there are {_listed(known)}", *key)


def _check_possible(
    table: str, asked: ParameterConstraints, topology: Topology, key: tuple[str, ...]
) -> None:
    """ConstraintsError where no kind is left, without looking at sizes."""
    ranks = allowed_ranks(asked, topology)
    if not ranks:
        raise ConstraintsError(
            f"table {table!r}: none of the ranks {asked.ranks} is on hosts {asked.hosts}", *key
        )
    kinds = asked.kinds or KINDS
    copies = asked.max_replicas or topology.num_ranks
    if all(kind in REPLICATED for kind in kinds) and min(copies, len(ranks)) < topology.num_ranks:
        limit = f"max_replicas is {copies}" if copies < topology.num_ranks else f"ranks are {_listed(ranks)}"
        raise ConstraintsError(
            f"table {table!r}: {' and '.join(kinds)} put rows on all {topology.num_ranks} ranks, but "
            f"{limit}: allow another kind, or more ranks",
            *key,
        )
    cut = [kind for kind in kinds if kind not in ("data_parallel", "table_wise", "hot_cold")]
    if len(cut) == len(kinds) and (asked.max_pieces == 1 or (len(ranks) == 1 and topology.num_ranks > 1)):
        raise ConstraintsError(
            f"table {table!r}: {' and '.join(kinds)} need more than one piece and rank", *key
        )


def _listed(names: Iterable[Any]) -> str:
    some = list(names)
    return ", ".join(map(str, some[:6])) + (f" and {len(some) - 6} more" if len(some) > 6 else "")
