"""`tesserec evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tesserec.cli.console import fail, metric_table, out, print_json
from tesserec.cli.ranks import errors_in_one_line, joined

if TYPE_CHECKING:
    from tesserec.autograd.module import Module
    from tesserec.embeddings.quantize import Deviation


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder made by `tesserec train`.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="Another prepared data set than the run's.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Which of its splits.")] = "test",
    checkpoint: Annotated[
        Literal["best", "last"], typer.Option("--checkpoint", help="Which weights.")
    ] = "best",
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare-column", help="Measure this kept column of probabilities as well; repeatable."
        ),
    ] = None,
    tables: Annotated[
        Literal["int8", "int4", "int2", "float16", "bfloat16"] | None,
        typer.Option("--tables", help="Store the tables like this, and show how far off that makes them."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", help="Processes that share the tables and the rows; starts MPI.", min=1),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a trained model on a split: AUC, log loss, NE, calibration, and GAUC where there are groups."""
    from tesserec.sharding.watchdog import watch
    from tesserec.train.evaluate import evaluate_run

    comm = joined(ranks)
    if tables is not None and comm.size > 1:
        fail("--tables is for one rank")
    found: list[Deviation] = []

    def convert(model: Module) -> Module:
        from tesserec.embeddings.quantize import deviations, quantize

        if tables is None:
            return model
        converted = quantize(model, tables)
        found.extend(deviations(model, converted))
        return converted

    with watch(comm), errors_in_one_line(comm):
        metrics = evaluate_run(
            run,
            data=data,
            split=split,
            checkpoint=checkpoint,
            compare=compare or (),
            convert=convert,
            comm=comm,
        )
    if comm.rank:
        return
    if as_json:
        print_json(metrics | ({"tables": [asdict(table) for table in found]} if tables else {}))
        return
    out.print(metric_table(metrics))
    if found:
        out.print(_deviation_table(found))


def _deviation_table(found: Sequence[Deviation]) -> Table:
    """How far the values of each table are off, and how much smaller it is."""
    shown = Table(box=SIMPLE_HEAD)
    shown.add_column("table", overflow="fold")
    for title in ("type", "row bytes", "max off", "rms off", "relative"):
        shown.add_column(title, justify="right", no_wrap=True)
    for t in found:
        sizes = f"{t.row_bytes_before} → {t.row_bytes}"
        errors = f"{t.max:.2e}", f"{t.rms:.2e}", f"{t.relative:.2%}"
        shown.add_row(escape(t.table), t.data_type, sizes, *errors)
    return shown
