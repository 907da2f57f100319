"""`tesserec data stats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from tesserec.cli.console import fail, out, print_json, progress_bar

if TYPE_CHECKING:
    from tesserec.dataio.stats import DataStats, FeatureStats

_HEADINGS = ("feature", "rows", "read", "length", "empty", "top", "1 %", "10 %", "Zipf", "hot rows")


def stats(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Prepared folders, Parquet files of ids, or a training config; one, or parts."),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The JSON file to write.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="PATHS are statistics of parts: add them up.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Which split; by default the one that trains.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Read about so many rows, from all over the split.", min=1)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; by default all cores.", min=1)] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the statistics as JSON.")] = False,
) -> None:
    """Count what a planner wants to know: how long bags are, and how often each row of a table is read.

    Statistics of parts add up: `tesserec data stats --merge monday.json tuesday.json -o week.json`.
    """
    from tesserec.dataio.stats import merge_stats, read_stats

    if merge and (rows is not None or split is not None):
        fail("--merge adds up files that are there; --rows and --split are of data to be read")
    found = [read_stats(path) if merge else _read(path, split, rows, threads) for path in paths]
    whole = merge_stats(found)
    if output is not None:
        whole.write(output)
    if plot is not None:
        from tesserec.dataio.stats_plot import plot_stats

        plot_stats(whole, plot)
    if as_json:
        print_json(whole.to_dict())
        return
    _show(whole)
    for title, path in (("statistics", output), ("picture", plot)):
        if path is not None:
            out.print(f"{title}: {escape(str(path))}")


def _read(path: Path, split: str | None, rows: int | None, threads: int | None) -> DataStats:
    from tesserec.dataio.collect import collect_stats, open_data

    folder, train = _data_of(path)
    dataset = open_data(folder)
    with progress_bar(f"Reading {escape(str(folder))}", total=None) as update:
        return collect_stats(
            dataset,
            split or train,
            rows=rows,
            threads=threads,
            progress=lambda done, total: update(done, total=total),
        )


def _data_of(path: Path) -> tuple[Path, str]:
    """The data that a path stands for, and its split that trains: its own, or those of a training config."""
    if path.suffix not in (".yaml", ".yml", ".toml"):
        return path, "train"
    from tesserec.dataio.config import read_config
    from tesserec.train.config import TrainConfig

    data = read_config(path, TrainConfig).data
    return data.path, data.train


def _show(whole: DataStats) -> None:
    read = f"{whole.rows:,} rows" + (f" of {whole.of_rows:,}" if whole.rows < whole.of_rows else "")
    out.print(f"[bold]{escape('; '.join(whole.data))}[/]: {read}")
    cells = [[escape(name), *_cells(feature)] for name, feature in whole.features.items()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    shown = [i for i in range(len(_HEADINGS)) if any(row[i] for row in cells)]
    for i in shown:
        table.add_column(_HEADINGS[i], justify="left" if i in (0, 9) else "right", no_wrap=True)
    for row in cells:
        table.add_row(*(row[i] for i in shown))
    out.print(table)
    out.print(
        "top, 1 %, 10 %: share of the ids that go to the hottest row, to the hottest 1 % and 10 % of the rows"
    )
    if any(not feature.reads.exact for feature in whole.features.values()):
        out.print("≈: estimated from a sample of the rows, within 3 %")


def _cells(feature: FeatureStats) -> list[str]:
    lengths, reads = feature.lengths, feature.reads
    multi_hot = lengths.longest > 1 or lengths.empty > 0
    hottest = [f"{float(feature.curve.hottest(share * feature.rows)):.1%}" for share in (0.01, 0.1)]
    return [
        f"{feature.rows:,}",
        f"{'' if reads.exact else '≈ '}{reads.distinct:,}",
        f"{lengths.mean:.1f} ≤ {lengths.longest:,}" if multi_hot else "",
        f"{lengths.empty:.1%}" if lengths.empty else "",
        f"{reads.hot_counts[0] / feature.ids:.1%}" if reads.hot_counts else "",
        *hottest,
        "" if feature.zipf is None else f"{feature.zipf:.2f}",
        "first" if feature.curve.ordered else "strewn",
    ]
