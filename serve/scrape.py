"""Counts → the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tesserec.serve.counts import (
    SECONDS,
    SIZES,
    STAGES,
    Floats,
    Histogram,
    VersionCounts,
    WorkerCounts,
)
from tesserec.serve.counts import drift as drift_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHOWN = [i for i in range(len(SECONDS)) if i % 10 in (0, 3, 7)]  # 1, 2, 5 of each decade
_OF_VERSION = ("model", "version")


def metrics_text(workers: Sequence[WorkerCounts], versions: Sequence[VersionCounts]) -> bytes:
    """The exposition of the service's metrics. versions: summed over the workers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(workers, versions))
    return generate_latest(registry)


@dataclass(frozen=True, slots=True, eq=False)
class _Families(Collector):
    workers: Sequence[WorkerCounts]
    versions: Sequence[VersionCounts]

    def collect(self) -> Iterable[Metric]:
        yield from self._of_service()
        yield from self._of_requests()
        yield from self._of_scores()
        yield from self._of_ids()
        yield from self._of_deltas()

    def _of_service(self) -> Iterable[Metric]:
        answers: dict[tuple[str, int], int] = {}
        for operation, status, count in (answer for worker in self.workers for answer in worker.answers):
            answers[operation, status] = answers.get((operation, status), 0) + count
        total = CounterMetricFamily(
            "tesserec_answers", "Answers of any kind.", labels=("operation", "status")
        )
        for (operation, status), count in answers.items():
            total.add_metric((operation, str(status)), count)
        ready = GaugeMetricFamily("tesserec_ready", "Whether a worker can answer.", labels=("worker",))
        memory = GaugeMetricFamily(
            "tesserec_resident_bytes", "Memory of a worker; mapped tables are shared.", labels=("worker",)
        )
        requests = GaugeMetricFamily("tesserec_queue_requests", "Requests that wait.", labels=("worker",))
        rows = GaugeMetricFamily("tesserec_queue_rows", "Rows that wait.", labels=("worker",))
        for worker in self.workers:
            label = (str(worker.pid),)
            ready.add_metric(label, worker.ready)
            memory.add_metric(label, worker.resident_bytes)
            requests.add_metric(label, worker.queue_requests)
            rows.add_metric(label, worker.queue_rows)
        return total, ready, memory, requests, rows

    def _of_requests(self) -> Iterable[Metric]:
        seconds = HistogramMetricFamily(
            "tesserec_request_seconds", "Time of answered requests.", labels=(*_OF_VERSION, "stage")
        )
        requests = HistogramMetricFamily(
            "tesserec_batch_requests", "Requests scored together.", labels=_OF_VERSION
        )
        rows = HistogramMetricFamily("tesserec_batch_rows", "Rows scored together.", labels=_OF_VERSION)
        failed = self._counter("tesserec_failed", "Requests that the service failed.", "failed")
        for counts in self.versions:
            label = (counts.model, counts.version)
            for stage, histogram in zip(STAGES, counts.stages, strict=True):
                seconds.add_metric((*label, stage), _buckets(SECONDS, histogram, _SHOWN), histogram.total)
            for family, histogram in ((requests, counts.batch_requests), (rows, counts.batch_rows)):
                family.add_metric(label, _buckets(SIZES, histogram, range(len(SIZES))), histogram.total)
        return seconds, requests, rows, failed

    def _of_scores(self) -> Iterable[Metric]:
        scores = HistogramMetricFamily("tesserec_score", "Scores that were given.", labels=_OF_VERSION)
        drift = GaugeMetricFamily(
            "tesserec_score_drift_psi",
            "Population stability index of the scores against those that the trainer saw.",
            labels=_OF_VERSION,
        )
        for counts in self.versions:
            label = (counts.model, counts.version)
            inner = Histogram(counts.scores, counts.score_total)
            scores.add_metric(
                label, _buckets(counts.edges[1:], inner, range(len(counts.scores))), inner.total
            )
            found = drift_of(counts.scores, counts.training)
            if found is not None:
                drift.add_metric(label, found)
        rows = self._counter("tesserec_shadow_rows", "Rows scored as a shadow.", "shadow_rows")
        apart = self._counter(
            "tesserec_shadow_difference", "Sum of |a shadow's score - the answered one|.", "shadow_difference"
        )
        return scores, drift, rows, apart

    def _of_ids(self) -> Iterable[Metric]:
        labels = (*_OF_VERSION, "feature")
        unknown = CounterMetricFamily(
            "tesserec_unknown_ids", "Ids without a row of their own.", labels=labels
        )
        missing = CounterMetricFamily("tesserec_missing_values", "Values that were missing.", labels=labels)
        for counts in self.versions:
            for family, found in ((unknown, counts.unknown), (missing, counts.missing)):
                for feature, count in found.items():
                    family.add_metric((counts.model, counts.version, feature), count)
        return unknown, missing

    def _of_deltas(self) -> Iterable[Metric]:
        sequence = GaugeMetricFamily("tesserec_delta_sequence", "The last delta applied.", labels=_OF_VERSION)
        failing = GaugeMetricFamily("tesserec_delta_failing", "1: deltas cannot go on.", labels=_OF_VERSION)
        staleness = GaugeMetricFamily(
            "tesserec_delta_staleness_seconds",
            "Age of the newest training step that is in the scores.",
            labels=_OF_VERSION,
        )
        for counts in self.versions:
            label = (counts.model, counts.version)
            sequence.add_metric(label, counts.delta_sequence)
            failing.add_metric(label, bool(counts.delta_error))
            if counts.staleness is not None:
                staleness.add_metric(label, counts.staleness)
        return sequence, failing, staleness

    def _counter(self, name: str, text: str, field: str) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=_OF_VERSION)
        for counts in self.versions:
            family.add_metric((counts.model, counts.version), getattr(counts, field))
        return family


def _buckets(edges: Floats, histogram: Histogram, shown: Iterable[int]) -> list[tuple[str, float]]:
    """(upper edge, how many were below) of the edges to show, and of all."""
    upto = histogram.counts.cumsum()
    return [*((f"{edges[i]:g}", float(upto[i])) for i in shown), ("+Inf", float(upto[-1]))]
