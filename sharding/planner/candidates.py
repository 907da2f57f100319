"""What the cost model says of every option of every table, as the numbers that search adds up.

The lanes of `schedule` become columns: those of the main line keep their phases; what goes on beside it
(cores, ids, links) is a sum over lanes for each rank, so a column of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.constraints import (
    Constraints,
    ConstraintsError,
    allowed_ranks,
)
from tesserec.sharding.planner.estimate import CostModel, Loads
from tesserec.sharding.planner.memory import ON_TIER
from tesserec.sharding.planner.options import ShardingOption, enumerate_options
from tesserec.sharding.planner.partition import Candidate, Cap, OptionLoads, Rules
from tesserec.sharding.planner.schedule import BACKWARD, INSIDE, LANE, NETWORK, PHASE_OF, TO_LANES
from tesserec.sharding.planner.workload import Table

Numbers = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Allow = Callable[[ShardingOption], bool]

_FEW = 6_000  # options of all tables: of more, the least promising are left out
_SOME = 16  # options that a table keeps in any case
_WEIGHTS = (  # seconds, bytes of all ranks; seconds, bytes of the busiest
    (1.0, 0.0, 0.0, 0.0),
    (0.5, 0.0, 0.5, 0.0),
    (0.5, 0.5, 0.0, 0.0),
    (0.3, 0.3, 0.2, 0.2),
    (0.0, 0.2, 0.0, 0.8),
)
_MAIN = np.flatnonzero(PHASE_OF >= 0)
_HIDING = [3, 4, 5]  # phases in which dense gradients are summed
_SUMS = [LANE["reduction"], LANE["reduction_inside"], LANE["reduction_network"]]
_IDS = [LANE["route"], LANE["ids_inside"], LANE["ids_network"]]


class Weigher:
    """Options of tables, with their loads."""

    def __init__(
        self,
        model: CostModel,
        constraints: Constraints | None = None,
        caps: Sequence[Cap] = (),
        allow: Allow | None = None,
    ):
        """ConstraintsError for constraints that do not fit the tables or the topology."""
        self.model, self.caps, self.allow = model, caps, allow
        self.constraints = constraints or Constraints()
        names = [table.name for table in model.workload.tables]
        self.asked = self.constraints.of(names, model.topology)
        self.tiers = model.topology.tier_names
        self.to_columns = [self._to_columns(cost.cores) for cost in model.costs]

    def rules(self) -> Rules:
        """What there is besides tables."""
        model, schedule = self.model, self.model.schedule
        seconds = np.stack([b @ self.to_columns[k] for b, k in zip(model.base, model.kinds, strict=True)])
        caps = np.zeros((model.ranks, len(self.tiers) + len(self.caps)))
        used = np.zeros_like(caps)
        used[:, 0] = model.base_bytes.sum(axis=1)
        for m, tier in enumerate(self.tiers):
            most = self.constraints.rank_bytes.get(tier, np.inf)
            caps[:, m] = np.minimum(model.topology.tier_bytes(tier)[: model.ranks], most)
        caps[:, len(self.tiers) :] = self.one
        phases = np.append(PHASE_OF[_MAIN], [-1] * 4)
        offset = np.zeros(len(phases))
        offset[-3] = schedule.ids_seconds
        hides = np.isin(np.arange(len(schedule.phase_seconds)), _HIDING)
        late = (model.base @ TO_LANES)[:, _SUMS].sum(axis=1) - BACKWARD * schedule.dense_seconds
        return Rules(
            np.hstack([seconds, used]),
            caps,
            model.kinds.astype(np.int64),
            model.hosts.astype(np.int64),
            phases,
            offset,
            schedule.phase_seconds,
            hides,
            float(late.max()),
            self.tiers[0],
            len(self.tiers),
        )

    def candidates(self) -> list[Candidate]:
        """One for each table. ConstraintsError for a table that has no option."""
        tables = self.model.workload.tables
        limit = max(_SOME, _FEW // len(tables))
        return [self.candidate(table, limit) for table in tables]

    def candidate(self, table: Table, limit: int | None = None) -> Candidate:
        """A table and its options, the `limit` most promising ones."""
        asked, topology = self.asked[table.name], self.model.topology
        options = enumerate_options(table, self.model.workload, topology, asked)
        options = [option for option in options if self.allow is None or self.allow(option)]
        if not options:
            raise ConstraintsError(
                f"table {table.name!r}: its constraints ({', '.join(asked.given) or 'none'}) "
                "leave no way to shard it"
            )
        ranks = np.zeros(self.model.ranks, np.bool_)
        ranks[[r for r in allowed_ranks(asked, topology) if r < self.model.ranks]] = True
        loads = self._shared_loads(table, options)
        kept = self._kept(options, loads, limit, asked.max_bytes)
        return Candidate(table.name, [options[k] for k in kept], [loads[k] for k in kept], ranks)

    def loads(self, table: Table, options: Sequence[ShardingOption]) -> list[OptionLoads]:
        """Of options of a table."""
        found: dict[int, OptionLoads] = {}
        for tier in dict.fromkeys(option.tier for option in options):
            mine = [k for k, option in enumerate(options) if option.tier == tier]
            found |= zip(mine, self._in_tier(table, [options[k] for k in mine], tier), strict=True)
        return [found[k] for k in range(len(options))]

    def _shared_loads(self, table: Table, options: list[ShardingOption]) -> list[OptionLoads]:
        """Those of a table that is alike, if there was one."""
        if self.caps or self.allow:
            return self.loads(table, options)
        features = tuple((id(f.lengths), id(f.frequencies)) for f in table.features)
        key = (table.shape, table.data_type, table.pooled, table.mean, features, self.asked[table.name])
        if key not in self.known:
            self.known[key] = self.loads(table, options)
        return self.known[key]

    def _in_tier(self, table: Table, options: list[ShardingOption], tier: str) -> list[OptionLoads]:
        """Of options in one tier: pieces that cost the same are asked for once."""
        spans, holders, beside = _pieces_of(options, self.model.hosts)
        first, which = _alike(table, spans, holders, beside)
        asked, held = zip(
            *(
                self._columns(
                    self._weighed(table, spans[first], holders[first], beside[first], tier, k), tier, k
                )
                for k in range(len(self.model.costs))
            ),
            strict=True,
        )
        every, own = np.stack(asked), np.stack(held)
        made, at = [], 0
        for option in options:
            whole = at + len(option.everywhere)
            last = whole + len(option.pieces)
            on_all = np.bincount(which[at:last], minlength=len(first)) @ every
            on_all += own[:, which[at:whole]].sum(axis=1)
            made.append(OptionLoads(own, which[whole:last], on_all))
            at = last
        return [self._capped(option, loads) for option, loads in zip(options, made, strict=True)]

    def _weighed(
        self, table: Table, spans: Numbers, holders: Numbers, beside: Numbers, tier: str, kind: int
    ) -> Loads:
        """By the cost model, on one kind of ranks."""
        there = tier if tier in [each.name for each in self.model.costs[kind].device.tiers] else None
        rows, cols = spans[:, :2], spans[:, 2:]
        return self.model.pieces(table, rows, cols, holders, kind=kind, tier=there, beside=beside)

    def _columns(self, loads: Loads, tier: str, kind: int) -> tuple[Numbers, Numbers]:
        """(what every rank, what each holder has besides), (n, C) each."""
        m = self.tiers.index(tier)
        made = []
        for seconds, held in ((loads.everyone, loads.everyone_bytes), (loads.holder, loads.holder_bytes)):
            used = np.zeros((len(held), len(self.tiers) + len(self.caps)))
            on_tier = held[:, ON_TIER].sum(axis=1)
            used[:, 0] = held.sum(axis=1) - on_tier
            used[:, m] += on_tier
            made.append(np.hstack([seconds @ self.to_columns[kind], used]))
        return made[0], made[1]

    def _capped(self, option: ShardingOption, loads: OptionLoads) -> OptionLoads:
        """With the amounts of `caps`, in units of which each has as many as a rank has bytes."""
        if not self.caps:
            return loads
        own, every = loads.own[:, loads.which].copy(), loads.every.copy()
        for c, cap in enumerate(self.caps, -len(self.caps)):
            single, on_all = cap.amount(option)
            own[:, :, c] = np.asarray(single) * (self.one / cap.limit)
            every[:, c] = on_all * (self.one / cap.limit)
        return OptionLoads(own, np.arange(own.shape[1]), every)

    @cached_property
    def one(self) -> float:
        """Bytes that a rank has of the first tier."""
        return float(self.model.topology.tier_bytes(self.tiers[0]).mean())

    def _kept(
        self,
        options: Sequence[ShardingOption],
        loads: Sequence[OptionLoads],
        limit: int | None,
        most: float | None,
    ) -> list[int]:
        """The options that might fit, and of those the most promising; the smallest if none might."""
        amounts = [_amounts(each, self.num_columns) for each in loads]
        peaks = np.array([peak for _, peak in amounts])
        fits = (peaks <= self.room).all(axis=1)
        if most is not None:
            fits &= peaks.sum(axis=1) <= most
        if not fits.any():
            return [int((peaks / np.maximum(self.room, 1.0)).max(axis=1).argmin())]
        fitting = np.flatnonzero(fits).tolist()
        if limit is None or len(fitting) <= limit:
            return fitting
        kinds = [options[k].kind for k in fitting]
        promising = _promising(np.array([amounts[k][0] for k in fitting]), kinds, limit)
        return [fitting[k] for k in promising]

    @cached_property
    def room(self) -> Numbers:
        """(M,) what the ranks with most room have of each tier."""
        rules = self.rules()
        found: Numbers = (rules.caps - rules.base[:, rules.num_columns :]).max(axis=0)
        return found

    @cached_property
    def known(self) -> dict[tuple[object, ...], list[OptionLoads]]:
        """Loads of tables that were weighed."""
        return {}

    @property
    def num_columns(self) -> int:
        """K."""
        return int(self.to_columns[0].shape[1])

    @staticmethod
    def _to_columns(cores: Numbers) -> Numbers:
        """(K, columns): from the columns of the cost model to those that are searched on."""
        ids = np.isin(np.arange(len(PHASE_OF)), _IDS)
        beside = np.stack([cores, ids, INSIDE, NETWORK], axis=1).astype(np.float64)
        found: Numbers = np.hstack([TO_LANES[:, _MAIN], TO_LANES @ beside])
        return found


def _pieces_of(
    options: Sequence[ShardingOption], hosts: npt.NDArray[np.int64]
) -> tuple[Numbers, Numbers, Numbers]:
    """((n, 4) spans, (n,) holders, (n,) share of the others in the host); those on every rank come first."""
    ranks, counts = len(hosts), np.bincount(hosts)
    near = float((counts * (counts - 1)).sum()) / max(1, ranks * (ranks - 1))
    spans, holders, beside = [], [], []
    for option in options:
        whole = [[*rows, *cols] for rows, cols in option.everywhere]
        spans += [np.array(whole, np.float64).reshape(-1, 4), option.pieces.astype(np.float64)]
        count, inside = len(option.pieces), len(counts) == 1 or bool((option.groups == 0).all())
        holders += [np.full(len(whole), ranks), np.ones(count) if option.holders is None else option.holders]
        beside += [
            np.full(len(whole), near),
            np.full(count, float(inside)) if option.beside is None else option.beside,
        ]
    return np.concatenate(spans), np.concatenate(holders).astype(np.float64), np.concatenate(beside)


def _alike(table: Table, spans: Numbers, holders: Numbers, beside: Numbers) -> tuple[Whole, Whole]:
    """(the first of all pieces that cost the same, which of these each piece is)."""
    strewn = not any(feature.frequencies.ordered for feature in table.features)
    height, width = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    key = np.column_stack([0 * height if strewn else spans[:, 0], height, width, holders, beside])
    # one number for each line of the key: sorting these is many times faster than sorting lines
    mixed = key @ np.array([1.0, np.pi, np.e * 1e3, np.sqrt(2) * 1e7, np.sqrt(3) * 1e11])
    _, first, which = np.unique(mixed, return_index=True, return_inverse=True)
    return first.astype(np.int64), which.reshape(-1).astype(np.int64)


def _amounts(loads: OptionLoads, columns: int) -> tuple[list[float], Numbers]:
    """((4,) seconds, bytes of all ranks, then of the busiest; (M,) bytes that it puts on one rank)."""
    own, every = loads.own[:, loads.which].min(axis=0), loads.every.min(axis=0)
    peak = own.max(axis=0, initial=0.0) + every
    total = own.sum(axis=0) + every
    parts = [float(part.sum()) for array in (total, peak) for part in (array[:columns], array[columns:])]
    return parts, peak[columns:]


def _promising(amounts: Numbers, kinds: Sequence[str], limit: int) -> list[int]:
    """The `limit` lines of (n, 4) amounts that are best by some weights, and the fastest of each kind."""
    amounts = amounts / np.maximum(amounts.max(axis=0), 1e-300)
    orders = [np.argsort(amounts @ weights, kind="stable").tolist() for weights in _WEIGHTS]
    fastest = {kinds[k]: k for k in reversed(orders[0])}
    kept = dict.fromkeys(fastest.values())
    for line in zip(*orders, strict=True):
        kept |= dict.fromkeys(line)
    return sorted(list(kept)[: max(limit, len(fastest))])
