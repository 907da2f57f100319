"""Options of all tables as arrays, and a plan under construction on them: `Space` and `Draft`.

What a piece costs is looked up, never computed, while plans are searched. A draft always knows what a step
takes and how many bytes are too much; kernels place, move and swap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import Shard, ShardingPlan
from tesserec.sharding.planner.kernels import improve, place
from tesserec.sharding.planner.kernels.state import (
    COLUMN,
    COUNTERS,
    OPTION,
    PHASE,
    PIECE,
    RANK,
    RULE,
    SLOT,
    TABLE,
    Problem,
    State,
    put_table,
    step_seconds,
    take_table,
)
from tesserec.sharding.planner.options import ShardingOption

Numbers = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

_PIECE = 1e-9  # of a step, what a piece more on every rank counts: whole tables where all else is equal
_PENALTY = 1e3  # steps, for a rank that has twice what it can hold
_AT_ONCE = 100_000  # pieces
_ONE_BYTE = 1.0  # what rounding may leave of bytes that are too much


@dataclass(frozen=True, eq=False)
class OptionLoads:
    """What an option costs: own[:, which[i]] the holder of piece i; every (G, C) every rank.

    own: (G, L, C) of distinct pieces, which options of a table may share. By kind of rank; C = K columns of
    seconds, then M of bytes: one for each tier, and one for each `Cap`.
    """

    own: Numbers
    which: Whole
    every: Numbers


@dataclass(frozen=True)
class Cap:
    """What else a rank can hold only so much of. amount(option): ((P,) of each piece, of every rank)."""

    name: str
    limit: float
    amount: Callable[[ShardingOption], tuple[Numbers, float]]


@dataclass(frozen=True, eq=False)
class Rules:
    """What is there besides tables, and how seconds add up: see `kernels.state.total_of`.

    base: (W, C) of each rank in any case; caps: (W, M), the first `num_tiers` are of tiers; kind_of, host_of:
    (W,) rising; phase_of, offset: (K,); fixed, hides: (phases,).
    """

    base: Numbers
    caps: Numbers
    kind_of: Whole
    host_of: Whole
    phase_of: Whole
    offset: Numbers
    fixed: Numbers
    hides: npt.NDArray[np.bool_]
    late: float
    usual_tier: str = ""
    num_tiers: int = 1

    @property
    def num_ranks(self) -> int:
        return len(self.kind_of)

    @property
    def num_columns(self) -> int:
        """K."""
        return len(self.phase_of)

    @cached_property
    def first_rank(self) -> Whole:
        """(H+1,) of each host."""
        return np.flatnonzero(np.diff(self.host_of, prepend=-1, append=-1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A table, what may be done with it and what that costs. ranks: (W,) where it may be."""

    table: str
    options: list[ShardingOption]
    loads: list[OptionLoads]
    ranks: npt.NDArray[np.bool_]


class Space:
    """All plans that can be put together: candidates as the arrays that kernels take."""

    def __init__(self, candidates: Sequence[Candidate], rules: Rules):
        """PlanError-free: a candidate must have an option."""
        self.rules = rules
        self.candidates = [_sorted(candidate) for candidate in candidates]
        self.options = [option for candidate in self.candidates for option in candidate.options]
        self.tables = [candidate.table for candidate in self.candidates]
        self.own, self.load_of = _distinct_loads(self.candidates)
        loads = [each for candidate in self.candidates for each in candidate.loads]
        self.every = np.stack([each.every for each in loads], axis=1)
        self.first_option = _firsts([len(candidate.options) for candidate in self.candidates])
        self.first_piece = _firsts([len(option.pieces) for option in self.options])
        self.problem = self._problem()
        self.problem.options["price"][:-1] = _PIECE * self.busy * self.num_pieces / rules.num_ranks
        self.problem.rule["penalty"] = _PENALTY * self.busy / max(float(rules.caps[:, 0].mean()), 1.0)

    @property
    def num_tables(self) -> int:
        return len(self.tables)

    @cached_property
    def num_pieces(self) -> Whole:
        """(O,)."""
        return np.diff(self.first_piece)

    @cached_property
    def totals(self) -> Numbers:
        """(O, C) of all ranks together; on the kind of ranks where it is least."""
        summed = self._over_pieces(np.add, self.own.min(axis=0))
        found: Numbers = summed + self.every.min(axis=0) * self.rules.num_ranks
        return found

    @cached_property
    def largest(self) -> Numbers:
        """(O, C) the most that an option puts on one rank."""
        found: Numbers = self._over_pieces(np.maximum, self.own.max(axis=0)) + self.every.max(axis=0)
        return found

    def _over_pieces(self, function: np.ufunc, of_loads: Numbers) -> Numbers:
        """(L, C) → (O, C), `function` over the pieces of each option; 0 where there are none."""
        found = np.zeros((len(self.options), of_loads.shape[1]))
        some = np.flatnonzero(self.num_pieces)
        for part in np.array_split(some, len(self.load_of) // _AT_ONCE + 1):
            if len(part):
                lo, hi = self.first_piece[part[0]], self.first_piece[part[-1] + 1]
                found[part] = function.reduceat(of_loads[self.load_of[lo:hi]], self.first_piece[part] - lo)
        return found

    @cached_property
    def mean_seconds(self) -> Numbers:
        """(O,) what an option adds to a step whose ranks and lanes are all equally busy."""
        main = self.rules.phase_of >= 0
        found: Numbers = self.totals[:, : self.rules.num_columns][:, main].sum(axis=1) / self.rules.num_ranks
        return found

    @cached_property
    def largest_seconds(self) -> Numbers:
        """(O,) what an option adds to a step of its busiest rank."""
        main = self.rules.phase_of >= 0
        found: Numbers = self.largest[:, : self.rules.num_columns][:, main].sum(axis=1)
        return found

    @cached_property
    def weights(self) -> Numbers:
        """(T,) how much a table is, in work and bytes, by its option with the fewest bytes."""
        room = max(float(self.rules.caps[:, 0].mean()), 1.0)
        of_options = self.largest_seconds / self.busy + self.bytes_in_all / room
        return np.array([of_options[self.options_of(t)].min() for t in range(self.num_tables)])

    @cached_property
    def bytes_in_all(self) -> Numbers:
        """(O,) of all tiers and ranks; not what `Cap`s count."""
        k = self.rules.num_columns
        found: Numbers = self.totals[:, k : k + self.rules.num_tiers].sum(axis=1)
        return found

    @cached_property
    def busy(self) -> float:
        """Seconds of a step, roughly: the base, and the least of each table."""
        least = np.minimum.reduceat(self.mean_seconds, self.first_option[:-1]).sum()
        main = self.rules.phase_of >= 0
        return float(self.rules.base[:, : len(main)][:, main].mean(axis=0).sum() + least) + 1e-12

    def options_of(self, t: int) -> slice:
        """Of `options`."""
        return slice(int(self.first_option[t]), int(self.first_option[t + 1]))

    def _problem(self) -> Problem:
        rules, count = self.rules, self.num_tables
        tables, pieces = np.zeros(count + 1, TABLE), np.zeros(len(self.load_of), PIECE)
        masks, mask_of = np.unique(np.stack([c.ranks for c in self.candidates]), axis=0, return_inverse=True)
        tables["first_option"], tables["movable"] = self.first_option, True
        tables["mask"][:-1] = mask_of.reshape(-1)
        most = np.maximum.reduceat(self.num_pieces, self.first_option[:-1])
        tables["first_slot"] = _firsts(most)
        options = np.zeros(len(self.options) + 1, OPTION)
        options["first_piece"] = self.first_piece
        pieces["load"], none = self.load_of, np.empty(0, np.int64)
        pieces["group"] = np.concatenate([none, *(option.groups for option in self.options)])
        homes = [np.full(len(o.pieces), -1) if o.home is None else np.array(o.home) for o in self.options]
        pieces["home"] = np.concatenate([none, *homes])
        return Problem(
            tables,
            options,
            pieces,
            self.own,
            self.every,
            masks,
            _records(RANK, kind=rules.kind_of, host=rules.host_of),
            rules.first_rank,
            _firsts(np.bincount(rules.kind_of)),
            _records(COLUMN, phase=rules.phase_of, offset=rules.offset),
            _records(PHASE, fixed=rules.fixed, hides=rules.hides),
            rules.caps,
            _records(RULE, late=np.array([rules.late]), penalty=np.zeros(1)),
        )

    def empty_state(self, seed: int = 0) -> State:
        """No table has a place yet."""
        rules, k, first = self.rules, self.rules.num_columns, self.problem.tables["first_slot"]
        slots = np.full(int(first[-1]), -1, SLOT)
        slots["table"] = np.repeat(np.arange(self.num_tables), np.diff(first))
        return State(
            np.full(self.num_tables, -1),
            slots,
            _trees(rules),
            rules.base[:, k:].copy(),
            np.zeros((len(self.own), self.own.shape[2])),
            np.full(rules.num_ranks, -1),
            np.array([0.0, np.maximum(0.0, rules.base[:, k:] - rules.caps).sum()]),
            _records(COUNTERS, random=np.array([seed], np.uint64), work=np.zeros(1, np.int64)),
            np.empty(k),
            np.empty(len(rules.fixed)),
            np.empty(rules.num_ranks),
            np.empty(rules.num_ranks, np.bool_),
            np.empty((len(rules.fixed), rules.num_ranks)),
            np.empty(rules.num_ranks),
        )


Snapshot = tuple[Whole, Whole]  # option of each table, rank of each piece


class Draft:
    """A plan under construction in a space."""

    def __init__(self, space: Space, seed: int = 0):
        self.space, self.seed = space, seed
        self.state = space.empty_state(seed)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return float(step_seconds(self.space.problem, self.state))

    @property
    def lacking(self) -> float:
        """Bytes that ranks have too much, all tiers together."""
        lacking = float(self.state.sums[1])
        return lacking if lacking > _ONE_BYTE else 0.0

    @property
    def price(self) -> float:
        """Of options and of moves."""
        return float(self.state.sums[0])

    @property
    def cost(self) -> float:
        """What search makes small."""
        return self.seconds + self.price + float(self.space.problem.rule["penalty"][0]) * self.lacking

    @property
    def work(self) -> int:
        """Places looked at so far."""
        return int(self.state.counters["work"][0])

    def warm_up(self) -> None:
        """Have all kernels compiled, or read from disk: the first time on a machine that takes a while."""
        nothing = np.empty(0, np.int64)
        self.build(nothing, np.full(self.space.num_tables, -1))
        self.better_options(nothing, 0)
        self.wander(0, 0.0, 0.0)
        place.restore(self.space.problem, self.state, nothing, nothing)
        self.clear()

    def clear(self) -> None:
        """Every table without a place, random numbers and work as they are."""
        self.state = self.space.empty_state()._replace(counters=self.state.counters)

    def build(self, order: Whole, choice: Whole, weight: Numbers | None = None, pack: float = 0.0) -> bool:
        """Place all tables anew, in this order. False if one has nowhere to go.

        choice: (T,) of `Space.options`, -1 for the one that costs least when it is the table's turn; weight:
        (O,) what these cost besides. pack: how much fuller ranks are preferred.
        """
        self.clear()
        weight = np.zeros(len(self.space.options)) if weight is None else weight
        return bool(place.build(self.space.problem, self.state, order, choice, weight, pack))

    def better_options(self, order: Whole, until: int) -> int:
        """Each table of `order` gets its best option, all else kept; for how many before `until` work."""
        weight = np.zeros(len(self.space.options))
        return int(improve.better_options(self.space.problem, self.state, order, weight, until))

    def wander(self, moves: int, slack: float, slack_after: float) -> None:
        """Random moves that make the cost at most so much larger."""
        most = int(self.space.num_pieces.max())
        improve.wander(self.space.problem, self.state, moves, slack, slack_after, most)

    def try_options(self, t: int) -> Numbers:
        """(options of table t, 3) seconds of a step, bytes too much and prices, were it this one.

        All else is kept; inf where it has nowhere to go.
        """
        problem, state, mine = self.space.problem, self.state, self.space.options_of(t)
        found, ranks = np.full((mine.stop - mine.start, 3), np.inf), self.ranks_of(t).copy()
        kept = int(take_table(problem, state, t, ranks))
        for line, option in enumerate(range(mine.start, mine.stop)):
            if place.place_table(problem, state, t, option, 0.0):
                found[line] = self.seconds, self.lacking, self.price
            place.forget_table(problem, state, t)
        put_table(problem, state, t, kept, ranks)
        return found

    def snapshot(self) -> Snapshot:
        """What `restore` takes."""
        return self.state.choice.copy(), self.state.slots["rank"].copy()

    def restore(self, snapshot: Snapshot) -> None:
        """The plan as it was, summed up anew."""
        self.clear()
        place.restore(self.space.problem, self.state, *snapshot)

    def ranks_of(self, t: int) -> Whole:
        """Where the pieces of table t are."""
        first = int(self.space.problem.tables["first_slot"][t])
        option = self.space.options[self.state.choice[t]]
        found: Whole = self.state.slots["rank"][first : first + len(option.pieces)]
        return found

    def option_of(self, t: int) -> ShardingOption:
        """What table t has."""
        return self.space.options[int(self.state.choice[t])]

    def plan(self, names: Sequence[str]) -> ShardingPlan:
        """As a sharding plan, tables in the order of `names`; each is in a tier."""
        place_of = {name: t for t, name in enumerate(self.space.tables)}
        shards: list[Shard] = []
        for name in names:
            t = place_of[name]
            shards += self.option_of(t).shards(self.ranks_of(t).tolist(), self.space.rules.num_ranks)
        return ShardingPlan(tuple(shards), self.space.rules.num_ranks, self._tiers(names))

    def _tiers(self, names: Sequence[str]) -> dict[str, str]:
        """{table: tier} of those that are not in the usual one."""
        found = {name: self.option_of(t).tier for t, name in enumerate(self.space.tables)}
        return {name: found[name] for name in names if found[name] != self.space.rules.usual_tier}


def _sorted(candidate: Candidate) -> Candidate:
    """The same, each option's pieces with the largest first, as they are placed; groups stay together."""
    made = [_largest_first(o, each) for o, each in zip(candidate.options, candidate.loads, strict=True)]
    return replace(candidate, options=[o for o, _ in made], loads=[each for _, each in made])


def _largest_first(option: ShardingOption, loads: OptionLoads) -> tuple[ShardingOption, OptionLoads]:
    which = loads.which
    if option.home is not None or len(which) < 2 or (which == which[0]).all():
        return option, loads
    size = loads.own.mean(axis=0)
    order = np.lexsort(
        (-(size / np.maximum(np.abs(size).max(axis=0), 1e-300)).sum(axis=1)[which], option.groups)
    )
    moved = replace(option, pieces=option.pieces[order], groups=option.groups[order])
    return moved, replace(loads, which=which[order])


def _distinct_loads(candidates: Sequence[Candidate]) -> tuple[Numbers, Whole]:
    """((G, L, C) loads, (P,) which of them each piece has)."""
    kept: list[Numbers] = []
    which, count, firsts = [np.empty(0, np.int64)], 0, dict[int, int]()
    for loads in (each for candidate in candidates for each in candidate.loads):
        if id(loads.own) not in firsts:
            firsts[id(loads.own)] = count
            kept.append(loads.own)
            count += loads.own.shape[1]
        which.append(firsts[id(loads.own)] + loads.which)
    return np.ascontiguousarray(np.concatenate(kept, axis=1)), np.concatenate(which).astype(np.int64)


def _firsts(counts: Any) -> Whole:
    found: Whole = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return found


def _records(dtype: np.dtype[Any], **columns: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The columns as one array of records."""
    made = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, column in columns.items():
        made[name] = column
    return made


def _trees(rules: Rules) -> Numbers:
    """(K, G, 2S) maxima of the base."""
    k, kinds, leaves = rules.num_columns, int(rules.kind_of.max()) + 1, 1
    while leaves < rules.num_ranks:
        leaves *= 2
    tree = np.full((k, kinds, 2 * leaves), -np.inf)
    for g in range(kinds):
        ranks = np.flatnonzero(rules.kind_of == g)
        tree[:, g, leaves + ranks] = rules.base[ranks, :k].T
    for i in range(leaves - 1, 0, -1):
        tree[:, :, i] = np.maximum(tree[:, :, 2 * i], tree[:, :, 2 * i + 1])
    return tree
