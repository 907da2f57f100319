"""Why no plan fits, and what would help: every way out has been planned before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tesserec.embeddings.row_optim import ROW_OPTIMIZERS
from tesserec.sharding.plan import PlanError
from tesserec.sharding.planner.candidates import Weigher
from tesserec.sharding.planner.constraints import Constraints, ParameterConstraints
from tesserec.sharding.planner.partition import Draft, Space
from tesserec.sharding.planner.result import Lack, WayOut
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.units import in_bytes
from tesserec.sharding.planner.workload import RowOptimizer, Workload

Retry = Callable[[Workload, Topology, Constraints], float]  # seconds of a step; PlanError where nothing fits

_MOST_RANKS = 16  # times as many, that are tried
_NAMED = 8  # tables that a witness names


class InfeasibleError(PlanError):
    """No plan fits. witness: who lacks how many bytes where."""

    def __init__(self, message: str, witness: list[Lack]):
        super().__init__(message)
        self.witness = witness
        self.ways: Callable[[], Iterator[WayOut]] | None = None  # set by who knows how to plan

    def ways_out(self) -> list[WayOut]:
        """What would help, the cheapest first: each was planned just now, which takes seconds."""
        return [] if self.ways is None else list(self.ways())


def check_possible(weigher: Weigher, space: Space) -> None:
    """InfeasibleError where it shows without a search: a piece that fits nowhere, or too much in all."""
    k, room = space.rules.num_columns, weigher.room
    if (room < 0).any():
        raise _refused("What every rank needs in any case does not fit", [_base_lack(weigher, space)])
    largest = []
    for t in range(space.num_tables):
        over = (space.largest[space.options_of(t), k:] - room).max(axis=1)
        if over.min() > 1 and np.isfinite(over.min()):
            largest.append(_piece_lack(weigher, space, t, int(over.argmin())))
    if largest:
        name = largest[0]["tables"][0]
        raise _refused(f"Table {name!r} fits nowhere, however it may be cut", largest)
    need = _least_bytes(space)
    has = float((space.rules.caps - space.rules.base[:, k:])[:, : len(weigher.tiers)].clip(0).sum())
    if need > has:
        lack = Lack(where="all ranks together", needs_bytes=need, has_bytes=has, tables=_by_size(space))
        raise _refused("The tables are more than all memory", [lack])


def not_found(weigher: Weigher, draft: Draft | None) -> InfeasibleError:
    """What is lacking in the best plan that was found."""
    if draft is None:
        return _refused("Constraints leave no place for some tables together", [])
    space, k = draft.space, draft.space.rules.num_columns
    every = draft.state.every[space.rules.kind_of, k:]
    over = draft.state.memory + every - space.rules.caps
    witness = [
        Lack(
            where=f"{_column_name(weigher, int(m))} of rank {r}",
            needs_bytes=float(space.rules.caps[r, m] + over[r, m]),
            has_bytes=float(space.rules.caps[r, m]),
            tables=_tables_on(draft, int(r), int(m)),
        )
        for r, m in np.argwhere(over > 1)
    ]
    witness.sort(key=lambda lack: lack["has_bytes"] - lack["needs_bytes"])
    return _refused("No plan was found that fits; the nearest one does not", witness)


@dataclass(frozen=True)
class WaysOut:
    """Changes that might let a plan fit. retry: plans."""

    workload: Workload
    topology: Topology
    constraints: Constraints
    retry: Retry

    def __call__(self) -> Iterator[WayOut]:
        """Those that do; the constraints first, more ranks last."""
        yield from self._fewer_constraints()
        yield from self._less_state()
        yield from self._half_precision()
        yield from self._less_batch()
        yield from self._more_ranks()

    def _tried(
        self,
        words: str,
        option: str = "",
        *,
        workload: Workload | None = None,
        topology: Topology | None = None,
        constraints: Constraints | None = None,
    ) -> Iterator[WayOut]:
        try:
            seconds = self.retry(
                workload or self.workload, topology or self.topology, constraints or self.constraints
            )
        except ValueError:
            return
        yield WayOut(words=words, option=option, step_seconds=seconds)

    def _fewer_constraints(self) -> Iterator[WayOut]:
        """Without one of them; without all, where that is not enough."""
        asked, found = self.constraints, False
        places = {**asked.tables, "default": asked.default}
        for pattern, one in places.items():
            for name in one.given:
                for way in self._tried(
                    f"without the constraint `{name}` of {pattern}",
                    constraints=_without(asked, pattern, name),
                ):
                    found = True
                    yield way
        if asked.rank_bytes:
            yield from self._tried("without `rank_bytes`", constraints=replace(asked, rank_bytes={}))
        if not found and (asked.tables or asked.default.given):
            yield from self._tried("without any constraints", constraints=Constraints())

    def _less_state(self) -> Iterator[WayOut]:
        now = self.workload.optimizer
        dim = max(table.dim for table in self.workload.tables)
        for name in ("rowwise_adagrad", "sgd"):
            if name in ROW_OPTIMIZERS:
                other = RowOptimizer.named(name)
                if other.row_bytes(dim) < now.row_bytes(dim):
                    workload = replace(self.workload, optimizer=other)
                    yield from self._tried(f"row optimizer {name} in place of {now.name}", workload=workload)

    def _half_precision(self) -> Iterator[WayOut]:
        tables = tuple(
            replace(table, data_type="float16") if table.item_bytes > 2 else table
            for table in self.workload.tables
        )
        if any(a is not b for a, b in zip(tables, self.workload.tables, strict=True)):
            yield from self._tried("rows in float16", workload=replace(self.workload, tables=tables))

    def _less_batch(self) -> Iterator[WayOut]:
        half = self.workload.batch_size // 2
        if half and half % self.topology.num_ranks == 0:
            workload = replace(self.workload, batch_size=half)
            yield from self._tried(f"batch {half:,} in place of {2 * half:,}", workload=workload)

    def _more_ranks(self) -> Iterator[WayOut]:
        ranks, times = self.topology.num_ranks, 2
        while times <= _MOST_RANKS:
            try:
                topology = self.topology.with_ranks(ranks * times)
            except ValueError:
                return
            words = f"{ranks * times:,} ranks in place of {ranks:,}"
            found = list(self._tried(words, f"--ranks {ranks * times}", topology=topology))
            if found:
                yield from found
                return
            times *= 2


def _without(constraints: Constraints, pattern: str, name: str) -> Constraints:
    if pattern == "default":
        return replace(constraints, default=constraints.default.without(name))
    tables: dict[str, ParameterConstraints] = dict(constraints.tables)
    tables[pattern] = tables[pattern].without(name)
    return replace(constraints, tables=tables)


def _refused(message: str, witness: list[Lack]) -> InfeasibleError:
    told = [message]
    for lack in witness[:3]:
        over = in_bytes(lack["needs_bytes"] - lack["has_bytes"])
        names = ", ".join(lack["tables"][:3]) + (" …" if len(lack["tables"]) > 3 else "")
        told.append(
            f"{lack['where']}: needs {in_bytes(lack['needs_bytes'])}, has {in_bytes(lack['has_bytes'])}, "
            f"lacks {over} ({names})"
        )
    return InfeasibleError("; ".join(told), witness)


def _base_lack(weigher: Weigher, space: Space) -> Lack:
    base, caps = space.rules.base[:, space.rules.num_columns :], space.rules.caps
    r, m = np.unravel_index(int((base - caps).argmax()), caps.shape)
    return Lack(
        where=f"{_column_name(weigher, int(m))} of rank {r}, without any table",
        needs_bytes=float(base[r, m]),
        has_bytes=float(caps[r, m]),
        tables=["dense part, batches and the process"],
    )


def _piece_lack(weigher: Weigher, space: Space, t: int, line: int) -> Lack:
    """The smallest piece that table t can be cut into, on the rank with most room."""
    k, room = space.rules.num_columns, weigher.room
    need = space.largest[space.options_of(t), k:][line]
    m = int((need - room).argmax())
    where = f"{_column_name(weigher, m)} of the rank with most room, for the largest piece"
    return Lack(where=where, needs_bytes=float(need[m]), has_bytes=float(room[m]), tables=[space.tables[t]])


def _least_bytes(space: Space) -> float:
    return float(np.minimum.reduceat(space.bytes_in_all, space.first_option[:-1]).sum())


def _by_size(space: Space) -> list[str]:
    least = np.minimum.reduceat(space.bytes_in_all, space.first_option[:-1])
    return [space.tables[t] for t in np.argsort(-least, kind="stable")[:_NAMED]]


def _tables_on(draft: Draft, rank: int, m: int) -> list[str]:
    """The tables with most bytes in column m of a rank."""
    space, k, held = draft.space, draft.space.rules.num_columns, dict[str, float]()
    kind = space.rules.kind_of[rank]
    for t, name in enumerate(space.tables):
        option = int(draft.state.choice[t])
        pieces = space.first_piece[option] + np.flatnonzero(draft.ranks_of(t) == rank)
        own = space.own[kind, space.load_of[pieces], k + m].sum()
        held[name] = float(own + space.every[kind, option, k + m])
    most = sorted(held, key=lambda name: (-held[name], name))
    return [name for name in most[:_NAMED] if held[name] > 0]


def _column_name(weigher: Weigher, m: int) -> str:
    tiers = len(weigher.tiers)
    return f"tier {weigher.tiers[m]}" if m < tiers else weigher.caps[m - tiers].name
