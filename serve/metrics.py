"""Measuring: the hot path only appends to lists, which are folded into counts every two seconds or on demand.

Workers of one service leave their counts in files of one folder, so that whichever of them is asked answers
for all. That is prometheus_client's multi-process mode, but for sums that are made by numpy and not one by
one, and with the service's last minutes in them.
"""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tesserec.serve.counts import SECONDS, SIZES, Slot, VersionCounts, WorkerCounts
from tesserec.serve.version import Version

INTERVAL = 2  # seconds of a slot
HISTORY = 150  # slots that are kept: five minutes
_FOLD = 4096  # entries of a list

Scores = npt.NDArray[np.float32]


class Recorder:
    """What one version does in this worker."""

    def __init__(self, version: Version):
        expected = version.artefact.score_histogram
        self.version = weakref.ref(version)
        training = np.array(expected.counts, np.int64)
        edges = np.array(expected.edges)
        self.counts = VersionCounts(version.model, version.number, edges, training, np.zeros_like(training))
        self._stages: list[tuple[float, ...]] = []
        self._rows = 0
        self._failed = 0
        self._requests: list[int] = []
        self._scores: list[Scores] = []

    def answered(self, rows: int, *seconds: float) -> None:
        """A request of so many rows was answered. seconds: of each of counts.STAGES."""
        self._rows += rows
        self._stages.append(seconds)
        if len(self._stages) >= _FOLD:
            self.fold(_slot_now())

    def failed(self) -> None:
        """A request was not answered, for which the service is to blame."""
        self._failed += 1

    def batch(self, requests: int, scores: Scores) -> None:
        """A batch was scored."""
        self._requests.append(requests)
        self._scores.append(scores)
        if len(self._scores) >= _FOLD:
            self.fold(_slot_now())

    def shadowed(self, scores: Scores, answered: Scores) -> None:
        """It scored rows beside another version."""
        self.counts.shadow_rows += len(scores)
        self.counts.shadow_difference += float(np.abs(scores - answered).sum())

    def fold(self, number: int) -> None:
        """Count in what was noted since the last time, as of a slot; forget slots that are too old."""
        counts, slot = self.counts, Slot()
        if self._stages:
            self._fold_stages(slot)
        if self._scores:
            self._fold_batches()
        slot.answered, slot.failed, slot.rows = len(self._stages), self._failed, self._rows
        counts.failed += self._failed
        self._look()
        slot.staleness = counts.staleness
        if slot.answered or slot.failed or slot.staleness is not None:
            counts.slots.setdefault(number, Slot()).join(slot)
        for old in [known for known in counts.slots if known <= number - HISTORY]:
            del counts.slots[old]
        self._stages, self._rows, self._failed = [], 0, 0

    def _fold_stages(self, slot: Slot) -> None:
        for i, values in enumerate(np.array(self._stages).T):
            slot.stages[i] = self.counts.stages[i].add(SECONDS, values)

    def _fold_batches(self) -> None:
        counts, scores = self.counts, np.concatenate(self._scores)
        counts.batch_requests.add(SIZES, np.array(self._requests, np.float64))
        counts.batch_rows.add(SIZES, np.array([len(batch) for batch in self._scores], np.float64))
        counts.scores = counts.scores + np.histogram(scores, counts.edges)[0]
        counts.score_total += float(scores.sum(dtype=np.float64))
        self._requests, self._scores = [], []

    def _look(self) -> None:
        """What others count, and what just is."""
        version = self.version()
        if version is not None:
            counts, follower = self.counts, version.follower
            counts.unknown, counts.missing = dict(version.decoder.unknown), dict(version.decoder.missing)
            counts.delta_sequence, counts.delta_error = follower.sequence, follower.problem
            counts.staleness = staleness_of(version)


class Metrics:
    """What this worker and those beside it do. folder: where the workers' counts meet; None: there is one."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.started = time.time()
        self.answers: dict[tuple[str, int], int] = {}  # (operation, status) -> how many
        self._recorders: dict[tuple[str, str], Recorder] = {}

    def of(self, version: Version) -> Recorder:
        """Where to note what a version does."""
        key = version.model, version.number
        found = self._recorders.get(key)
        if found is None or found.version() is not version:
            found = self._recorders[key] = Recorder(version)
        return found

    def fold(self, number: int | None = None) -> None:
        """Bring the counts up to date; what was noted since the last time was in slot `number`; None: now."""
        number = _slot_now() if number is None else number
        for key, recorder in list(self._recorders.items()):
            recorder.fold(number)
            if recorder.version() is None and not recorder.counts.slots:
                del self._recorders[key]

    def here(self, *, ready: bool, requests: int, rows: int) -> WorkerCounts:
        """This worker's counts, up to date. requests, rows: that are waiting."""
        self.fold()
        answers = [(operation, status, n) for (operation, status), n in self.answers.items()]
        versions = [recorder.counts for recorder in self._recorders.values()]
        return WorkerCounts(
            os.getpid(), self.started, ready, _resident_bytes(), requests, rows, answers, versions
        )

    def share(self, counts: WorkerCounts) -> None:
        """Leave this worker's counts to the others."""
        if self.folder is not None:
            with (self.folder / f".{counts.pid}").open("wb") as file:
                file.write(_encoder.encode(counts))
            os.replace(self.folder / f".{counts.pid}", self.folder / f"{counts.pid}")

    def everywhere(self, counts: WorkerCounts) -> list[WorkerCounts]:
        """`counts`, which are this worker's, and those of the others; of dead ones, what they had done."""
        others = [] if self.folder is None else [p for p in self.folder.iterdir() if p.name.isdigit()]
        return [counts, *(_left(path) for path in others if path.name != str(counts.pid))]


def staleness_of(version: Version) -> float | None:
    """Seconds since the newest training step in its scores; None where nothing ever followed its export."""
    seconds = version.follower.staleness()
    return seconds if seconds or version.follower.sequence else None


def _left(path: Path) -> WorkerCounts:
    """The counts that a worker has left; of one that is dead, only the counts."""
    counts = _decoder.decode(path.read_bytes())
    if not Path(f"/proc/{counts.pid}").exists():
        counts.ready, counts.resident_bytes, counts.queue_requests, counts.queue_rows = False, 0, 0, 0
        for version in counts.versions:
            version.staleness, version.delta_error, version.delta_sequence = None, "", 2**62
    return counts


def _slot_now() -> int:
    return int(time.time() // INTERVAL)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _plain(value: Any) -> Any:
    return value.tolist()


def _array(kind: type, value: Any) -> Any:
    return np.array(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder(WorkerCounts, dec_hook=_array)
