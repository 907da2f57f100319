"""How the command line looks: one console, one progress bar, one way to fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console(stderr=True)  # people read stderr; stdout carries results, so that `--json | jq` works
out = Console(highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def fail(message: str) -> NoReturn:
    """Print `message` as an error and leave with status 2."""
    console.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(2)


def metric_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Metrics as rows, what was measured as columns."""
    from tesserec.train.report import TITLES, shown

    table = Table("", *(escape(name) for name in found), box=SIMPLE_HEAD)
    for key, title in TITLES.items():
        if any(key in metrics for metrics in found.values()):
            table.add_row(title, *(shown(metrics.get(key)) for metrics in found.values()))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


@contextmanager
def progress_bar(description: str, total: float | None, unit: str = "rows") -> Iterator[Any]:
    """A progress bar on stderr; yields `update(done, note="")` with the absolute count done."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(description, total=total, note="")

        def update(done: float | None, note: str = "", total: float | None = None) -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield update
