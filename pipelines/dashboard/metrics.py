"""The newest frame as Prometheus metrics: the numbers that a viewer sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipelines.dashboard.feed import Feed

PREFIX = "sagascope_live"

SAGA_GAUGES = {
    "started_per_minute": ("sagas_started_per_minute", "Sagas that started, per minute, in the sliding window"),
    "completed_per_minute": ("sagas_completed_per_minute", "Sagas that succeeded, per minute, in the sliding window"),
    "failed_per_minute": ("sagas_failed_per_minute", "Sagas that ended in failure, per minute, in the sliding window"),
    "failure_rate": ("saga_failure_ratio", "Sagas that ended in failure, of all that ended; absent where none did"),
}
STEP_GAUGES = {
    "completed_per_minute": (
        "steps_completed_per_minute",
        "Executions that succeeded, per minute, in the sliding window",
    ),
    "failed_per_minute": ("steps_failed_per_minute", "Executions that failed, per minute, in the sliding window"),
    "failure_rate": ("step_failure_ratio", "Executions that failed, of all that ended; absent where none did"),
}
DURATIONS = {"p50_ms": "0.5", "p95_ms": "0.95", "p99_ms": "0.99"}
"""The quantile of each."""


class LiveMetrics:
    """Made when they are asked for; a window's name is the label `window`, an empty `saga` is all sagas."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        frame = self._feed.newest.frame
        yield self._gauge("up", "1: the tables can be read; 0: they can't", float(frame.problem is None))
        yield self._gauge("viewers", "Open streams", float(self._feed.viewers))
        yield self._gauge(
            "refresh_seconds", "How long the newest look at the tables took", self._feed.refresh_ms / 1000
        )
        yield self._gauge(
            "stale", "1: the data is stale, see /api/v1/live; 0: it is not", float(bool(frame.freshness.stale))
        )
        for name, what, age in (
            ("event_age_seconds", "Since the timestamp of the newest event", frame.freshness.newest_event_age_seconds),
            ("commit_age_seconds", "Since the newest commit to events", frame.freshness.newest_commit_age_seconds),
        ):
            if age is not None:
                yield self._gauge(name, what, age)
        yield InfoMetricFamily(f"{PREFIX}_snapshot", "The newest snapshot of events", {"id": frame.snapshot_id or ""})
        active = GaugeMetricFamily(f"{PREFIX}_sagas_active", "Sagas that started and have not ended", labels=["saga"])
        for kind in frame.active_sagas:
            active.add_metric([kind.saga_name], kind.active)
        yield active
        yield from self._of_sagas()
        yield from self._of_steps()

    def _of_sagas(self) -> Iterator[Metric]:
        labels = ["window", "saga"]
        rows = [
            ([window.name, figures.saga_name or ""], figures)
            for window in self._feed.newest.frame.windows
            for figures in (window.all_sagas, *window.sagas)
        ]
        yield from _families(rows, SAGA_GAUGES, labels)
        yield _quantiles(rows, "saga_duration_seconds", "How long sagas took from start to end", labels)

    def _of_steps(self) -> Iterator[Metric]:
        labels = ["window", "saga", "step", "phase"]
        rows = [
            ([window.name, figures.saga_name or "", figures.step_name or "", figures.phase or ""], figures)
            for window in self._feed.newest.frame.windows
            for figures in (window.all_steps, *window.steps)
        ]
        yield from _families(rows, STEP_GAUGES, labels)
        yield _quantiles(rows, "step_duration_seconds", "How long steps and compensations took", labels)

    @staticmethod
    def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{PREFIX}_{name}", what, value=value)


def _families(
    rows: Sequence[tuple[list[str], object]], gauges: dict[str, tuple[str, str]], labels: list[str]
) -> Iterator[Metric]:
    for field, (name, what) in gauges.items():
        family = GaugeMetricFamily(f"{PREFIX}_{name}", what, labels=labels)
        for values, figures in rows:
            if (value := getattr(figures, field)) is not None:
                family.add_metric(values, value)
        yield family


def _quantiles(rows: Sequence[tuple[list[str], object]], name: str, what: str, labels: list[str]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", f"{what}: a quantile, at most 1 % off", labels=[*labels, "quantile"])
    for values, figures in rows:
        for field, quantile in DURATIONS.items():
            if (value := getattr(figures, field)) is not None:
                family.add_metric([*values, quantile], value / 1000)
    return family
