"""`tesserec memory`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tesserec.cli.console import out, print_json

if TYPE_CHECKING:
    from tesserec.embeddings.memory import MemoryReport


def memory(
    config: Annotated[
        Path, typer.Argument(help="What would be trained: a YAML or TOML file.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a key, such as data.batch_size=4096; repeatable."
        ),
    ] = None,
    ranks: Annotated[
        int, typer.Option("--ranks", help="Show the fullest of so many ranks on this machine.", min=1)
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the tables of a training run take in memory: rows, optimizer state, workspace of a batch.

    No table is allocated. Exit status 1 if it is more than this machine can give.
    """
    from tesserec.dataio.config import read_config
    from tesserec.dataio.dataset import Dataset
    from tesserec.train.config import TrainConfig, check_ranks
    from tesserec.train.memory import run_memory

    settings = read_config(config, TrainConfig, overrides or ())
    check_ranks(settings, ranks)
    dataset = Dataset.open(settings.data.path)
    reports = [run_memory(settings, dataset, (0,) * ranks, rank) for rank in range(ranks)]
    report = max(reports, key=lambda each: each.total_bytes)
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)
    if not report.fits:
        raise SystemExit(1)


def _show(report: MemoryReport) -> None:
    from tesserec.embeddings.memory import in_units

    tables = report.total_bytes - report.dense_bytes
    sums = (report.rows_bytes, report.state_bytes, report.workspace_bytes, tables)
    table = Table(box=SIMPLE_HEAD, show_footer=True)
    table.add_column("table", footer="all", overflow="fold")
    table.add_column("shape", justify="right", no_wrap=True)
    for title, size in zip(("rows", "state", "workspace", "total"), sums, strict=True):
        table.add_column(title, footer=in_units(size), justify="right", no_wrap=True)
    for t in report.tables:
        sizes = (t.rows_bytes, t.state_bytes, t.workspace_bytes, t.total_bytes)
        shape = f"{t.num_embeddings:,} × {t.embedding_dim}"
        table.add_row(escape(t.table), shape, *map(in_units, sizes))
    out.print(table)
    have = "unknown" if report.available_bytes is None else in_units(report.available_bytes)
    out.print(f"dense parameters with gradients and state: {in_units(report.dense_bytes)}")
    out.print(f"in all: {in_units(report.total_bytes)}; this machine can give: {have}")
