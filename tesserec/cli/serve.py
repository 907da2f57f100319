"""`tesserec serve` and `tesserec token`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from tesserec.cli.console import console, fail, out

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def serve(
    path: Annotated[
        Path,
        typer.Argument(help="A repository (MODEL/VERSION folders), or one artefact.", show_default=False),
    ],
    host: Annotated[str | None, typer.Option("--host", help="Address to listen at; 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port; 0 takes a free one; 8080.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes; they share the tables.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="What all loaded versions may take, such as 8GB.")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option("--max-queue", help="Requests that may wait; more are refused.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="File of bearer tokens; see `tesserec token`.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let anybody do anything, from any machine.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
    access_log: Annotated[
        Path | None, typer.Option("--access-log", help="JSON lines of requests: a file, or - for stderr.")
    ] = None,
    otel: Annotated[bool, typer.Option("--otel", help="Trace requests by OpenTelemetry.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings: a YAML or TOML file; options go before it.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, such as limits.candidates=500; repeatable."
        ),
    ] = None,
) -> None:
    """Serve models: a REST API, and a page to look at them and try them.

    A version that appears in the repository is verified, warmed up and swapped in. SIGTERM ends the service
    when it has answered what it was asked. Addresses that other machines can reach need --tokens.
    """
    from tesserec.dataio.config import read_config
    from tesserec.serve.process import serve as run
    from tesserec.serve.settings import ServeSettings

    options = {
        "host": host,
        "port": port,
        "workers": workers,
        "memory_bytes": memory and _bytes(memory),
        "queue.max_requests": max_queue,
        "tokens": tokens and str(tokens),
        "insecure": insecure or None,
        "tls_cert": tls_cert and str(tls_cert),
        "tls_key": tls_key and str(tls_key),
        "access_log": access_log and str(access_log),
        "otel": otel or None,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    settings = read_config(config, ServeSettings, [*given, *(overrides or ())])
    run(path, settings, lambda address: console.print(f"Serving {path} at {address}", soft_wrap=True))


def token(
    file: Annotated[Path, typer.Argument(help="The file to add the token to.", show_default=False)],
    name: Annotated[str, typer.Option("--name", help="Whose it is, for the access log.", show_default=False)],
    scope: Annotated[str, typer.Option("--scope", help="What it may do: rank, manage, or both.")] = "rank",
) -> None:
    """Make a bearer token for `tesserec serve --tokens FILE`. The file has its hash; it is shown only now."""
    from tesserec.serve.access import new_token

    secret = new_token(file, name, scope.split(","))
    console.print(f"A token for {name} ({scope}); a running service takes it within seconds:", soft_wrap=True)
    out.print(secret, soft_wrap=True)


def _bytes(text: str) -> int:
    """`8GB`, `512 MiB` → a number of bytes."""
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        fail(f"--memory {text!r}: wanted a size such as 8GB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2]])
