"""`tesserec plan compare`: what was estimated of a run, beside what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tesserec.cli.console import fail, out, print_json
from tesserec.cli.plan_options import Json, Stats, TopologyOption, machine_file

if TYPE_CHECKING:
    from tesserec.sharding.planner.result import Beside, Comparison
    from tesserec.train.comparison import Compared

SHOWN = 8  # tables
FAR = 0.15  # that is marked
Show = Callable[[float], str]


def compare(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.", show_default=False)],
    topology: TopologyOption = None,
    stats: Stats = None,
    refit: Annotated[
        Path | None,
        typer.Option("--refit", help="Write what makes up for the differences to this topology file."),
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a run took in each stage, its memory and its bytes, beside what is estimated of its plan.

    --refit: the estimate is by that file, and with what is written to it, it is as measured.
    """
    from tesserec.dataio.atomic import atomic_file
    from tesserec.train.comparison import compared

    if refit is not None and topology not in (None, str(refit)):
        fail("the estimate is by the file that is refitted: leave --topology out")
    chosen = str(refit) if refit else topology or ""
    found = compared(run, topology=chosen, machine=str(machine_file()), stats=str(stats or ""))
    if report is not None:
        from tesserec.sharding.planner.report import render

        with atomic_file(report) as file:
            file.write_text(render(found.document()), encoding="utf-8")
    if refit is not None:
        _refit(found, refit)
    if as_json:
        print_json(found.document())
    else:
        _show(found)
        _say_what_came(found, refit, report)


def _refit(found: Compared, path: Path) -> None:
    """Write the factors. Comments that stand before anything else are kept, others are not."""
    from itertools import takewhile

    from tesserec.dataio.atomic import atomic_file
    from tesserec.dataio.config import read_config
    from tesserec.sharding.planner.topology import Topology
    from tesserec.sharding.planner.topology_text import to_yaml

    head = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    comment = "\n".join(line.removeprefix("#").removeprefix(" ") for line in head)
    text = to_yaml(found.refitted(read_config(path, Topology)), comment)
    with atomic_file(path) as file:
        file.write_text(text, encoding="utf-8")


def _say_what_came(found: Compared, refit: Path | None, report: Path | None) -> None:
    from tesserec.cli.plan_words import show_notes
    from tesserec.train.comparison import findings

    show_notes(found.case.notes)
    for finding in findings(found.comparison):
        out.print(f"  · {escape(finding)}", soft_wrap=True)
    if refit is not None:
        out.print(f"factors written to {escape(str(refit))}: later estimates are multiplied by them")
    if report is not None:
        out.print(f"page written to {escape(str(report))}")


def _show(found: Compared) -> None:
    from tesserec.sharding.planner.units import in_bytes, in_seconds
    from tesserec.train.comparison import highest

    comparison, measured = found.comparison, found.measured
    threads = f"{measured.threads} thread{'s' * (measured.threads > 1)}"
    out.print(
        f"[bold]{escape(comparison['run'])}[/]: {measured.steps:,} steps on {measured.ranks} "
        f"rank{'s' * (measured.ranks > 1)} of {threads}; the busiest rank of each stage\n"
    )
    table = _table("")
    _row(table, "step", comparison["step"], in_seconds, "bold")
    for stage, pairs in comparison["stages"].items():
        _row(table, stage, highest(pairs), in_seconds)
    table.add_section()
    for part, pairs in comparison["memory"].items():
        _row(table, f"memory, {part}", highest(pairs), in_bytes)
    table.add_section()
    for stage, pairs in comparison["sent_bytes"].items():
        _row(table, f"sent in {stage}", highest(pairs), in_bytes)
    out.print(table)
    _show_tables(comparison)


def _show_tables(comparison: Comparison) -> None:
    """What was measured of the tables that take longest, and how far the estimates are off."""
    from tesserec.sharding.planner.units import in_bytes, in_seconds

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("table", overflow="fold", min_width=8)
    shown: dict[str, Show] = {
        "ids": "{:,.0f}".format,
        "rows": "{:,.0f}".format,
        "sent_bytes": in_bytes,
        "lookup_seconds": in_seconds,
        "update_seconds": in_seconds,
    }
    for name in shown:
        table.add_column(name.partition("_")[0], justify="right", no_wrap=True)
    longest = sorted(comparison["tables"].items(), key=lambda item: -_weight(item[1]))
    for name, found in longest[:SHOWN]:
        table.add_row(
            escape(name.rpartition(".")[2]), *(_seen(found.get(q), show) for q, show in shown.items())
        )
    out.print(table)
    if len(longest) > SHOWN:
        out.print(f"  and {len(longest) - SHOWN:,} more")


def _weight(table: Mapping[str, Beside]) -> float:
    pairs = (table.get(key) for key in ("lookup_seconds", "update_seconds"))
    return sum(max(pair["estimated"] or 0.0, pair["measured"] or 0.0) for pair in pairs if pair)


def _seen(pair: Beside | None, show: Show) -> str:
    """`4.1 ms +12%`; what was not measured is –."""
    if pair is None or pair["measured"] is None:
        return "–"
    return f"{show(pair['measured'])} [dim]{_off(pair)}[/]"


def _off(pair: Beside) -> str:
    """How far the estimate is off: `+12%`; "" where one side has no number."""
    estimated, measured = pair["estimated"], pair["measured"]
    return f"{estimated / measured - 1:+.0%}" if estimated and measured else ""


def _table(*titles: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for title in ("estimated", "measured", "off"):
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _row(table: Table, name: str, pair: Beside, show: Show, style: str = "") -> None:
    estimated, measured = pair["estimated"], pair["measured"]
    if not estimated and not measured:
        return
    off = _off(pair)
    if estimated and measured and abs(estimated / measured - 1) > FAR:
        off = f"[yellow]{off}[/]"
    numbers = ("–" if number is None else show(number) for number in (estimated, measured))
    table.add_row(name, *numbers, off, style=style)
