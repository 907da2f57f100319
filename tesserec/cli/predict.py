"""`tesserec predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tesserec.cli.console import console, fail, progress_bar


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder made by `tesserec train`.", show_default=False)],
    inputs: Annotated[list[Path], typer.Argument(help="Rows to score, in this order.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The Parquet file to write.", show_default=False)
    ],
    columns: Annotated[
        Literal["none", "kept", "all"], typer.Option("--columns", help="Input columns beside the score.")
    ] = "kept",
    name: Annotated[str, typer.Option("--name", help="Name of the score column.")] = "score",
    kind: Annotated[
        Literal["auto", "raw", "prepared"],
        typer.Option(
            "--input", help="raw: through the run's encoder. auto: prepared if in a prepared data set."
        ),
    ] = "auto",
    checkpoint: Annotated[
        Literal["best", "last"], typer.Option("--checkpoint", help="Which weights.")
    ] = "best",
) -> None:
    """Score rows: prepared Parquet, or raw files of the kind the run's data was prepared from."""
    from tesserec.train.predict import is_prepared, predict_files

    kinds = {kind} if kind != "auto" else {"prepared" if is_prepared(path) else "raw" for path in inputs}
    if len(kinds) > 1:
        fail("some inputs are prepared and some are raw: score them separately, or say which with --input")
    with progress_bar("predict", None) as update:
        rows = predict_files(
            run,
            inputs,
            output,
            raw=kinds == {"raw"},
            columns=columns,
            name=name,
            checkpoint=checkpoint,
            each=update,
        )
    console.print(f"{rows:,} rows ({kinds.pop()}) scored into {output}", soft_wrap=True)
