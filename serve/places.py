"""What lies in a repository's folder.

REPOSITORY/
  ml100k/          a model, by the folder's name
    1/  2/         its versions: artefacts, by number
  state.json       what is live (tesserec.serve.state)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "manifest.json"  # written last: without it a version is not there yet
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


Signature = tuple[tuple[str, int, int], ...]


class RepositoryError(ValueError):
    """A folder that cannot be served."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version of a model lies."""

    model: str
    number: str
    path: Path

    def __str__(self) -> str:
        return f"{self.model}/{self.number}"


@dataclass(frozen=True, slots=True)
class Found:
    """places: model -> version -> where, by rising number; refused: model -> what its other folders are."""

    places: dict[str, dict[str, Place]] = field(default_factory=dict)
    refused: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find_versions(repository: Path) -> Found:
    """The models of a repository and their versions. Hidden folders, which are being written, do not count.

    RepositoryError for a folder that is no repository.
    """
    found = Found()
    for folder in _folders(repository):
        if _VERSION.fullmatch(folder.name) and (folder / MANIFEST).is_file():
            raise RepositoryError(
                f"{repository}: is the folder of one model, with a version {folder.name}; serve the "
                f"folder of all models, {repository.absolute().parent}, or this version alone, {folder}"
            )
        places, refused = _versions(folder)
        if places:
            found.places[folder.name] = places
        if refused:
            found.refused[folder.name] = tuple(refused)
    return found


def signature(version: Path) -> Signature:
    """(name, size, time of change) of all files of a version but its deltas: differs when it was mended."""
    found = []
    for path in version.rglob("*"):
        with suppress(FileNotFoundError):  # gone again: it is being copied
            stat = path.stat()
            if path.is_file() and path.parent.name != "deltas":
                found.append((path.relative_to(version).as_posix(), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def _versions(model: Path) -> tuple[dict[str, Place], list[str]]:
    if not _MODEL.fullmatch(model.name):
        return {}, [f"{model}: a model's name is made of letters, digits, '.', '_', '-', and starts with one"]
    places, refused = {}, []
    for folder in _folders(model):
        if not _VERSION.fullmatch(folder.name):
            refused.append(f"{folder}: versions are folders named by positive integers: 1, 2, …")
        elif not (folder / MANIFEST).is_file():
            refused.append(f"{folder}: no {MANIFEST}; it is written last, so wait, or export again")
        else:
            places[folder.name] = Place(model.name, folder.name, folder)
    return {number: places[number] for number in sorted(places, key=int)}, refused


def _folders(path: Path) -> Iterable[Path]:
    try:
        return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise RepositoryError(
            f"{path}: no such folder; `tesserec export RUN -o FOLDER/MODEL/1` makes one"
        ) from None
