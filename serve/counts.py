"""What is counted of a version's work, as values that are summed over workers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

STAGES = ("decode", "queue", "score", "answer", "total")
STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)  # Renard's R10: ten to a decade
SECONDS = np.array([step * 10.0**power for power in range(-5, 1) for step in STEPS] + [10.0])  # bucket edges
SIZES = 2.0 ** np.arange(15)
LEAST = 1000  # scores: of fewer, chance alone makes distributions look apart

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]


@dataclass(slots=True)
class Histogram:
    """counts: (E + 1,) of values up to each edge and beyond the last."""

    counts: Counts
    total: float = 0.0

    def add(self, edges: Floats, values: Floats) -> Counts:
        """Count values in -> how many were in each bucket."""
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(self.counts))
        self.counts = self.counts + counts
        self.total += float(values.sum())
        return counts

    def join(self, other: Histogram) -> None:
        """Count in what another has counted."""
        self.counts = self.counts + other.counts
        self.total += other.total


def histogram(edges: Floats) -> Histogram:
    """One that is empty."""
    return Histogram(np.zeros(len(edges) + 1, np.int64))


def quantile(edges: Floats, counts: Counts, q: float) -> float | None:
    """The value that a fraction q of what was counted is below, interpolated; None of nothing."""
    if not counts.any():
        return None
    upto = np.cumsum(counts)
    i = int(np.searchsorted(upto, q * upto[-1]))
    lo, hi = (edges[i - 1] if i else 0.0), edges[min(i, len(edges) - 1)]
    before = upto[i - 1] if i else 0
    return float(lo + (hi - lo) * (q * upto[-1] - before) / counts[i])


def drift(counts: Counts, expected: Counts) -> float | None:
    """Population stability index Σ (p − q)·ln(p / q) of two histograms; None of too few values to tell.

    Each bucket counts half a value more, so that empty ones have a logarithm.
    """
    if min(counts.sum(), expected.sum()) < LEAST:
        return None
    p, q = ((c + 0.5) / (c + 0.5).sum() for c in (counts, expected))
    return float(np.sum((p - q) * np.log(p / q)))


@dataclass(slots=True)
class Slot:
    """A few seconds. answered: requests with scores; failed: that had none by no fault of theirs.

    staleness: seconds, at its end; None of a version that follows no deltas.
    """

    answered: int = 0
    failed: int = 0
    rows: int = 0
    stages: Counts = field(default_factory=lambda: np.zeros((len(STAGES), len(SECONDS) + 1), np.int64))
    staleness: float | None = None

    def join(self, other: Slot) -> None:
        """Count in what another has counted."""
        self.answered += other.answered
        self.failed += other.failed
        self.rows += other.rows
        self.stages = self.stages + other.stages
        self.staleness = _largest(self.staleness, other.staleness)


@dataclass(slots=True)
class VersionCounts:
    """What one version did since it was loaded.

    edges, training: histogram of the scores that its trainer saw; scores: those that it gave, in the same
    buckets. slots: by number of the interval since 1970. shadow_difference: Σ |its score − the one that was
    answered| over the rows that it scored as a shadow. delta_…, staleness: as they are now.
    """

    model: str
    version: str
    edges: Floats
    training: Counts
    scores: Counts
    slots: dict[int, Slot] = field(default_factory=dict)
    stages: list[Histogram] = field(default_factory=lambda: [histogram(SECONDS) for _ in STAGES])
    batch_requests: Histogram = field(default_factory=lambda: histogram(SIZES))
    batch_rows: Histogram = field(default_factory=lambda: histogram(SIZES))
    score_total: float = 0.0
    failed: int = 0
    shadow_rows: int = 0
    shadow_difference: float = 0.0
    unknown: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    delta_sequence: int = 0
    delta_error: str = ""
    staleness: float | None = None

    def join(self, other: VersionCounts) -> None:
        """Count in what another worker has counted; of the deltas, who is behind."""
        for mine, theirs in zip(self._histograms(), other._histograms(), strict=True):
            mine.join(theirs)
        for number, slot in other.slots.items():
            self.slots.setdefault(number, Slot()).join(slot)
        self.scores = self.scores + other.scores
        self.score_total += other.score_total
        self.failed += other.failed
        self.shadow_rows += other.shadow_rows
        self.shadow_difference += other.shadow_difference
        self.unknown = _summed(self.unknown, other.unknown)
        self.missing = _summed(self.missing, other.missing)
        self.delta_sequence = min(self.delta_sequence, other.delta_sequence)
        self.delta_error = self.delta_error or other.delta_error
        self.staleness = _largest(self.staleness, other.staleness)

    def _histograms(self) -> tuple[Histogram, ...]:
        return (*self.stages, self.batch_requests, self.batch_rows)


@dataclass(slots=True)
class WorkerCounts:
    """One worker. answers: (operation, status, how many) of all requests, also those that no version saw."""

    pid: int
    started: float
    ready: bool
    resident_bytes: int
    queue_requests: int
    queue_rows: int
    answers: list[tuple[str, int, int]]
    versions: list[VersionCounts]


def joined(workers: list[WorkerCounts]) -> list[VersionCounts]:
    """Each version once, summed over the workers."""
    found: dict[tuple[str, str], VersionCounts] = {}
    for counts in (counts for worker in workers for counts in worker.versions):
        key = counts.model, counts.version
        if key not in found:
            found[key] = VersionCounts(*key, counts.edges, counts.training, np.zeros_like(counts.scores))
            found[key].delta_sequence = counts.delta_sequence
        if len(found[key].scores) == len(counts.scores):  # else another artefact under the same number
            found[key].join(counts)
    return list(found.values())


def _summed(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in a | b}


def _largest(a: float | None, b: float | None) -> float | None:
    return max((value for value in (a, b) if value is not None), default=None)
