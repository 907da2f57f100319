"""Counts → what the page shows: rates and quantiles of the last seconds, and the last minutes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tesserec.serve.counts import SECONDS, STAGES, Counts, Slot, VersionCounts, drift, quantile
from tesserec.serve.metrics import HISTORY, INTERVAL
from tesserec.serve.status import ModelStatus

RECENT = 5  # slots that rates and quantiles are of: ten seconds
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_TOTAL = STAGES.index("total")


def models_live(
    models: Sequence[ModelStatus], versions: Sequence[VersionCounts], now: float
) -> list[dict[str, Any]]:
    """One object for each model, of the slots before the one that `now` (since 1970) is in."""
    last = int(now // INTERVAL) - 1
    return [_model(model, [c for c in versions if c.model == model.name], last) for model in models]


def _model(model: ModelStatus, versions: Sequence[VersionCounts], last: int) -> dict[str, Any]:
    loaded = [status.number for status in model.versions if status.version is not None]
    return {
        "name": model.name,
        "live": model.live,
        "split": model.split,
        "shadow": None if model.shadow is None else model.shadow.model_dump(),
        "history": _history(model.live, versions, last),
        "versions": [_version(counts, last) for counts in versions if counts.version in loaded],
    }


def _history(live: str | None, versions: Sequence[VersionCounts], last: int) -> dict[str, Any]:
    numbers = range(last - HISTORY + 1, last + 1)
    slots = [_during(versions, [number]) for number in numbers]
    followed = [_during([c for c in versions if c.version == live], [number]) for number in numbers]
    return {
        "interval_seconds": INTERVAL,
        "end": (last + 1) * INTERVAL,
        "requests_per_second": [slot.answered / INTERVAL for slot in slots],
        "candidates_per_second": [slot.rows / INTERVAL for slot in slots],
        "errors_per_second": [slot.failed / INTERVAL for slot in slots],
        **{
            f"{name}_seconds": [quantile(SECONDS, slot.stages[_TOTAL], q) for slot in slots]
            for name, q in QUANTILES.items()
        },
        "staleness_seconds": [slot.staleness for slot in followed],
    }


def _version(counts: VersionCounts, last: int) -> dict[str, Any]:
    recent = _during([counts], range(last - RECENT + 1, last + 1))
    seconds = RECENT * INTERVAL
    batches = int(counts.batch_requests.counts.sum())
    return {
        "version": counts.version,
        "requests_per_second": recent.answered / seconds,
        "candidates_per_second": recent.rows / seconds,
        "errors_per_second": recent.failed / seconds,
        "latency_seconds": {
            stage: _quantiles(found) for stage, found in zip(STAGES, recent.stages, strict=True)
        },
        "batch_requests_mean": counts.batch_requests.total / batches if batches else None,
        "staleness_seconds": counts.staleness,
        "delta_sequence": counts.delta_sequence,
        "delta_error": counts.delta_error,
        "unknown_ids": counts.unknown,
        "missing_values": counts.missing,
        "drift_psi": drift(counts.scores, counts.training),
        "score_histogram": {
            "edges": counts.edges.tolist(),
            "counts": counts.scores.tolist(),
            "training_counts": counts.training.tolist(),
        },
        "shadow_mean_difference": counts.shadow_difference / counts.shadow_rows
        if counts.shadow_rows
        else None,
    }


def _quantiles(counts: Counts) -> dict[str, float | None]:
    return {name: quantile(SECONDS, counts, q) for name, q in QUANTILES.items()}


def _during(versions: Sequence[VersionCounts], numbers: Iterable[int]) -> Slot:
    """What happened in those slots together."""
    total = Slot()
    for slot in (counts.slots[n] for n in numbers for counts in versions if n in counts.slots):
        total.join(slot)
    return total
