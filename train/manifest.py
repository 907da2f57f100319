"""The manifest of a checkpoint: which files hold which rectangles, and what their bytes add up to."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tesserec import __version__
from tesserec.train.parts import DAMAGED, CheckpointError, Part, rows_of_block

FORMAT = "tesserec checkpoint"
VERSION = 2  # version 1 had one file for each array; it can be read
_FILE = "manifest.json"

Files = dict[str, dict[str, int]]  # {file that is no array's: {"bytes": …, "crc32": …}}


@dataclass(frozen=True, slots=True)
class Stored:
    """A large array in a checkpoint: the files whose rectangles tile its `shape`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Stored:
        """What `to_json` gave."""
        parts = tuple(map(Part.from_json, read["parts"]))
        return cls(np.dtype(read["dtype"]), tuple(read["shape"]), parts)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        parts = [part.to_json() for part in self.parts]
        return {"dtype": self.dtype.str, "shape": list(self.shape), "parts": parts}


def write_manifest(folder: Path, arrays: Mapping[str, Stored], files: Files) -> None:
    """Write the manifest of these arrays, by path, and other files."""
    listed = {name: stored.to_json() for name, stored in arrays.items()}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "tesserec": __version__,
        "arrays": listed,
        "files": files,
    }
    (folder / _FILE).write_text(_text(manifest | {"crc32": _sum_of(manifest)}))


def read_manifest(folder: Path) -> tuple[dict[str, Stored], Files]:
    """(the arrays by path, the files) of the checkpoint at `folder`; of version 1, all files are listed."""
    path = folder / _FILE
    try:
        text = path.read_text()
        manifest = json.loads(text)
        sound = text == _text(manifest) or manifest["version"] == 1
        sound &= manifest.pop("crc32") == _sum_of(manifest)
        found = (manifest["format"], manifest["version"])
        files: Files = manifest["files"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: not a checkpoint's manifest; {DAMAGED}") from None
    if not sound:
        raise CheckpointError(f"{path}: its checksum is wrong; {DAMAGED}")
    if found == (FORMAT, 1):
        arrays = [f for f in files if f.endswith(".npy")]
        return {_path_by_1(file): _stored_by_1(folder, file) for file in arrays}, files
    if found != (FORMAT, VERSION):
        raise CheckpointError(f"{path}: {found[0]!r} version {found[1]}, wanted {FORMAT!r} version {VERSION}")
    return {name: Stored.from_json(read) for name, read in manifest["arrays"].items()}, files


def _path_by_1(file: str) -> str:
    return file.removesuffix(".npy").replace("@", "%40")  # which now begins what is cut


def _stored_by_1(folder: Path, file: str) -> Stored:
    """An array of a checkpoint of version 1: one file, with a checksum of the whole."""
    try:
        held = np.load(folder / file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / file}: cannot be read: {error}; {DAMAGED}") from None
    cols = (0, held.shape[1]) if held.ndim == 2 else None
    size = (folder / file).stat().st_size
    part = Part(file, (0, len(held)), cols, size, rows_of_block(held), ())
    return Stored(held.dtype, held.shape, (part,))


def _text(manifest: Mapping[str, Any]) -> str:
    """JSON with a line for each array, so that people can read it."""
    return "{\n" + ",\n".join(f'"{key}": {_lines(value)}' for key, value in manifest.items()) + "\n}\n"


def _lines(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"


def _sum_of(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
