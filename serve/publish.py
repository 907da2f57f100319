"""The writing end of a repository: the next version of a model, and the deltas of the newest one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tesserec.serve.deltas import Array, Delta, Header, Rows, base_checksum, delta_path, write_delta


def next_version(model: Path) -> Path:
    """Where the next version of the model `model` goes: its folder's name is one more than the greatest."""
    folders = model.iterdir() if model.is_dir() else ()
    numbers = [int(path.name) for path in folders if path.name.isascii() and path.name.isdigit()]
    return model / str(max(numbers, default=0) + 1)


class DeltaWriter:
    """Writes the deltas of an artefact, from its first one on. sequence: of the last one written."""

    def __init__(self, folder: Path):
        """folder: the artefact, which has none yet; from now on, whoever serves it waits for some."""
        delta_path(folder, 1).parent.mkdir()
        self.folder, self.sequence = folder, 0
        self._base = self._previous = base_checksum(folder)

    def write(
        self,
        tables: Mapping[str, tuple[Rows, Array]],
        dense: Mapping[str, Array],
        *,
        step: int,
        newest: float,
        last: bool = False,
    ) -> None:
        """Publish what has changed, as `Delta` and its `Header` say; durable when it returns."""
        header = Header(self.sequence + 1, self._base, self._previous, step, newest, last)
        self._previous = write_delta(self.folder, Delta(header, tables, dense))
        self.sequence = header.sequence
