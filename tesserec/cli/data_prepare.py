"""`tesserec data prepare` and `tesserec data schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tesserec.cli.console import fail, out, print_json, progress_bar

if TYPE_CHECKING:
    from tesserec.dataio.prepare import Prepared


def prepare(
    files: Annotated[
        list[Path], typer.Argument(help="CSV, TSV (.gz, .zst), Parquet, Arrow or RecBole .inter.")
    ],
    schema: Annotated[str, typer.Option("--schema", "-s", help="A file, or criteo, avazu, movielens.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a schema key: split.seed=1.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set of that name.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads; by default all cores.", min=1)] = None,
    memory: Annotated[
        float, typer.Option(help="GiB that counting the vocabularies may take.", min=0.001)
    ] = 1.25,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Turn raw logs into a data set: train, valid and test Parquet files and the fitted encoder."""
    from tesserec.dataio.prepare import prepare as run
    from tesserec.dataio.schema import read_schema

    parsed = read_schema(schema, overrides or [])
    titles = {"split": "Deciding the split", "fit": "Pass 1: fitting", "write": "Pass 2: writing"}
    with progress_bar("Reading", total=None) as update:
        prepared = run(
            files,
            parsed,
            output,
            overwrite=overwrite,
            threads=threads,
            memory_bytes=int(memory * 2**30),
            progress=lambda stage, done, total: update(done, note=titles[stage], total=total),
        )
    if as_json:
        print_json(_summary(prepared))
    else:
        _show(prepared)


def schema(
    name: Annotated[str | None, typer.Argument(help="A ready schema; without it, their names.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Guess a schema from this file.")] = None,
    label: Annotated[str | None, typer.Option(help="With --from: the label's column.")] = None,
    threshold: Annotated[float | None, typer.Option(help="With --from: a 1 is value >= threshold.")] = None,
) -> None:
    """Print a schema to start from: a ready one, or one guessed from a file."""
    if source is not None:
        from tesserec.dataio.infer import infer_schema

        if name is not None or label is None:
            fail("--from FILE goes with --label COLUMN and without a name")
        typer.echo(infer_schema(source, label, threshold=threshold).to_yaml(), nl=False)
        return
    from tesserec.dataio.schema import ready_schemas, schema_path

    typer.echo("\n".join(ready_schemas()) if name is None else schema_path(name).read_text().rstrip())


def _summary(prepared: Prepared) -> dict[str, Any]:
    info, rows = prepared.dataset.info, sum(prepared.rows.values())
    return {
        "path": str(prepared.dataset.path),
        "rows": dict(prepared.rows),
        "seconds": round(prepared.seconds, 3),
        "rows_per_second": round(rows / prepared.seconds),
        "labels": list(info.labels),
        "dense": list(info.dense),
        "num_embeddings": {feature.name: feature.num_embeddings for feature in info.sparse},
        "oov": {split: dict(counts) for split, counts in prepared.oov.items() if prepared.rows[split]},
    }


def _show(prepared: Prepared) -> None:
    info, summary = prepared.dataset.info, _summary(prepared)
    table = Table("feature", title=f"{info.name}: {len(info.dense)} dense, {len(info.sparse)} sparse")
    table.add_column("ids", justify="right")
    for split in summary["oov"]:
        table.add_column(f"{split} OOV", justify="right")
    for feature in info.sparse:
        counts = [summary["oov"][split].get(feature.name) for split in summary["oov"]]
        shown = ["" if count is None else f"{count:,}" for count in counts]
        table.add_row(
            feature.name + (" (list)" if feature.is_list else ""), f"{feature.num_embeddings:,}", *shown
        )
    out.print(table)
    rows = ", ".join(f"{split} {count:,}" for split, count in prepared.rows.items())
    out.print(
        f"{rows} rows in {prepared.seconds:.1f} s ({summary['rows_per_second']:,} rows/s) → {summary['path']}"
    )
