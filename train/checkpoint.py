"""Checkpoints: a folder of arrays that is there whole or not at all, every byte of it checked on loading.

    step-000001200/
        manifest.json       format, version, step, and size and CRC-32 of every other file
        state.json          what the training loop needs besides arrays
        dense.safetensors   dense parameters and their optimizer's state
        tables/*.npy        one embedding table each, memory-mappable
        rows/*.npy          state of the row optimizer, one file per table and quantity

The newest folder is the last checkpoint, and its state names the best one: no pointer can go stale. Arrays
are written once, straight from the caller's memory, and read straight into it.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from tesserec import __version__
from tesserec.autograd.workers import parallel_map
from tesserec.dataio.atomic import atomic_folder

FORMAT = "tesserec checkpoint"
VERSION = 1
_CHUNK = 1 << 23  # bytes that are checksummed and written while they are in cache

Array = npt.NDArray[Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds. Arrays may be views of live memory: saving does not copy them.

    state: JSON values. dense: small arrays, by name. arrays: large ones, by path without suffix.
    """

    state: dict[str, Any]
    dense: Mapping[str, Array]
    arrays: Mapping[str, Array]


def array_path(kind: str, name: str) -> str:
    """The key of `Content.arrays` for table `name`: a valid file name whatever the table is called."""
    return f"{kind}/{quote(name, safe=' @()[],+=')}"


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies under `folder`."""
    return folder / f"step-{step:09d}"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints under `folder`, increasing."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*[0-9]"))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; one that is half removed no longer bears the name of one."""
    doomed = path.with_name(f".{path.name}.removed.tmp")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left under `folder`. Nobody else may be writing there."""
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def save_checkpoint(path: Path, content: Content) -> None:
    """Write the checkpoint folder `path`, durably; whatever happens, it is complete or as it was before."""
    with atomic_folder(path) as folder:
        for kind in {name.partition("/")[0] for name in content.arrays}:
            (folder / kind).mkdir()
        arrays = {f"{name}.npy": array for name, array in content.arrays.items()}
        checks = parallel_map(lambda item: _write_npy(folder / item[0], item[1]), list(arrays.items()))
        listed = dict(zip(arrays, checks, strict=True))
        dense = {name: np.ascontiguousarray(array) for name, array in content.dense.items()}
        state = json.dumps(content.state, indent=1).encode()
        listed["dense.safetensors"] = _write_bytes(folder / "dense.safetensors", save(dense))
        listed["state.json"] = _write_bytes(folder / "state.json", state)
        manifest = {"format": FORMAT, "version": VERSION, "tesserec": __version__, "files": listed}
        signed = manifest | {"crc32": _sum_of(manifest)}
        (folder / "manifest.json").write_text(json.dumps(signed, indent=1))


class Checkpoint:
    """A checkpoint on disk, open for reading. What is read must have the manifest's sizes and checksums."""

    def __init__(self, path: Path):
        self.path = path
        self.files = _read_manifest(path / "manifest.json")

    def state(self) -> dict[str, Any]:
        """The JSON state."""
        state: dict[str, Any] = json.loads(self._bytes("state.json"))
        return state

    def dense(self) -> dict[str, Array]:
        """The small arrays, by name."""
        return load(self._bytes("dense.safetensors"))

    def read_into(self, arrays: Mapping[str, Array]) -> None:
        """Fill every array of {path without suffix: C-contiguous array}, in parallel.

        Of each kind (the path's first part) that is asked for, all must be asked for.
        """
        kinds = {name.partition("/")[0] for name in arrays}
        held = {name.removesuffix(".npy") for name in self.files if name.partition("/")[0] in kinds}
        if held != arrays.keys():
            missing, extra = sorted(arrays.keys() - held), sorted(held - arrays.keys())
            raise CheckpointError(f"{self.path}: not of this model: lacks {missing}, has in excess {extra}")
        parallel_map(lambda item: self._read_npy(f"{item[0]}.npy", item[1]), list(arrays.items()))

    def _bytes(self, name: str) -> bytes:
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path / name}: cannot be read: {error.strerror}") from None
        self._verify(name, len(data), zlib.crc32(data))
        return data

    def _read_npy(self, name: str, out: Array) -> None:
        try:
            with open(self.path / name, "rb", buffering=0) as file:
                stream = _Checked(file)
                self._check_header(name, stream, out)
                stream.readinto(_bytes_of(out))
        except OSError as error:
            raise CheckpointError(f"{self.path / name}: cannot be read: {error.strerror}") from None
        self._verify(name, (self.path / name).stat().st_size, stream.crc)

    def _check_header(self, name: str, stream: _Checked, out: Array) -> None:
        try:
            major, _ = np.lib.format.read_magic(stream)  # it needs only read()
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except ValueError as error:
            raise CheckpointError(f"{self.path / name}: not a .npy file: {error}; {_DAMAGED}") from None
        if (shape, dtype) != (out.shape, out.dtype) or fortran:
            raise CheckpointError(
                f"{self.path / name}: holds {dtype} {shape}, wanted {out.dtype} {out.shape}: "
                "the model or the data set is not the one that was saved"
            )

    def _verify(self, name: str, size: int, crc: int) -> None:
        if name not in self.files:
            raise CheckpointError(f"{self.path / name}: not listed in manifest.json; {_DAMAGED}")
        wanted = self.files[name]
        if size != wanted["bytes"]:
            raise CheckpointError(f"{self.path / name}: {size} bytes, wanted {wanted['bytes']}; {_DAMAGED}")
        if crc != wanted["crc32"]:
            raise CheckpointError(
                f"{self.path / name}: CRC-32 {crc:08x}, wanted {wanted['crc32']:08x}; {_DAMAGED}"
            )


_DAMAGED = "the file is damaged: remove this checkpoint's folder, then --resume continues from the one before"


class _Checked:
    """A file whose bytes pass through a running CRC-32."""

    def __init__(self, file: Any):
        self.file, self.crc, self.size = file, 0, 0

    def read(self, count: int = -1, /) -> bytes:
        data: bytes = self.file.read(count)
        self._count(data)
        return data

    def readinto(self, target: memoryview) -> None:
        """Fill `target`, as far as the file goes."""
        for lo in range(0, len(target), _CHUNK):
            piece = target[lo : lo + _CHUNK]
            filled = 0
            while filled < len(piece) and (got := self.file.readinto(piece[filled:])):
                filled += got
            self._count(piece[:filled])

    def write(self, data: bytes | memoryview) -> int:
        for lo in range(0, len(data), _CHUNK):
            piece = data[lo : lo + _CHUNK]
            self.file.write(piece)
            self._count(piece)
        return len(data)

    def _count(self, piece: bytes | memoryview) -> None:
        self.crc = zlib.crc32(piece, self.crc)
        self.size += len(piece)


def _write_npy(path: Path, array: Array) -> dict[str, int]:
    with open(path, "wb") as file:
        stream = _Checked(file)
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(_bytes_of(array))
    return {"bytes": stream.size, "crc32": stream.crc}


def _write_bytes(path: Path, data: bytes) -> dict[str, int]:
    path.write_bytes(data)
    return {"bytes": len(data), "crc32": zlib.crc32(data)}


def _bytes_of(array: Array) -> memoryview:
    """The memory of a C-contiguous array, not copied."""
    if not array.flags.c_contiguous:
        raise CheckpointError(
            f"an array of shape {array.shape} is not contiguous; tables and their state must be"
        )
    return array.reshape(-1).view(np.uint8).data


def _read_manifest(path: Path) -> dict[str, dict[str, int]]:
    try:
        manifest = json.loads(path.read_bytes())
        checksum = manifest.pop("crc32")
        files: dict[str, dict[str, int]] = manifest["files"]
        found = (manifest["format"], manifest["version"])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: not a checkpoint's manifest; {_DAMAGED}") from None
    if checksum != _sum_of(manifest):
        raise CheckpointError(f"{path}: its checksum is wrong; {_DAMAGED}")
    if found != (FORMAT, VERSION):
        raise CheckpointError(f"{path}: {found[0]!r} version {found[1]}, wanted {FORMAT!r} version {VERSION}")
    return files


def _sum_of(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
