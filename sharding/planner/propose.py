"""Proposals: an option for each table, before anything has a place. Each is a guess at what is good.

uniform:  one kind for all tables that can have it.
greedy:   table by table whatever costs least at its turn, with bytes at one price or another.
relaxed:  as if pieces could be cut at will and ranks be equally busy: a Lagrangian relaxation, whose value no
          plan can be below (Geoffrion 1974); its prices of columns and bytes choose.
dynamic:  the fastest choice for an amount of memory in all, by dynamic programming over tables and bytes.
smallest: the fewest bytes, for plans that hardly fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.constraints import KINDS
from tesserec.sharding.planner.options import ShardingOption
from tesserec.sharding.planner.partition import Space

Numbers = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

_STEPS = 200  # of the relaxation
_GRID = 256  # amounts of memory that dynamic programming tells apart
_ROOM = (1.0, 0.9, 0.7)  # of all memory
_WORK_AND_BYTES = ((1.0, 0.1), (0.0, 0.1), (3.0, 1.0))  # what seconds of all ranks, and bytes, cost besides
_LARGE = 1_000_000  # options × ranks, from which on there are fewer greedy proposals: they are slow
_PACK = 1e-3  # of a step, what a rank's being full counts where plans hardly fit


@dataclass(frozen=True, eq=False)
class Proposal:
    """choice: (T,) of `Space.options`, -1 for what costs least; weight: (O,) what options cost besides.

    order: of the tables, largest first if None; pack: how much fuller ranks are preferred.
    """

    name: str
    choice: Whole
    weight: Numbers
    order: Whole | None = None
    pack: float = 0.0


@dataclass(frozen=True, eq=False)
class Relaxation:
    """seconds: no plan takes less. choice: (T,) its options; weight: (O,) what they cost at its prices.

    So no plan with option o takes less than seconds + weight[o] - the least weight of its table.
    """

    seconds: float
    choice: Whole
    weight: Numbers
    byte_price: Numbers


def proposals(space: Space, relaxation: Relaxation) -> Iterator[Proposal]:
    """All of them, the simplest first."""
    nothing = np.zeros(len(space.options))
    yield from _uniform(space)
    yield Proposal("relaxed", relaxation.choice, nothing)
    yield from _dynamic(space)
    yield from _smallest(space)
    yield from _greedy(space, space.totals[:, space.rules.num_columns :] @ _byte_price(space, relaxation))


def relaxed(space: Space) -> Relaxation:
    """The best of some steps of subgradient ascent on the prices of columns and bytes.

    A step is at least Σ price · mean over ranks for prices of columns that sum to 1 in each phase; bytes that
    are too much cost μ each. For given prices each table chooses for itself.
    """
    rules, k = space.rules, space.rules.num_columns
    columns, room = _Prices(space), (rules.caps - rules.base[:, k:]).sum(axis=0)
    bytes_each, mean = space.totals[:, k:] / np.maximum(room, 1.0), space.totals[:, :k] / rules.num_ranks
    mu, best = (
        np.zeros(len(room)),
        Relaxation(-np.inf, np.zeros(0, np.int64), np.zeros(0), np.zeros(len(room))),
    )
    for step in range(_STEPS):
        weight = mean @ columns.prices + bytes_each @ mu
        choice = _cheapest(space, weight)
        used = bytes_each[choice].sum(axis=0)
        loads = columns.base + mean[choice].sum(axis=0)
        seconds = float(columns.prices @ loads + columns.constant + mu @ (used - 1))
        if seconds > best.seconds:
            best = Relaxation(seconds, choice, weight, mu / np.maximum(room, 1.0))
        rate = 1 / np.sqrt(1 + step)
        columns.move(loads, rate)
        mu = np.maximum(0.0, mu + 0.5 * rate * space.busy * np.clip(used - 1, -1.0, 1.0))
    return best


class _Prices:
    """Of columns: those of each phase sum to what the main line weighs, that and those beside it to 1."""

    def __init__(self, space: Space):
        rules, k = space.rules, space.rules.num_columns
        self.phase, self.offset = rules.phase_of, rules.offset
        self.base: Numbers = rules.base[:, :k].mean(axis=0)
        self.main, self.groups = self.phase >= 0, [self.phase == i for i in range(len(rules.fixed))]
        self.share, self.beside = np.ones(k), np.full(k, 1e-3)

    @property
    def prices(self) -> Numbers:
        """(K,) ≥ 0."""
        total = 1 + self.beside[~self.main].sum()
        found = np.zeros(len(self.phase))
        for group in self.groups:
            if group.any():
                found[group] = self.share[group] / self.share[group].sum() / total
        found[~self.main] = self.beside[~self.main] / total
        return found

    @property
    def constant(self) -> float:
        """What columns beside the main line have besides, at their prices."""
        return float((self.prices * self.offset)[~self.main].sum())

    def move(self, loads: Numbers, rate: float) -> None:
        """Dearer where there is more."""
        top = max(float(loads.max()), 1e-30)
        self.share *= np.exp(np.clip(rate * loads / top, -1, 1))
        main = sum(float(loads[group].max()) for group in self.groups if group.any())
        gap = (loads + self.offset - main) / max(main, 1e-30)
        self.beside = np.clip(self.beside * np.exp(np.clip(rate * gap, -1, 1)), 1e-6, 1e6)


def _cheapest(space: Space, weight: Numbers) -> Whole:
    """(T,) the option of each table that weighs least, the first of equal ones."""
    found = [
        first + int(np.argmin(weight[first:last]))
        for first, last in zip(space.first_option[:-1], space.first_option[1:], strict=True)
    ]
    return np.array(found, np.int64)


def _byte_price(space: Space, relaxation: Relaxation) -> Numbers:
    """(M,) seconds of a byte: the relaxation's, or as if memory that is full cost a step."""
    k = space.rules.num_columns
    room = np.maximum((space.rules.caps - space.rules.base[:, k:]).sum(axis=0), 1.0)
    guess = 0.1 * space.busy / room
    return np.where(relaxation.byte_price > 0, relaxation.byte_price, guess)


def _uniform(space: Space) -> Iterator[Proposal]:
    """For each kind, its fastest option where a table has it, else the fastest."""
    nothing = np.zeros(len(space.options))
    kinds = np.array([option.kind for option in space.options])
    cost = space.mean_seconds + space.largest_seconds / space.num_tables
    for kind in KINDS:
        if (kinds == kind).any():
            other = np.where(kinds == kind, 0.0, 1e3 * space.busy)
            yield Proposal(f"uniform {kind}", _cheapest(space, cost + other), nothing)


def _greedy(space: Space, byte_cost: Numbers) -> Iterator[Proposal]:
    """With all options; without replicas, cut columns, or both: collectives that nobody needs are free."""
    anything, much = np.full(space.num_tables, -1), 1e3 * space.busy
    replicated = np.array([len(option.everywhere) > 0 for option in space.options])
    cut = np.array([_has_cut_columns(option) for option in space.options])
    few = len(space.options) * space.rules.num_ranks > _LARGE
    for without in (replicated | cut, 0 * cut, cut, replicated)[: 2 if few else 4]:
        for work, price in _WORK_AND_BYTES[: 1 if few else None]:
            weight = work * space.mean_seconds + price * byte_cost + much * without
            yield Proposal("greedy", anything, weight)


def _has_cut_columns(option: ShardingOption) -> bool:
    return len(option.pieces) > 0 and len(np.unique(option.pieces[:, 2])) > 1


def _dynamic(space: Space) -> Iterator[Proposal]:
    """The choice with the fewest seconds for no more than some bytes in all: a multiple-choice knapsack."""
    nothing, rules = np.zeros(len(space.options)), space.rules
    room = float((rules.caps - rules.base[:, rules.num_columns :])[:, : rules.num_tiers].sum())
    need = np.ceil(space.bytes_in_all / max(room, 1.0) * _GRID).astype(np.int64)
    cost = space.mean_seconds + space.largest_seconds / space.num_tables
    tables: list[tuple[Numbers, Whole]] = []
    so_far = np.zeros(_GRID + 1)
    for t in range(space.num_tables):
        so_far, chosen = _one_more(space, t, so_far, cost, need)
        tables.append((so_far, chosen))
    for share in _ROOM:
        left, choice = int(share * _GRID), np.zeros(space.num_tables, np.int64)
        if not np.isfinite(so_far[left]):
            continue
        for t in reversed(range(space.num_tables)):
            choice[t] = tables[t][1][left]
            left -= int(need[choice[t]])
        yield Proposal("dynamic", choice, nothing)


def _one_more(space: Space, t: int, before: Numbers, cost: Numbers, need: Whole) -> tuple[Numbers, Whole]:
    """(least cost of tables up to t for each amount of memory, the option of t with which it is so)."""
    found, chosen = np.full(_GRID + 1, np.inf), np.full(_GRID + 1, -1)
    mine = space.options_of(t)
    for option in range(mine.start, mine.stop):
        if need[option] <= _GRID:
            shifted = np.full(_GRID + 1, np.inf)
            shifted[need[option] :] = before[: _GRID + 1 - need[option]] + cost[option]
            better = shifted < found
            found[better], chosen[better] = shifted[better], option
    return found, chosen


def _smallest(space: Space) -> Iterator[Proposal]:
    """The fewest bytes; then the smallest pieces; the largest first, on ranks that are full already."""
    nothing, pack = np.zeros(len(space.options)), _PACK * space.busy
    rest = 1e-6 * space.mean_seconds / space.busy
    in_all = space.bytes_in_all / max(float(space.bytes_in_all.max()), 1.0)
    largest = space.largest[:, space.rules.num_columns :].sum(axis=1)
    largest = largest / max(float(largest.max()), 1.0)
    for name, weight in (("smallest", in_all + rest), ("smallest pieces", in_all + largest + rest)):
        choice = _cheapest(space, weight)
        order = np.argsort(-largest[choice], kind="stable")
        yield Proposal(name, choice, nothing, order)
        yield Proposal(name, choice, nothing, order, pack)
    if len(space.options) * space.rules.num_ranks <= _LARGE:
        weight = 10 * space.busy * in_all
        order = np.argsort(-largest[choice], kind="stable")
        yield Proposal("packed", np.full(space.num_tables, -1), weight, order, pack)
