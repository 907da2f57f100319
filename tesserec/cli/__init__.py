"""The command line. One small file per command; heavy imports wait until a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from tesserec import __version__
from tesserec.cli import data_inspect, data_prepare, evaluate, predict, train
from tesserec.cli.console import fail

app = typer.Typer(
    name="tesserec",
    help="Train ranking models on sparse id features, from raw logs to predictions.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(name="data", help="Prepare, inspect and make data sets.", no_args_is_help=True)
data.command("schema")(data_prepare.schema)
data.command("prepare")(data_prepare.prepare)
data.command("inspect")(data_inspect.inspect)
data.command("synth")(data_inspect.synth)
app.add_typer(data)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"tesserec {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Train ranking models on sparse id features, from raw logs to predictions."""


def main() -> None:
    """Run the command line. An error class of ours is a message; any other error is a bug and keeps its traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        ours = type(error).__module__.startswith("tesserec.")
        if not ours and not isinstance(error, OSError):
            raise
        fail(str(error))
