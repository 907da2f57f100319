"""The command line. One small file per command; heavy imports wait until a command runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tesserec import __version__
from tesserec.cli.checkpoint import export_table, reshard, verify
from tesserec.cli.checkpoint import inspect as inspect_checkpoint
from tesserec.cli.data_inspect import inspect, synth
from tesserec.cli.data_prepare import prepare, schema
from tesserec.cli.data_stats import stats
from tesserec.cli.evaluate import evaluate as evaluate_command
from tesserec.cli.export import export
from tesserec.cli.memory import memory as memory_command
from tesserec.cli.plan import plan
from tesserec.cli.predict import predict as predict_command
from tesserec.cli.ranks import errors_in_one_line
from tesserec.cli.serve import serve as serve_command
from tesserec.cli.serve import token
from tesserec.cli.train import train as train_command
from tesserec.sharding.launch import in_ranks, settle

app = typer.Typer(
    name="tesserec",
    help="Train ranking models on sparse id features, from raw logs to predictions.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(name="data", help="Prepare, inspect and make data sets.", no_args_is_help=True)
for command in (schema, prepare, inspect, stats, synth):
    data.command(command.__name__)(command)
app.add_typer(data)
checkpoints = typer.Typer(
    name="checkpoint", help="Inspect, verify and convert checkpoints.", no_args_is_help=True
)
checkpoints.command("inspect")(inspect_checkpoint)
checkpoints.command("verify")(verify)
checkpoints.command("reshard")(reshard)
checkpoints.command("export-table")(export_table)
app.add_typer(checkpoints)
app.add_typer(plan)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("predict")(predict_command)
app.command("memory")(memory_command)
app.command("serve")(serve_command)
app.command("token")(token)
app.command("export")(export)


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
    """Run the command line. An error of ours is a message; any other is a bug and keeps its traceback."""
    if in_ranks():
        settle()
    sys.path.append(os.getcwd())  # where a config's `module:Class` looks for a model of the user's own
    with errors_in_one_line():
        app()
