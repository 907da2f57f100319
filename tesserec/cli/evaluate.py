"""`tesserec evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tesserec.cli.console import metric_table, out, print_json


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a trained model on a split: AUC, log loss, NE, calibration, and GAUC where there are groups."""
    from tesserec.train.evaluate import evaluate_run

    metrics = evaluate_run(run, data=data, split=split, checkpoint=checkpoint, compare=compare or ())
    if as_json:
        print_json(metrics)
    else:
        out.print(metric_table(metrics))
