"""What one may ask about a plan that is there: `tesserec plan explain`, `diff`, `what-if` and `check`.

A plan knows what it was made for, so its file is enough; what is named beside it counts more.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tesserec.cli.console import print_json
from tesserec.cli.plan_options import Budget, Json, Overrides, PlanFile, TopologyOption, machine_file

if TYPE_CHECKING:
    from tesserec.sharding.plan import ShardingPlan
    from tesserec.train.plan_case import Case

ConfigArgument = Annotated[
    Path | None,
    typer.Argument(help="A training config or workload file; else the one that the plan was made for."),
]


def explain(
    table: Annotated[str, typer.Argument(help="The table's name, full or its own.", show_default=False)],
    plan: PlanFile = Path("plan.json"),
    as_json: Json = False,
) -> None:
    """Show where a table is and why: how it is read, what it costs, what every other way would have cost."""
    from tesserec.cli.plan_words import show_notes, show_table
    from tesserec.train.plan_document import explained

    found, case = _asked(plan)
    part = explained(case, found, case.table_named(table))
    if as_json:
        print_json(part)
        return
    show_notes(case.notes)
    show_table(part)


def diff(
    before: Annotated[Path, typer.Argument(help="A plan.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    config: ConfigArgument = None,
    as_json: Json = False,
) -> None:
    """Show which pieces move from one plan to another, how long that takes, and what a step gains."""
    from tesserec.cli.plan_words import show_gain, show_moves, show_notes
    from tesserec.train.plan_document import moves_between

    found, case = _asked(after, config)
    moves = moves_between(case, str(before), load(before), found)
    step = case.estimate(found).step_seconds
    if as_json:
        print_json({"moves": moves, "step_seconds_after": step})
        return
    show_notes(case.notes)
    show_moves(moves)
    show_gain(moves["step_seconds_before"], step)


def what_if(
    plan: PlanFile = Path("plan.json"),
    batch: Annotated[int | None, typer.Option("--batch", help="Samples of a step, all ranks.", min=1)] = None,
    ranks: Annotated[int | None, typer.Option("--ranks", help="So many ranks.", min=1)] = None,
    bandwidth: Annotated[
        str | None, typer.Option("--bandwidth", metavar="x2", help="Links so many times as fast.")
    ] = None,
    budget: Budget = 5.0,
    as_json: Json = False,
) -> None:
    """Show what a step would take with another batch, ranks or links: with this plan, and with a new one.

    Without options: half and twice of each.
    """
    from tesserec.cli.plan_search import planner
    from tesserec.cli.plan_words import show_notes, show_variations
    from tesserec.sharding.planner.whatif import Change, Planned

    found, case = _asked(plan)
    change = Change(batch, ranks, None if bandwidth is None else _factor(bandwidth))
    asked = case.constraints.rank_bytes
    planned = Planned(case.workload, case.topology, found, planner(case, budget), asked)
    if change == Change():
        variations = list(planned.sensitivity())
    else:
        variations = [planned.vary(Change(), 1.0), planned.vary(change)]
    if as_json:
        print_json(variations)
        return
    show_notes(case.notes)
    show_variations(variations)


def check(
    plan: Annotated[Path, typer.Argument(help="The plan.", show_default=False)],
    config: ConfigArgument = None,
    topology: TopologyOption = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check a plan against its config and the topology: tables, ranks, tiers, memory of each rank.

    Exit status 0 if it can be used, 1 if a rank has too little memory, 2 for a plan of something else.
    """
    from tesserec.cli.plan_words import show_checked
    from tesserec.train.plan_document import document_of_plan, lacks_of

    found, case = _asked(plan, config, topology, overrides)
    document, lacks = document_of_plan(case, found), lacks_of(case, found)
    if as_json:
        print_json({"fits": not lacks, "lacks": lacks, "tiers": document["topology"]["tiers"]})
    else:
        show_checked(document, lacks)
    if lacks:
        raise SystemExit(1)


def load(path: Path) -> ShardingPlan:
    """The plan of a file. PlanError where there is none."""
    from tesserec.sharding.plan import PlanError, ShardingPlan

    if not path.is_file():
        raise PlanError(f"{path}: no such file; `tesserec plan CONFIG -o {path}` makes one")
    return ShardingPlan.load(path)


def _asked(
    path: Path,
    config: Path | None = None,
    topology: str | None = None,
    overrides: list[str] | None = None,
) -> tuple[ShardingPlan, Case]:
    """A plan and what it is for: as it remembers, but for what is given. PlanError where they do not fit."""
    from tesserec.train.plan_case import Sources, read_case

    plan = load(path)
    if config is None:
        sources = Sources.of_plan(plan, path)
    elif plan.planner:
        sources = replace(Sources.of_plan(plan, path), source=str(config), overrides=())
    else:
        sources = Sources(str(config), machine=str(machine_file()), ranks=plan.num_ranks)
    if topology is not None:
        sources = replace(sources, topology=topology, ranks=None)
    if overrides:
        sources = replace(sources, overrides=tuple(overrides))
    case = read_case(sources)
    return plan, case.beside(plan, path)


def _factor(text: str) -> float:
    """`x2`, `2`, `× 0.5` -> the number."""
    found = re.fullmatch(r"\s*[x×*]?\s*([0-9.]+)\s*", text)
    try:
        factor = float(found[1]) if found else 0.0
    except ValueError:
        factor = 0.0
    if factor <= 0:
        raise typer.BadParameter(
            f"got {text!r}, wanted a factor such as x2 or x0.5", param_hint="--bandwidth"
        )
    return factor
