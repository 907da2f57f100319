"""A repository of versions that are only described, and a loader that makes something like them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from tesserec.dataio.atomic import atomic_folder
from tesserec.serve.places import Place
from tesserec.serve.query import Query
from tesserec.serve.repository import Admit, Repository, RepositorySettings
from tesserec.serve.version import Version

POLL_SECONDS = 0.005
QUERY = cast(Query, None)  # one that nobody looks at


def put(repository: Path, model: str, number: int | str, **about: Any) -> Path:
    """Put a version down, whole. about: score, nbytes, error (of loading), damaged (of its tables)."""
    path = repository / model / str(number)
    with atomic_folder(path) as folder:
        (folder / "manifest.json").write_text(json.dumps(about))
    return path


class FakeVersion:
    """What a repository and its users know of a version."""

    def __init__(self, place: Place, about: dict[str, Any]):
        self.model, self.number, self.about = place.model, place.number, about
        self.nbytes = about.get("nbytes", 0)
        self.artefact = self.follower = self
        self.polled = 0

    def score(self, queries: list[Any]) -> Any:
        """One score a query: the number of the version, unless another one is stated."""
        return np.full(len(queries), self.about.get("score", self.number), np.float32)

    def warm_up(self) -> None:
        """Nothing to do."""

    def poll(self) -> int:
        """Nothing new."""
        self.polled += 1
        return 0

    def verify(self, stop: Callable[[], bool]) -> None:
        """ValueError when it is said to be damaged; as soon as a file `verify` is there, if that is to be."""
        while self.about.get("verify_when") and not Path(self.about["verify_when"]).exists():
            if stop():
                return
            time.sleep(POLL_SECONDS)
        if "damaged" in self.about:
            raise ValueError(self.about["damaged"])


class FakeLoader:
    """Makes fake versions; while `gate` is closed none. loaded: which, in order."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.loaded: list[str] = []

    def __call__(self, place: Place, admit: Admit) -> Version:
        about = json.loads((place.path / "manifest.json").read_text())
        admit(about.get("nbytes", 0))
        assert self.gate.wait(10)
        if "error" in about:
            raise ValueError(about["error"])
        self.loaded.append(str(place))
        return cast(Version, FakeVersion(place, about))


@contextmanager
def serving(path: Path, loader: FakeLoader | None = None, **settings: Any) -> Iterator[Repository]:
    """A repository at work."""
    chosen = RepositorySettings(poll_seconds=POLL_SECONDS, **settings)
    repository = Repository(path, chosen, loader or FakeLoader())
    repository.start()
    try:
        yield repository
    finally:
        repository.stop()


def until(condition: Callable[[], Any]) -> None:
    """Wait for it."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(POLL_SECONDS)


def serves(repository: Repository, model: str, number: int) -> bool:
    """Whether requests go to a version."""
    return repository.model(model).serving == str(number)
