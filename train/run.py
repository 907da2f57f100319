"""The run folder: everything about one training, and all that evaluation and prediction need.

    config.yaml       the configuration, complete
    dataset.json      what the columns of the data set are
    encoder/          the fitted encoder, when the data set has one: raw rows can be scored
    checkpoints/      the last and the best (see checkpoint.py)
    metrics.jsonl     one line per logged or validated step; no times, so equal runs write equal bytes
    measured.json     what steps took, by rank and table (see measured.py); plan.json: where the tables lay
    curve.png, report.md, report.json

It comes into being whole, with its first three members, so a process killed at any moment leaves a folder
that can be resumed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tesserec.dataio.atomic import atomic_file, atomic_folder
from tesserec.dataio.config import read_config
from tesserec.dataio.dataset import Dataset, DatasetInfo, read_dataset_info, write_dataset_info
from tesserec.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_folder,
    checkpoint_steps,
    remove_temporaries,
)
from tesserec.train.config import TrainConfig, differences


class RunError(ValueError):
    """A run folder that is missing, in use, or not what the command expects."""


class RunFolder:
    """A run on disk, or a place for one. `RunFolder.open` wants it to be there."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.encoder = path / "encoder"
        self.metrics = path / "metrics.jsonl"
        self.measured = path / "measured.json"
        self.plan = path / "plan.json"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run at `path`, else RunError."""
        if not (path / "config.yaml").is_file():
            raise RunError(f"{path}: no training run here (no config.yaml); `tesserec train` makes one")
        return cls(path)

    def config(self) -> TrainConfig:
        """The configuration that the run was started with."""
        return read_config(self.path / "config.yaml", TrainConfig)

    def dataset(self) -> DatasetInfo:
        """What the columns of the run's data set are."""
        return read_dataset_info(self.path)

    def last(self) -> Checkpoint | None:
        """The newest checkpoint; None before the first."""
        steps = checkpoint_steps(self.checkpoints)
        return Checkpoint(checkpoint_folder(self.checkpoints, steps[-1])) if steps else None

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best validation, which the last one names; without any, the last one."""
        last = self.last()
        best = last and last.state()["progress"]["best"]
        return Checkpoint(checkpoint_folder(self.checkpoints, best["step"])) if best else last

    def checkpoint(self, which: str) -> Checkpoint:
        """`which`: "best" or "last". CheckpointError when there is none yet."""
        found = self.best() if which == "best" else self.last()
        if found is None:
            raise CheckpointError(f"{self.checkpoints}: no checkpoint yet; train on with --resume")
        return found

    def begin(self, config: TrainConfig, dataset: Dataset) -> None:
        """Make the folder, in place of anything that stood here."""
        with atomic_folder(self.path) as folder:
            (folder / "config.yaml").write_text(_yaml(config))
            write_dataset_info(folder, dataset.info)
            if dataset.encoder_path.is_dir():
                shutil.copytree(dataset.encoder_path, folder / "encoder")
            (folder / "checkpoints").mkdir()

    def begin_again(self, config: TrainConfig) -> None:
        """Take note of what has changed in the configuration, and sweep up what a killed process left."""
        remove_temporaries(self.checkpoints)
        with atomic_file(self.path / "config.yaml") as file:
            file.write_text(_yaml(config))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While inside, no other process trains here; RunError if one does."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise RunError(f"{self.path}: another process is training here; wait for it or stop it") from None
        finally:
            os.close(handle)


def find_run(
    config: TrainConfig, dataset: Dataset, *, resume: bool = False, overwrite: bool = False
) -> tuple[RunFolder, bool]:
    """(the run folder `config.output`, whether to continue the run in it). Writes nothing.

    RunError when a run is there and neither is asked for, when it is in use, and for any folder that is not
    a run.
    """
    path = config.output
    if path is None:
        raise RunError("key output: name the run folder")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return RunFolder(path), False
    run = RunFolder.open(path)
    with run.locked():
        if not (resume or overwrite):
            raise RunError(f"{path}: {_standing(run)}")
        if not overwrite:
            _check_same(run, config, dataset)
    return run, not overwrite


def _check_same(run: RunFolder, config: TrainConfig, dataset: Dataset) -> None:
    """RunError unless the run may go on with this configuration and data set."""
    changes = differences(run.config(), config)
    if changes:
        listed = "\n  ".join(changes)
        raise RunError(f"{run.path}: cannot go on with another configuration; it was → it is now\n  {listed}")
    if run.dataset() != dataset.info:
        raise RunError(f"{run.path}: {dataset.path} is not the data set that this run was started with")


def _standing(run: RunFolder) -> str:
    """How far a run is and what can be done, in words."""
    last = run.last()
    progress = last.state()["progress"] if last else {"finished": "", "step": 0}
    if progress["finished"]:
        return (
            f"a run is finished here ({progress['finished']}); --overwrite starts anew, "
            "--resume with a larger train.epochs trains on"
        )
    return f"a run stands here at step {progress['step']}; --resume continues it, --overwrite starts anew"


class Journal:
    """A file of JSON lines that can be cut back to an earlier state. NaN is written as null."""

    def __init__(self, path: Path | None, size: int = 0):
        """Opens `path`, keeping its first `size` bytes. None: what is written goes nowhere."""
        self._file = open(path or os.devnull, "ab")  # noqa: SIM115  # it lives as long as this object
        if path is not None:
            self._file.truncate(min(size, path.stat().st_size))

    def append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(without_nan(line)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Make the lines durable -> size in bytes."""
        if self._file.name == os.devnull:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with None for numbers that JSON cannot say."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _yaml(config: TrainConfig) -> str:
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text
