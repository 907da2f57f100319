"""Apps around repositories of the shop, to be asked by tests."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from tesserec.dataio.config import parse_config
from tesserec.serve.app import create_app
from tesserec.serve.artefact import write_artefact
from tesserec.serve.process import repository_settings
from tesserec.serve.repository import Repository
from tesserec.serve.settings import ServeSettings
from tests.serve.artefacts import content
from tests.serve.fake_versions import until

ASKED: dict[str, Any] = {
    "context": {"user": "u3", "price": 0.5},
    "candidates": [{"item": 7, "tags": "t1|t2"}, {"item": 250, "tags": None}, {"item": 11, "tags": "t5"}],
}


def make_versions(folder: Path) -> Path:
    """A repository with shop/1 and shop/2, whose scores differ."""
    first = content(folder / "parts 1", embedding_dim=8)
    write_artefact(folder / "repository" / "shop" / "1", first)
    second = content(folder / "parts 2", embedding_dim=4)
    write_artefact(folder / "repository" / "shop" / "2", second)
    return folder / "repository"


@contextmanager
def serving_app(
    made: Path, tmp_path: Path, *versions: str, **settings: Any
) -> Iterator[tuple[httpx.Client, FastAPI]]:
    """An app around a repository with copies of these versions, ready, behind a socket, and a client."""
    for version in versions:
        shutil.copytree(made / "shop" / version, tmp_path / "repository" / "shop" / version)
    chosen = parse_config({"poll_seconds": 0.01, **settings}, ServeSettings)
    repository = Repository(tmp_path / "repository", repository_settings(chosen))
    app = create_app(repository, chosen)
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="on", ws="none")
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{socket.getsockname()[1]}", timeout=30) as client:
            until(lambda: not repository.not_ready())
            yield client, app
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def asking(made: Path, tmp_path: Path, *versions: str, **settings: Any) -> Iterator[httpx.Client]:
    """Only the client."""
    with serving_app(made, tmp_path, *versions, **settings) as (client, _):
        yield client
