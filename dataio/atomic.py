"""Files and folders that are there whole or not at all.

What is written goes to a hidden sibling (`.name.<random>.tmp`), is flushed to the disk, and takes its final
name by one rename. The writer holds a lock on the sibling, so one whose lock is free was left by a process
that died: the next writer of the same name removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write; on leaving without an error it replaces `path`, durably."""
    with _temporary(Path(path), folder=False) as (temporary, target):
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; on leaving without an error it replaces `path`, durably.

    A folder that stands at `path` already is swapped out, in one step where the system can, then removed.
    """
    with _temporary(Path(path), folder=True) as (temporary, target):
        yield temporary
        for inner in sorted(temporary.rglob("*")):
            _flush(inner)
        _flush(temporary)
        if target.exists():
            _swap(temporary, target)
        else:
            os.rename(temporary, target)


@contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[tuple[Path, Path]]:
    """Yield (locked empty temporary, final path with links resolved); removes what is left of it."""
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    if folder:
        temporary.mkdir()
    else:
        temporary.touch(exist_ok=False)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary, target
        _flush(target.parent)
    finally:
        _remove(temporary)
        os.close(lock)


def _remove_stale(target: Path) -> None:
    for left in target.parent.iterdir():
        if not (left.name.startswith(f".{target.name}.") and left.name.endswith(".tmp")):
            continue
        try:
            lock = os.open(left, os.O_RDONLY)
        except FileNotFoundError:  # its writer has just finished
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)
        except BlockingIOError:  # its writer lives
            pass
        finally:
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(temporary: Path, target: Path) -> None:
    """Exchange the two names: in one system call on Linux; elsewhere the old folder steps aside first."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(target))
    if exchange is not None and exchange(*names, _RENAME_EXCHANGE) == 0:
        return
    aside = temporary.with_name(temporary.name + ".old")
    os.rename(target, aside)
    os.rename(temporary, target)
    os.rename(aside, temporary)
