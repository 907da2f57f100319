"""`tesserec plan`: which rank should hold what. Its own command, and those that ask about plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from tesserec.cli.console import out, print_json
from tesserec.cli.plan_calibrate import calibrate, topology
from tesserec.cli.plan_compare import compare
from tesserec.cli.plan_options import (
    Budget,
    Constraints,
    Json,
    Overrides,
    Ranks,
    Stats,
    TopologyOption,
    machine_file,
)
from tesserec.cli.plan_questions import check, diff, explain, load, what_if

if TYPE_CHECKING:
    from tesserec.sharding.planner.result import Document
    from tesserec.train.plan_case import Case


class PlanGroup(TyperGroup):
    """`tesserec plan dlrm.yaml` is `tesserec plan make dlrm.yaml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            self._check_command(ctx, args[0])
            args = ["make", *args]
        return super().parse_args(ctx, args)

    def _check_command(self, ctx: Any, name: str) -> None:
        """Leave where what should be a file looks like one of the commands, mistyped."""
        near = get_close_matches(name, self.commands, n=1)
        if near and not Path(name).suffix and not Path(name).exists():
            ctx.fail(f"{name!r} is no file, and no command; did you mean {near[0]!r}?")


plan = typer.Typer(
    name="plan",
    cls=PlanGroup,
    no_args_is_help=True,
    help="Choose which rank holds what of each table, from the config, the data and the machine.\n\n"
    "`tesserec plan CONFIG …` is short for `tesserec plan make CONFIG …`.",
)


_EACH, _FUTURE = 0.05, 1.0  # of the search budget: for each plan of what-if, and for all of them


@plan.command("make")
def make(
    source: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="A training config, or a workload file.", show_default=False),
    ],
    overrides: Overrides = None,
    ranks: Ranks = None,
    topology: TopologyOption = None,
    stats: Stats = None,
    constraints: Constraints = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="A plan whose tables stay: move the fewest bytes.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with pictures.")] = None,
    budget: Budget = 10.0,
    as_json: Json = False,
) -> None:
    """Find the plan with the fastest step that fits. Ctrl-C takes the best one found so far.

    Exit status 1 if none fits: it says which tables and ranks lack what, and what would help.
    """
    from tesserec.train.plan_case import Sources, read_case

    sources = Sources(
        str(source),
        tuple(overrides or ()),
        topology or "",
        str(machine_file()),
        ranks,
        str(stats or ""),
        str(constraints or ""),
    )
    _make(read_case(sources), budget, fix, _Output(output, report, as_json))


plan.command("explain")(explain)
plan.command("diff")(diff)
plan.command("what-if")(what_if)
plan.command("check")(check)
plan.command("compare")(compare)
plan.command("calibrate")(calibrate)
plan.command("topology")(topology)


@dataclass(frozen=True)
class _Output:
    """Where things go. page: beside the plan unless it is named."""

    plan: Path | None
    report: Path | None
    as_json: bool

    @property
    def page(self) -> Path | None:
        return self.report or (self.plan and self.plan.with_suffix(".html"))

    def write(self, path: Path, text: str) -> None:
        from tesserec.dataio.atomic import atomic_file

        with atomic_file(path) as file:
            file.write_text(text, encoding="utf-8")

    def show(self, document: Document) -> None:
        """The page, and the document or the summary of it."""
        from tesserec.cli.plan_words import show_infeasible, show_planned

        if self.page:
            from tesserec.sharding.planner.report import render

            self.write(self.page, render(document))
        if self.as_json:
            print_json(document)
        elif document["outcome"] == "infeasible":
            show_infeasible(document)
        else:
            show_planned(document)
        if self.page and not self.as_json:
            out.print(f"page with pictures: {escape(str(self.page))}", soft_wrap=True)


def _make(case: Case, budget: float, fix: Path | None, output: _Output) -> None:
    from tesserec.cli.plan_search import planner, searched
    from tesserec.sharding.planner.infeasible import InfeasibleError
    from tesserec.train.plan_document import add_future, document_of_found, infeasible_document, moves_between

    before = fix and load(fix)
    try:
        found = searched(case, budget, before or None)
    except InfeasibleError as error:
        output.show(infeasible_document(case, error))
        raise SystemExit(1) from None
    if output.plan:
        made = replace(found.plan, planner=case.kept(found.estimate.step_seconds))
        output.write(output.plan, made.to_json())
    document = document_of_found(case, found)
    if before:
        document["moves"] = moves_between(case, str(fix), before, found.plan)
    if (output.page or output.as_json) and found.stopped != "interrupted":
        add_future(document, case, found.plan, planner(case, _EACH * budget), _FUTURE * budget)
    output.show(document)
    if not output.as_json:
        _say_next(case, output.plan)


def _say_next(case: Case, plan: Path | None) -> None:
    """The command that comes next."""
    source = escape(case.sources.source)
    if plan is None:
        out.print("to keep the plan: the same command with [cyan]-o plan.json[/]")
        return
    out.print(f"plan: {escape(str(plan))}", soft_wrap=True)
    if case.config is not None:
        ranks = case.topology.num_ranks
        several = f" --ranks {ranks}" if ranks > 1 else ""
        command = f"tesserec train {source}{several} --set sharding.plan={escape(str(plan))}"
        out.print(f"next: [cyan]{command}[/]", soft_wrap=True)
    else:
        out.print(f"next: [cyan]tesserec plan explain TABLE --plan {escape(str(plan))}[/]", soft_wrap=True)
