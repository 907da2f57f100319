"""The exact optimum of small cases, as a mixed-integer linear program for HiGHS: what search is measured by.

For each option a variable x, whether its table has it; for each of its distinct pieces and each rank a y, how
often it is there; for each phase its seconds z. Columns sum what the chosen options bring:

    min t + prices    Σ_o x = 1 for each table        Σ_r y = count · x, one piece of an option on a rank
                      Σ bytes ≤ caps                  z ≥ every column of the phase on every rank
                      t ≥ Σ_phases z + fixed + late   t ≥ offset + columns beside the main line

Options that the relaxation's prices show to be in no plan better than one that is known are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import highspy
import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.kernels.state import put_table
from tesserec.sharding.planner.partition import Draft, Space
from tesserec.sharding.planner.propose import relaxed

Numbers = npt.NDArray[np.float64]

_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Optimum:
    """draft: the best plan, None where none is better than the one that was given; seconds: of its step.

    bound: no plan takes less, prices included. is_proved: whether HiGHS closed the gap.
    """

    draft: Draft | None
    seconds: float
    bound: float
    is_proved: bool
    options: int  # that were not left out


def optimum(space: Space, known: float = np.inf, seconds: float = 60.0, gap: float = 1e-4) -> Optimum:
    """The plan with the least cost. known: the cost of a plan that there is; seconds: HiGHS may take.

    For some thousand pairs of a piece and a rank; grows steeply.
    """
    relaxation = relaxed(space)
    least = np.minimum.reduceat(relaxation.weight, space.first_option[:-1])
    over = relaxation.weight - np.repeat(least, np.diff(space.first_option))
    kept = np.flatnonzero(relaxation.seconds + over <= known * (1 + _SLACK))
    program = _Program(space, kept, known if np.isfinite(known) else 1e3 * space.busy)
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in (
        ("output_flag", False),
        ("time_limit", seconds),
        ("mip_rel_gap", gap),
        ("threads", 1),
    ):
        solver.setOptionValue(name, value)
    solver.passModel(program.model())
    solver.run()
    info, status = solver.getInfo(), solver.getModelStatus()
    proved = status in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kInfeasible)
    if info.primal_solution_status != 2:  # feasible
        bound = known if status == highspy.HighsModelStatus.kInfeasible else info.mip_dual_bound * space.busy
        return Optimum(None, known, min(bound, known), proved, len(kept))
    draft = program.draft(np.array(solver.getSolution().col_value))
    return Optimum(draft, draft.seconds, info.mip_dual_bound * space.busy, proved, len(kept))


@dataclass
class _Lines:
    """Rows of the program, as they are added: lower ≤ Σ value · column ≤ upper."""

    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, columns: Sequence[int], values: Sequence[float], lower: float, upper: float) -> None:
        """One row; terms of nothing are left out."""
        terms = [(c, v) for c, v in zip(columns, values, strict=True) if v != 0.0]
        self.columns += [c for c, _ in terms]
        self.values += [v for _, v in terms]
        self.starts.append(len(self.columns))
        self.lower.append(lower)
        self.upper.append(upper)


class _Program:
    """Variables: x of options, y of (option, load, group) and rank, u of groups and hosts, z, f, late, t."""

    def __init__(self, space: Space, kept: npt.NDArray[np.int64], most: float):
        self.space, self.kept, self.rules, self.most = space, kept, space.rules, most / space.busy
        self.scale = 1 / space.busy
        self.pieces = [self._distinct(int(option)) for option in kept]
        self.lines, self.count = _Lines(), len(kept)
        self.y: list[tuple[int, int, int, int]] = []  # (position in kept, load, group, first column)
        for i, found in enumerate(self.pieces):
            for load, group in found:
                self.y.append((i, load, group, self._new(self.rules.num_ranks)))
        self.whole = self.count
        self.u = {(i, g): self._new(len(self.rules.first_rank) - 1) for i, g in self._groups()}
        self.whole = self.count
        phases = len(self.rules.fixed)
        self.z, self.f, self.late, self.t = self._new(phases), self._new(phases), self._new(1), self._new(1)
        self._choose()
        self._place()
        self._add_up()
        self._total()

    def model(self) -> highspy.HighsLp:
        """What HiGHS takes."""
        lp, n, lines = highspy.HighsLp(), self.count, self.lines
        lp.num_col_, lp.num_row_ = n, len(lines.lower)
        cost = np.zeros(n)
        cost[: len(self.kept)] = self.space.problem.options["price"][self.kept] * self.scale
        cost[self.t] = 1.0
        lower, upper = np.zeros(n), np.full(n, np.inf)
        integer = np.zeros(n, bool)
        integer[: self.whole] = True
        integer[self.f : self.late] = True
        upper[integer] = 1.0
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, lower, upper
        lp.row_lower_, lp.row_upper_ = np.array(lines.lower), np.array(lines.upper)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_ = np.array(lines.starts), np.array(lines.columns)
        lp.a_matrix_.value_ = np.array(lines.values)
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(one)] for one in integer]
        return lp

    def draft(self, solution: Numbers) -> Draft:
        """The plan of a solution."""
        space, draft = self.space, Draft(self.space)
        for i in np.flatnonzero(solution[: len(self.kept)] > 0.5):
            option = int(self.kept[i])
            t = int(np.searchsorted(space.first_option, option, side="right")) - 1
            pieces = np.arange(space.first_piece[option], space.first_piece[option + 1])
            ranks = np.full(len(pieces), -1)
            for j, load, group, first in self.y:
                if j == i:
                    where = np.flatnonzero(solution[first : first + self.rules.num_ranks] > 0.5)
                    mine = [k for k, piece in enumerate(pieces) if self._kind(int(piece)) == (load, group)]
                    ranks[mine] = where
            put_table(space.problem, draft.state, t, option, ranks)
        return draft

    def _new(self, count: int) -> int:
        """The first of so many new columns."""
        self.count += count
        return self.count - count

    def _kind(self, piece: int) -> tuple[int, int]:
        found = self.space.problem.pieces[piece]
        return int(found["load"]), int(found["group"])

    def _distinct(self, option: int) -> dict[tuple[int, int], int]:
        """{(load, group): how many pieces of the option}."""
        found: dict[tuple[int, int], int] = {}
        for piece in range(int(self.space.first_piece[option]), int(self.space.first_piece[option + 1])):
            found[self._kind(piece)] = found.get(self._kind(piece), 0) + 1
        return found

    def _groups(self) -> list[tuple[int, int]]:
        return sorted({(i, group) for i, _, group, _ in self.y if group >= 0})

    def _choose(self) -> None:
        first = self.space.first_option
        for t in range(self.space.num_tables):
            mine = np.flatnonzero((self.kept >= first[t]) & (self.kept < first[t + 1])).tolist()
            self.lines.add(mine, [1.0] * len(mine), 1.0, 1.0)

    def _place(self) -> None:
        ranks = self.rules.num_ranks
        for i, load, group, first in self.y:
            count = self.pieces[i][load, group]
            self.lines.add([i, *range(first, first + ranks)], [-float(count)] + [1.0] * ranks, 0.0, 0.0)
            t = int(np.searchsorted(self.space.first_option, self.kept[i], side="right")) - 1
            closed = np.flatnonzero(~self.space.candidates[t].ranks)
            self.lines.add([first + int(r) for r in closed], [1.0] * len(closed), 0.0, 0.0)
        for i, found in enumerate(self.pieces):
            if sum(found.values()) > 1:
                mine = [first for j, _, _, first in self.y if j == i]
                for r in range(ranks):
                    self.lines.add(
                        [i, *(first + r for first in mine)], [-1.0] + [1.0] * len(mine), -np.inf, 0.0
                    )
        self._place_groups()

    def _place_groups(self) -> None:
        """Every group on one host, no two of an option on the same."""
        hosts = len(self.rules.first_rank) - 1
        for (i, _), first in self.u.items():
            self.lines.add([i, *range(first, first + hosts)], [-1.0] + [1.0] * hosts, 0.0, 0.0)
        for i in {i for i, _ in self.u}:
            mine = [first for (j, _), first in self.u.items() if j == i]
            for h in range(hosts):
                self.lines.add([i, *(first + h for first in mine)], [-1.0] + [1.0] * len(mine), -np.inf, 0.0)
        for i, _, group, first in self.y:
            for r, h in enumerate(self.rules.host_of.tolist() if group >= 0 else ()):
                self.lines.add([first + r, self.u[i, group] + h], [1.0, -1.0], -np.inf, 0.0)

    def _terms(self, r: int, c: int, scale: float) -> tuple[list[int], list[float]]:
        """What column c of rank r has of tables."""
        kind, space = int(self.rules.kind_of[r]), self.space
        columns = [*range(len(self.kept)), *(first + r for _, _, _, first in self.y)]
        every = space.every[kind, self.kept, c]
        own = space.own[kind, [load for _, load, _, _ in self.y], c]
        return columns, (np.concatenate([every, own]) * scale).tolist()

    def _add_up(self) -> None:
        """Bytes within caps; phases and the step no shorter than any column."""
        rules, k = self.rules, self.rules.num_columns
        for r in range(rules.num_ranks):
            for m in range(rules.caps.shape[1]):
                if rules.caps[r, m] > 0 or self.space.own[..., k + m].any():
                    size = max(float(rules.caps[r, m]), 1.0)
                    columns, values = self._terms(r, k + m, 1 / size)
                    self.lines.add(
                        columns, values, -np.inf, float(rules.caps[r, m] - rules.base[r, k + m]) / size
                    )
            for c, phase in enumerate(rules.phase_of.tolist()):
                columns, values = self._terms(r, c, self.scale)
                top = self.t if phase < 0 else self.z + phase
                extra = rules.offset[c] if phase < 0 else 0.0
                base = float(rules.base[r, c] + extra) * self.scale
                self.lines.add([*columns, top], [*values, -1.0], -np.inf, -base)

    def _total(self) -> None:
        """t ≥ Σ (z + fixed · f) + late; f is 1 where z is more than nothing."""
        rules, phases = self.rules, len(self.rules.fixed)
        z, f = range(self.z, self.z + phases), range(self.f, self.f + phases)
        fixed = (rules.fixed * self.scale).tolist()
        for i in range(phases):
            if fixed[i]:
                self.lines.add([z[i], f[i]], [1.0, -self.most], -np.inf, 0.0)
        self.lines.add(
            [self.t, *z, *f, self.late], [1.0, *[-1.0] * phases, *(-x for x in fixed), -1.0], 0.0, np.inf
        )
        hides = rules.hides.astype(np.float64)
        self.lines.add(
            [self.late, *z, *f], [1.0, *hides, *(hides * fixed)], float(rules.late) * self.scale, np.inf
        )
