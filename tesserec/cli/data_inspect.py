"""`tesserec data inspect` and `tesserec data synth`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from tesserec.cli.console import out, print_json, progress_bar

if TYPE_CHECKING:
    from tesserec.dataio.inspect import ColumnReport, Inspection


_HEADINGS = ("column", "role", "missing", "distinct", "top", "Zipf", "1 · 50 · 99 %", "length")


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A raw file (CSV, Parquet, Arrow, RecBole) or a prepared folder.")
    ],
    schema: Annotated[
        str | None,
        typer.Option("--schema", "-s", help="Roles and lists of raw columns: a file, or criteo, …"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the statistics as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture: .png, .svg or .pdf.")] = None,
) -> None:
    """Show what the columns hold: distinct ids, skew, label rate, missing values, quantiles, list lengths."""
    from tesserec.dataio.inspect import inspect_data
    from tesserec.dataio.schema import read_schema

    with progress_bar("Reading", total=None) as update:
        inspection = inspect_data(path, read_schema(schema) if schema else None, progress=update)
    if plot is not None:
        from tesserec.dataio.inspect_plot import plot_inspection

        plot_inspection(inspection, plot)
    if as_json:
        print_json(inspection.to_dict())
        return
    _show(inspection)
    if plot is not None:
        out.print(f"picture: {plot}")


def synth(
    output: Annotated[Path, typer.Argument(help="The file to write: .csv, .tsv (.gz, .zst) or .parquet.")],
    rows: Annotated[int, typer.Option(help="How many.", min=1)] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of everything drawn.", min=0)] = 0,
    max_ids: Annotated[
        int, typer.Option(help="Most distinct ids of a column; Criteo's own sizes go to 10131227.", min=2)
    ] = 100_000,
    multi_hot: Annotated[int, typer.Option(help="Columns M1 … of lists of ids.", min=0)] = 0,
    mean_length: Annotated[float, typer.Option(help="Mean length of those lists.", min=0)] = 5.0,
    p_true: Annotated[bool, typer.Option(help="Write the true probability as a column.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make Criteo-like click logs from a planted model, so that the best reachable AUC is known."""
    from tesserec.dataio.planted import SynthOptions
    from tesserec.dataio.synth import write_synth

    options = SynthOptions(rows, seed, max_ids, multi_hot, mean_length, p_true)
    with progress_bar("Writing", total=rows) as update:
        summary = write_synth(output, options, progress=update)
    if as_json:
        print_json({**asdict(summary), "path": str(output), "schema": str(summary.schema)})
        return
    out.print(f"{summary.rows:,} rows → {output}, schema → {summary.schema}")
    out.print(f"click rate {summary.click_rate:.4f}; best reachable AUC {summary.best_auc:.4f}")


def _show(inspection: Inspection) -> None:
    splits = ", ".join(f"{name} {rows:,}" for name, rows in inspection.splits.items())
    out.print(f"[bold]{inspection.path}[/]: {inspection.rows:,} rows" + (f" ({splits})" if splits else ""))
    rows = [[column.name, column.role, *_cells(column)] for column in inspection.columns]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    shown = [i for i in range(len(_HEADINGS)) if any(row[i] for row in rows)]
    for i in shown:
        table.add_column(_HEADINGS[i], justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    out.print(table)
    for column in inspection.columns:
        if column.role == "label" and column.numbers:
            out.print(f"rate of {column.name}: {column.numbers.mean:.4f}")
    if any(column.ids and not column.ids.exact for column in inspection.columns):
        out.print("≈: estimated from a sample of the ids")


def _cells(column: ColumnReport) -> list[str]:
    cells = [f"{column.missing:.1%}" if column.missing else "", "", "", "", "", ""]
    if (ids := column.ids) is not None:
        zipf = "" if ids.zipf is None else f"{ids.zipf:.2f}"
        top = f"{ids.top[0][1]:.1%}" if ids.top else ""
        cells[1:4] = [f"{'' if ids.exact else '≈ '}{ids.distinct:,}", top, zipf]
    if (numbers := column.numbers) is not None:
        low, _, median, _, high = numbers.quantiles
        cells[4] = " · ".join(f"{value:.{2 if abs(value) < 1 else 3}g}" for value in (low, median, high))
    if (lengths := column.lengths) is not None:
        cells[5] = f"{lengths.mean:.1f} ≤ {lengths.maximum:.0f}"
    return cells
