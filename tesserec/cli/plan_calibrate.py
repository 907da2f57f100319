"""`tesserec plan calibrate` and `tesserec plan topology`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tesserec.cli.console import console, fail, out, print_json, progress_bar
from tesserec.cli.plan_options import machine_file

if TYPE_CHECKING:
    from tesserec.sharding.planner.topology import Topology

BUSY = 0.5  # cores: from there on others are worth a word
COMMENT = """What `tesserec plan calibrate` measured on this machine, and `tesserec plan` reads. Edit it
freely: an error names the line. Sizes are bytes, times seconds; with units if you like: 80 GB, 20 us.
kernels: see the docstring of tesserec.sharding.planner.grids.Kernels."""


def calibrate(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; else this user's machine.yaml.")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks", help="Ranks that are measured side by side; else all cores, at most 8.", min=1
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the conditions and main figures as JSON.")
    ] = False,
) -> None:
    """Measure this machine for `tesserec plan`, through the engine's own kernels: under a minute."""
    from tesserec.dataio.atomic import atomic_file
    from tesserec.sharding.planner.topology_text import to_yaml
    from tesserec.train.calibrate import MOST_RANKS, CalibrationError, cores
    from tesserec.train.calibrate import calibrate as run

    target, many = output or machine_file(), ranks or min(cores(), MOST_RANKS)
    if (load := os.getloadavg()[0]) > BUSY:
        console.print(
            f"{load:.1f} cores were busy in the last minute: what is measured is a machine with others on it"
        )
    try:
        with progress_bar("Measuring", total=None, unit="points") as update:
            topology = run(many, lambda done, total, note: update(done, note=note, total=total))
    except CalibrationError as error:
        fail(f"{error}; nothing was written")
    except KeyboardInterrupt:
        _leave_interrupted()
    with atomic_file(target) as file:
        file.write_text(to_yaml(topology, COMMENT), encoding="utf-8")
    if as_json:
        print_json({"path": str(target), **figures(topology), "measured": dict(topology.measured)})
        return
    for name, value in figures(topology).items():
        out.print(f"{name.replace('_', ' '):>28}  {value}", soft_wrap=True)
    out.print(f"{topology.measured['seconds']} s → {target}")


def topology(
    name: Annotated[str | None, typer.Argument(help="A preset, or a file; without it, the presets.")] = None,
) -> None:
    """Print a topology as YAML to start from; without a name, the presets that there are."""
    from tesserec.train.plan_case import preset_names, topology_file

    typer.echo("\n".join(preset_names()) if name is None else topology_file(name).read_text().rstrip())


def figures(topology: Topology) -> dict[str, str]:
    """What was found, in a few words."""
    from tesserec.sharding.planner.speeds import Speeds
    from tesserec.sharding.planner.units import in_bytes, in_seconds, scaled

    device, host = next(iter(topology.devices.values())), topology.hosts[0]
    found = {"memory": in_bytes(device.tiers[0].bytes)}
    for sharing in dict.fromkeys((1, host.ranks)):
        speeds = Speeds(device, sharing)
        beside = f"{sharing}_rank{'s' * (sharing > 1)}_of_{speeds.threads}_thread{'s' * (speeds.threads > 1)}"
        row = in_seconds(float(speeds.row(64, 4)))
        flops = scaled(speeds.threads / speeds.price["flop"], "FLOP/s")
        found[beside] = f"a row of 64 float32 from memory in {row}, {flops} each"
    if host.inside.curve is not None:
        speed = scaled(host.inside.bandwidth, "B/s")
        found["between_ranks"] = f"{in_seconds(host.inside.latency)} and {speed}"
    return found


def _leave_interrupted() -> None:
    """Leave as programs do that were told to stop."""
    typer.echo("interrupted; nothing was written", err=True)
    raise typer.Exit(130)
