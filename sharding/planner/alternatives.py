"""What else could be done with a table, all others kept, and why it was not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from tesserec.sharding.plan import Rectangle, ShardingPlan
from tesserec.sharding.planner.candidates import Weigher
from tesserec.sharding.planner.constraints import Constraints, ParameterConstraints
from tesserec.sharding.planner.describe import placement_of
from tesserec.sharding.planner.estimate import CostModel
from tesserec.sharding.planner.kernels.place import forget_table, place_table
from tesserec.sharding.planner.kernels.state import put_table, take_table
from tesserec.sharding.planner.options import ShardingOption, enumerate_options
from tesserec.sharding.planner.partition import Candidate, Draft, Space
from tesserec.sharding.planner.result import Alternative
from tesserec.sharding.planner.schedule import LANES, PHASE_OF
from tesserec.sharding.planner.standing import standing_option
from tesserec.sharding.planner.topology import Topology
from tesserec.sharding.planner.units import in_bytes, in_seconds
from tesserec.sharding.planner.workload import Workload

_BESIDE = ("cores", "ids", "links inside hosts", "network")  # the columns after those of the main line
_LANES = [name for name, phase in LANES.items() if phase >= 0]


def alternatives_of(
    workload: Workload,
    topology: Topology,
    constraints: Constraints | None,
    plan: ShardingPlan,
    tables: Iterable[str],
) -> dict[str, list[Alternative]]:
    """{table: its alternatives} under any plan, the chosen option first."""
    weigher = Weigher(CostModel(workload, topology), constraints)
    return {table: _under(weigher, plan, table) for table in tables}


def alternatives_in(weigher: Weigher, draft: Draft, table: str) -> list[Alternative]:
    """Those of a table of the draft: the chosen option first, those that fit next, then by seconds."""
    return _Comparing(weigher, draft, draft.space.tables.index(table)).result()


def _under(weigher: Weigher, plan: ShardingPlan, table: str) -> list[Alternative]:
    """All tables stay as the plan has them; only `table` has options."""
    candidates = []
    for one in weigher.model.workload.tables:
        option = standing_option(weigher, one, plan)
        if option is None:
            continue
        loads, ranks = weigher.loads(one, [option]), np.ones(weigher.model.ranks, np.bool_)
        candidate = Candidate(one.name, [option], loads, ranks)
        if one.name == table:
            others = weigher.candidate(one)
            candidate = replace(
                others,
                options=[option, *others.options],
                loads=[*loads, *others.loads],
                ranks=others.ranks | _at(option, ranks),
            )
        candidates.append(candidate)
    space = Space(candidates, weigher.rules())
    draft = Draft(space)
    for t in range(space.num_tables):
        option_number = int(space.first_option[t])
        home = np.array(space.options[option_number].home, np.int64)
        put_table(space.problem, draft.state, t, option_number, home)
    return alternatives_in(weigher, draft, table)


def _at(option: ShardingOption, ranks: np.ndarray) -> np.ndarray:
    found = np.zeros_like(ranks)
    found[list(option.home or ())] = True
    return found


class _Comparing:
    """The options of one table in turn, in a draft that is left as it was."""

    def __init__(self, weigher: Weigher, draft: Draft, t: int):
        self.weigher, self.draft, self.t = weigher, draft, t
        self.table = weigher.model.workload.by_name[draft.space.tables[t]]
        self.hosts = weigher.model.hosts.tolist()
        self.now, self.tops = draft.seconds, self._tops()

    def result(self) -> list[Alternative]:
        draft, space = self.draft, self.draft.space
        kept = int(draft.state.choice[self.t])
        chosen = self._alternative(kept, True)
        ranks = draft.ranks_of(self.t).copy()
        taken = np.empty(max(1, len(ranks)), np.int64)
        take_table(space.problem, draft.state, self.t, taken)
        mine, others = space.options_of(self.t), []
        for option in range(mine.start, mine.stop):
            if option != kept and not self._is_same(option, kept, ranks):
                if place_table(space.problem, draft.state, self.t, option, 0.0):
                    others.append(self._alternative(option, False))
                forget_table(space.problem, draft.state, self.t)
        put_table(space.problem, draft.state, self.t, kept, ranks)
        others.sort(key=lambda one: (not one["fits"], one["step_seconds"] or 0.0))
        return [chosen, *others, *self._forbidden()]

    def _is_same(self, option: int, kept: int, ranks: np.ndarray) -> bool:
        one, two = (self.draft.space.options[k] for k in (option, kept))
        return (
            one.tier == two.tier
            and one.everywhere == two.everywhere
            and np.array_equal(one.pieces, two.pieces)
        )

    def _alternative(self, number: int, chosen: bool) -> Alternative:
        draft, option = self.draft, self.draft.space.options[number]
        placement = placement_of(
            _held(option, draft.ranks_of(self.t).tolist(), len(self.hosts)), self.table.shape, self.hosts
        )
        fits = not draft.lacking
        several = len(self.weigher.tiers) > 1
        return Alternative(
            kind=option.kind,
            words=f"{placement.words}, in {option.tier}" if several else placement.words,
            chosen=chosen,
            step_seconds=draft.seconds,
            memory_bytes=self._bytes(number),
            fits=fits,
            why="" if chosen else self._why(fits),
        )

    def _bytes(self, number: int) -> float:
        """Of rows and state on all ranks."""
        option = self.draft.space.options[number]
        copies = [(rectangle, len(self.hosts)) for rectangle in option.everywhere]
        copies += [(((top, bottom), (left, right)), 1) for top, bottom, left, right in option.pieces.tolist()]
        optimizer, table = self.weigher.model.workload.optimizer, self.table
        total = 0.0
        for (rows, cols), count in copies:
            width = cols[1] - cols[0]
            row = width * table.item_bytes + float(optimizer.row_bytes(width, table.compute_bytes))
            total += count * (rows[1] - rows[0]) * row
        return total

    def _tops(self) -> np.ndarray:
        """(K,) seconds of the busiest rank of each column; `seconds` was asked for just before."""
        self.draft.seconds  # noqa: B018  (it is what sets them)
        found: np.ndarray = self.draft.state.tops.copy()
        return found

    def _why(self, fits: bool) -> str:
        if not fits:
            return self._lacking()
        slower = self.draft.seconds - self.now
        if abs(slower) <= 1e-6 * self.now:
            return "as fast"
        if slower < 0:
            return f"{in_seconds(-slower)} faster by itself"
        tops = self._tops()
        k = int((tops - self.tops).argmax())
        return (
            f"{in_seconds(slower)} slower: {_column_in_words(k)} +{in_seconds(float(tops[k] - self.tops[k]))}"
        )

    def _lacking(self) -> str:
        """The rank that would have most too much."""
        draft, rules = self.draft, self.draft.space.rules
        k = rules.num_columns
        over = draft.state.memory + draft.state.every[rules.kind_of, k:] - rules.caps
        r, m = np.unravel_index(int(over.argmax()), over.shape)
        tiers = self.weigher.tiers
        name = tiers[m] if m < len(tiers) else self.weigher.caps[int(m) - len(tiers)].name
        return f"rank {r} lacks {in_bytes(float(over[r, m]))} of {name}"

    def _forbidden(self) -> list[Alternative]:
        """The first option of each kind that constraints leave out."""
        model, asked = self.weigher.model, self.weigher.asked[self.table.name]
        if not asked.given:
            return []
        free = enumerate_options(self.table, model.workload, model.topology, ParameterConstraints())
        found: dict[str, Alternative] = {}
        allowed = {
            option.key for option in enumerate_options(self.table, model.workload, model.topology, asked)
        }
        for option in free:
            if option.key not in allowed and option.kind not in found:
                found[option.kind] = Alternative(
                    kind=option.kind,
                    words=str(option),
                    chosen=False,
                    step_seconds=None,
                    memory_bytes=0.0,
                    fits=False,
                    why=f"forbidden by {self._who_forbids(option, asked)}",
                )
        kinds = {
            self.draft.space.options[k].kind
            for k in range(*self.draft.space.options_of(self.t).indices(1 << 62))
        }
        return [one for kind, one in found.items() if kind not in kinds]

    def _who_forbids(self, option: ShardingOption, asked: ParameterConstraints) -> str:
        model = self.weigher.model
        for name in asked.given:
            alone = replace(ParameterConstraints(), **{name: getattr(asked, name)})
            left = enumerate_options(self.table, model.workload, model.topology, alone)
            if option.key not in {one.key for one in left}:
                return f"the constraint `{name}`"
        return "its constraints"


def _held(option: ShardingOption, ranks: list[int], num_ranks: int) -> dict[Rectangle, list[int]]:
    found: dict[Rectangle, list[int]] = {rectangle: list(range(num_ranks)) for rectangle in option.everywhere}
    for (top, bottom, left, right), rank in zip(option.pieces.tolist(), ranks, strict=True):
        found.setdefault(((top, bottom), (left, right)), []).append(rank)
    return {rectangle: sorted(holders) for rectangle, holders in sorted(found.items())}


def _column_in_words(k: int) -> str:
    main = int((PHASE_OF >= 0).sum())
    return (
        _LANES[k].replace("_inside", " inside hosts").replace("_network", " over the network")
        if k < main
        else _BESIDE[k - main]
    )
