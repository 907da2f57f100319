"""Processes and signals: one server, or several behind one socket; a SIGTERM drains them."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from tesserec.dataio.config import StrictModel
from tesserec.serve.app import create_app
from tesserec.serve.repository import Repository, RepositorySettings
from tesserec.serve.service import Service
from tesserec.serve.settings import ServeSettings

_GIVEN = "TESSEREC_SERVE"  # what a worker, which uvicorn starts, is told
_KEEP_ALIVE_SECONDS = 75
_SWITCH_SECONDS = 0.0005  # how long a thread that loads may keep the interpreter from the event loop
_GC_THRESHOLDS = (50_000, 20, 50)


class ServeError(ValueError):
    """A service that cannot be started as it was asked for."""


class Given(StrictModel):
    """What a worker needs to know."""

    path: Path
    settings: ServeSettings
    counts: Path | None


def serve(path: Path, settings: ServeSettings, started: Callable[[str], None]) -> None:
    """Serve the repository, or the one artefact, at `path` until a signal ends it. ServeError.

    started: told the address, when connections are taken; models may still be loading.
    """
    if not path.is_dir():
        raise ServeError(f"{path}: no such folder; wanted a repository of models, or an artefact")
    if settings.otel:
        _check_tracing()
    config = _config(settings)
    with tempfile.TemporaryDirectory(prefix="tesserec-serve-") as folder:
        counts = Path(folder) if settings.workers > 1 else None
        os.environ[_GIVEN] = Given(path=path.resolve(), settings=settings, counts=counts).model_dump_json()
        socket = config.bind_socket()
        socket.listen(config.backlog)  # who comes while workers start waits for them
        started(address(settings, socket.getsockname()[1]))
        signal.signal(signal.SIGTERM, _leave)  # uvicorn raises it again when it has shut down
        with suppress(KeyboardInterrupt):
            if settings.workers > 1:
                Multiprocess(config, [socket]).run()
            else:
                uvicorn.Server(config).run([socket])


def worker_app() -> FastAPI:
    """The app of a worker. uvicorn makes it on the event loop, when it has set its own signal handlers."""
    given = Given.model_validate_json(os.environ[_GIVEN])
    _log_to_stderr(given.settings.workers)
    app = create_app(
        Repository(given.path, repository_settings(given.settings)), given.settings, given.counts
    )
    _drain_first(app.state.service)
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what is here now stays: no collection need look at it
    gc.set_threshold(*_GC_THRESHOLDS)
    return app


def repository_settings(settings: ServeSettings) -> RepositorySettings:
    """What of the settings a repository is told."""
    return RepositorySettings(
        memory_bytes=settings.memory_bytes,
        auto_promote=settings.auto_promote,
        poll_seconds=settings.poll_seconds,
        limits=settings.limits,
        max_rows=settings.queue.max_batch_rows,
    )


def address(settings: ServeSettings, port: int) -> str:
    """Where a browser on this machine finds the page."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def _config(settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        f"{__name__}:worker_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )


def _log_to_stderr(workers: int) -> None:
    """Say what becomes of versions; which of several workers says it, by its process."""
    who = " [%(process)d]" if workers > 1 else ""
    logging.basicConfig(format=f"%(asctime)s{who} %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("tesserec.serve").setLevel(logging.INFO)


def _drain_first(service: Service) -> None:
    """On SIGTERM say so at /readyz, go on for `drain_seconds`, then shut down; on a second one, at once."""
    loop, shut_down = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    assert callable(shut_down)

    def drain(number: int, frame: FrameType | None) -> None:
        seconds = 0.0 if service.draining else service.settings.drain_seconds
        service.draining = True
        loop.call_soon_threadsafe(loop.call_later, seconds, shut_down, number, frame)

    signal.signal(signal.SIGTERM, drain)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _check_tracing() -> None:
    """ServeError unless FastAPI can trace requests, with the exporter that OTEL_… variables name."""
    for module in ("fastapi.telemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp"):
        try:
            importlib.import_module(module)
        except ImportError:
            raise ServeError(f"otel needs {module}: pip install --upgrade 'tesserec[otel]' fastapi") from None
