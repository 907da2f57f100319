"""What the commands of `tesserec plan` have in common: options, and where the measured machine is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, such as data.batch_size=4096; repeatable."
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option("--ranks", help="Processes that share the tables; else all of the topology.", min=1),
]
TopologyOption = Annotated[
    str | None,
    typer.Option(
        "--topology", help="A file or a preset; else what `tesserec plan calibrate` measured.", metavar="NAME"
    ),
]
Stats = Annotated[
    Path | None, typer.Option("--stats", help="From `tesserec data stats`; else a sample of the data.")
]
Constraints = Annotated[
    Path | None, typer.Option("--constraints", help="What tables may do: a YAML file.", show_default=False)
]
Budget = Annotated[float, typer.Option("--budget", help="Seconds of search, about.", min=0.0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PlanFile = Annotated[Path, typer.Option("--plan", help="The plan that is asked about.")]


def machine_file() -> Path:
    """Where `tesserec plan calibrate` writes what it has measured, unless told."""
    return Path(typer.get_app_dir("tesserec")) / "machine.yaml"
