"""Checkpoints: a folder of arrays that is there whole or not at all, every byte of it checked on loading.

    step-000001200/
        manifest.json       format, version, the rectangles of every array, size and CRC-32 of all
        state.json          what the training loop needs besides arrays
        dense.safetensors   dense parameters and their optimizer's state
        tables/*.npy        rectangles of embedding tables, memory-mappable
        rows/*.npy          state of the row optimizer, rectangles of each table and quantity

Each rank writes the rectangles it holds, straight from the memory they live in. Any number of ranks reads any
rectangles, straight into place: which ones were written does not matter. The newest folder is the last
checkpoint, and its state names the best one: no pointer can go stale.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import numpy as np
from safetensors.numpy import load, save

from tesserec.autograd.workers import parallel_map
from tesserec.dataio.atomic import atomic_folder
from tesserec.embeddings.pool import Rows
from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.plan import PlanError, Rectangle, Span, check_tiling, in_words, intersection
from tesserec.sharding.watchdog import patience
from tesserec.train.manifest import Stored, read_manifest, write_manifest
from tesserec.train.parts import (
    Array,
    CheckpointError,
    Part,
    PartReader,
    part_file,
    read_bytes,
    write_parts,
)
from tesserec.train.ranks import from_first_rank, to_first_rank

__all__ = [
    "Array",
    "Checkpoint",
    "CheckpointError",
    "Content",
    "Rect",
    "array_path",
    "checkpoint_folder",
    "checkpoint_steps",
    "remove_checkpoint",
    "remove_temporaries",
    "save_checkpoint",
    "table_of",
]

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Rect:
    """The rectangle rows x cols of a large array of `shape`, (R, D) or (R,), and the memory it lives in.

    array: the rectangle, (n, w) or (n,), as a rule a view of live memory. cols: None for (R,). writes:
    whether this rank saves it; of a rectangle that several ranks hold, one does.
    """

    array: Rows
    rows: Span
    cols: Span | None
    shape: tuple[int, ...]
    writes: bool = True

    @classmethod
    def whole(cls, array: Array) -> Rect:
        """All of `array`."""
        cols = (0, array.shape[1]) if array.ndim == 2 else None
        return cls(array, (0, array.shape[0]), cols, array.shape)

    @property
    def rectangle(self) -> Rectangle:
        """(rows, cols), with one column for (R,)."""
        return self.rows, self.cols or (0, 1)


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds. Arrays may be views of live memory: saving does not copy them.

    state: JSON values. dense: small arrays, by name. arrays: what this rank holds of the large ones, by path
    without suffix. state and dense are those of rank 0.
    """

    state: Mapping[str, Any]
    dense: Mapping[str, Array]
    arrays: Mapping[str, Sequence[Rect]]


def array_path(kind: str, name: str) -> str:
    """The key of `Content.arrays` for table `name`: a valid file name whatever the table is called."""
    return f"{kind}/{quote(name, safe=' ()[],+=')}"


def table_of(path: str) -> str:
    """The table that the array at `path` belongs to: it is the table, or "table.quantity" about its rows."""
    kind, _, name = path.partition("/")
    return unquote(name if kind == "tables" else name.rpartition(".")[0])


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


def save_checkpoint(path: Path, content: Content, comm: Comm | None = None) -> None:
    """Write the checkpoint folder `path`, durably; whatever happens, it is complete or as it was before.

    Collective over `comm`, one rank unless given: all ranks see one file system. If it fails on any rank, all
    of them raise that rank's error.
    """
    comm = comm or LocalComm()
    with patience("writing a checkpoint"), ExitStack() as stack:

        def begin() -> Path:
            return stack.enter_context(atomic_folder(path)) if comm.rank == 0 else path

        def commit() -> None:
            if comm.rank == 0:
                _write_rest(folder, content, _joined(written))
                stack.close()  # the folder takes its name

        folder = from_first_rank(comm, _agreed(comm, begin))
        written = to_first_rank(comm, _agreed(comm, lambda: _write_rects(folder, content.arrays)))
        _agreed(comm, commit)


class Checkpoint:
    """A checkpoint on disk, open for reading. What is read must have the manifest's sizes and checksums.

    arrays: the large arrays, by path without suffix.
    """

    def __init__(self, path: Path):
        self.path = path
        self.arrays, self.files = read_manifest(path)
        self._readers: dict[str, PartReader] = {}

    def state(self) -> dict[str, Any]:
        """The JSON state."""
        state: dict[str, Any] = json.loads(self._bytes("state.json"))
        return state

    def dense(self) -> dict[str, Array]:
        """The small arrays, by name."""
        return load(self._bytes("dense.safetensors"))

    def read_into(self, wanted: Mapping[str, Sequence[Rect]]) -> None:
        """Fill every rectangle of {path: rectangles}, in parallel, whichever ones were saved.

        Of each kind (the path's first part) that is asked for, all paths must be asked for, if only with [].
        """
        kinds = {name.partition("/")[0] for name in wanted}
        held = {name for name in self.arrays if name.partition("/")[0] in kinds}
        if held != wanted.keys():
            missing, extra = sorted(wanted.keys() - held), sorted(held - wanted.keys())
            raise CheckpointError(f"{self.path}: not of this model: lacks {missing}, has in excess {extra}")
        with patience("reading a checkpoint"):
            self.fill([(name, rect) for name, rects in wanted.items() for rect in rects])

    def fill(self, wanted: Sequence[tuple[str, Rect]]) -> None:
        """Fill the rectangles of these (path, rectangle), in parallel."""
        jobs = [
            (self._reader(part, rect.array.dtype), number, rect)
            for name, rect in wanted
            for part in self._stored(name, rect).parts
            if intersection(part.rectangle, rect.rectangle)
            for number in part.blocks(rect.rows)
        ]
        parallel_map(lambda job: job[0].read(job[1], job[2].rectangle, _table_like(job[2])), jobs)

    def problems(self) -> list[str]:
        """What is wrong with the files, found by reading all of them; [] for a sound checkpoint."""
        parts = [(part, array.dtype) for array in self.arrays.values() for part in array.parts]
        checks: list[Callable[[], object]] = [partial(self._check_part, *part) for part in parts]
        checks += [partial(self._bytes, name) for name in ("dense.safetensors", "state.json")]
        listed = {"manifest.json", *self.files, *(part.file for part, _ in parts)}
        files = {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()}
        unlisted = [f"{self.path / name}: not listed in manifest.json" for name in sorted(files - listed)]
        return [found for found in parallel_map(_problem, checks) if found] + unlisted

    def _bytes(self, name: str) -> bytes:
        found = self.files[name]
        return read_bytes(self.path / name, found["bytes"], found["crc32"])

    def _stored(self, name: str, rect: Rect) -> Stored:
        """The array `name`, which has the shape and dtype that `rect` wants."""
        if name not in self.arrays:
            raise CheckpointError(f"{self.path}: no array {name!r}")
        stored = self.arrays[name]
        if (stored.dtype, stored.shape) != (rect.array.dtype, tuple(rect.shape)):
            raise CheckpointError(
                f"{self.path}: {name} is {stored.dtype} {stored.shape}, wanted {rect.array.dtype} "
                f"{tuple(rect.shape)}: the model or the data set is not the one that was saved"
            )
        return stored

    def _reader(self, part: Part, dtype: np.dtype[Any]) -> PartReader:
        if part.file not in self._readers:
            reader = PartReader(self.path, part, dtype)
            if not part.crc32:
                reader.check_whole(self.files[part.file]["crc32"])
            self._readers[part.file] = reader
        return self._readers[part.file]

    def _check_part(self, part: Part, dtype: np.dtype[Any]) -> None:
        reader = self._reader(part, dtype)
        for number in part.blocks(part.rows):
            reader.check(number)


def _problem(check: Callable[[], object]) -> str:
    try:
        check()
    except CheckpointError as error:
        return str(error)
    return ""


def _agreed(comm: Comm, action: Callable[[], Value]) -> Value:
    """action(), or where it fails on any rank, that error on all of them. Collective."""
    failure: Exception | None = None
    try:
        value = action()
    except Exception as error:
        failure = error
    if comm.size == 1 and failure:
        raise failure
    found = comm.gather_objects(failure and f"{type(failure).__name__}: {failure}")
    for rank, text in enumerate(found):
        if text:
            raise CheckpointError(f"rank {rank}: {text}") from failure
    return value


def _write_rects(folder: Path, arrays: Mapping[str, Sequence[Rect]]) -> dict[str, Stored | None]:
    """Write what this rank is to write -> what that is of each array."""
    rects = [(name, rect) for name, some in arrays.items() for rect in some if rect.writes]
    for name, rect in rects:
        _check_rect(name, rect)
    wanted = [(part_file(name, r.rows, r.cols, r.shape), r.rows, r.cols, r.array) for name, r in rects]
    parts: dict[str, list[Part]] = {}
    for (name, _), part in zip(rects, write_parts(folder, wanted), strict=True):
        parts.setdefault(name, []).append(part)
    first = {name: some[0] for name, some in arrays.items() if some}
    return {
        name: Stored(rect.array.dtype, tuple(rect.shape), tuple(parts.get(name, ())))
        for name, rect in first.items()
    } | dict.fromkeys(arrays.keys() - first.keys())


def _check_rect(name: str, rect: Rect) -> None:
    (top, bottom), (left, right) = rect.rectangle
    wanted = (bottom - top,) if rect.cols is None else (bottom - top, right - left)
    if rect.array.shape != wanted or len(rect.shape) != len(wanted):
        raise CheckpointError(
            f"{name}: the memory of {in_words(rect.rectangle)} of {rect.shape} is {rect.array.shape}"
        )


def _joined(written: Sequence[Mapping[str, Stored | None]]) -> dict[str, Stored]:
    """What all ranks have written of each array. CheckpointError unless it is all of it, once."""
    joined = {}
    for name in sorted({name for held in written for name in held}):
        found = [stored for held in written if (stored := held.get(name))]
        if len({(stored.dtype, stored.shape) for stored in found}) != 1:
            shapes = [f"{stored.dtype} {stored.shape}" for stored in found]
            raise CheckpointError(f"{name}: to the ranks it is {', '.join(shapes) or 'nothing'}, wanted one")
        parts = sorted((part for stored in found for part in stored.parts), key=lambda p: p.rectangle)
        _check_parts(name, found[0].shape, [part.rectangle for part in parts])
        joined[name] = replace(found[0], parts=tuple(parts))
    return joined


def _check_parts(name: str, shape: tuple[int, ...], rectangles: Sequence[Rectangle]) -> None:
    for rectangle, count in Counter(rectangles).items():
        if count > 1:
            raise CheckpointError(
                f"{name}: {in_words(rectangle)} is written {count} times: one replica writes it"
            )
    try:
        check_tiling(name, (shape[0], shape[1] if len(shape) > 1 else 1), {key: [0] for key in rectangles})
    except PlanError as error:
        raise CheckpointError(str(error)) from None


def _write_rest(folder: Path, content: Content, arrays: Mapping[str, Stored]) -> None:
    dense = {name: np.ascontiguousarray(array) for name, array in content.dense.items()}
    files = {
        "dense.safetensors": _write_bytes(folder / "dense.safetensors", save(dense)),
        "state.json": _write_bytes(folder / "state.json", json.dumps(content.state, indent=1).encode()),
    }
    write_manifest(folder, arrays, files)


def _write_bytes(path: Path, data: bytes) -> dict[str, int]:
    path.write_bytes(data)
    return {"bytes": len(data), "crc32": zlib.crc32(data)}


def _table_like(rect: Rect) -> Array:
    """The rectangle's memory as (n, w)."""
    array = np.asarray(rect.array)
    return array if array.ndim == 2 else array[:, None]
