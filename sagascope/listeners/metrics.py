"""Saga events as Prometheus metrics, under the names that sagaz emits and under those that its alert rules ask for.

Needs the extra `sagascope[prometheus]`.

    OrderSaga(listeners=[MetricsSagaListener(registry)])

| metric | labels | |
|---|---|---|
| `saga_execution_total` | saga_name, status | runs that ended; `failed` counts those that were rolled back, too, as in sagaz |
| `saga_execution_duration_seconds` | saga_name | histogram of runs that ended |
| `saga_step_duration_seconds` | saga_name, step_name | histogram of steps that completed or failed |
| `saga_compensations_total` | saga_name, status | compensations that completed or failed |
| `saga_active_count` | saga_name | runs that began and have not ended |
| `saga_active_dropped_total` | reason | runs no longer counted as active though no end was told: their `age`, or no `room` |
| `sagaz_saga_started_total` | saga_name | |
| `sagaz_saga_completed_total` | saga_name, status, outcome | as above; `outcome` is completed, rolled_back or failed |
| `sagaz_saga_running_duration_seconds` | saga_name, saga_id | of the runs that have been active the longest |
| `sagaz_step_completed_total` | saga_name, step_name, status | |
| `sagaz_step_duration_seconds` | saga_name, step_name | the same histogram under the rules' name |
| `sagaz_compensation_total` | saga_name, step_name, status | |

`saga_compensations_total` has the label `status`, which sagaz's has not: its rule divides it by `saga_execution_total`
without naming labels to match on, which finds a match only where both sides have the same ones. Dead letters, for the
rules about them, and what a FanOut counts, are shown by `sagascope.delivery_metrics`. In the client library's mode for
several processes the counters and histograms work, the gauges do not.
"""

from __future__ import annotations

import re
import threading
import time
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, NamedTuple

from sagascope.events import EventType
from sagascope.listener import EventListener
from sagascope.registries import OncePerRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client import CollectorRegistry, Counter, Histogram, Metric

    from sagascope.events import SagaEvent

OTHER = "other"
"""The label of names beyond the limits."""
BUCKETS_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0),
)
"""From a millisecond to four hours; sagaz's own buckets are among them, so that queries for one of them still hold."""
_LABEL_LIMIT = 120
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_REMEMBERED = 10_000
_ENDS = {
    EventType.SAGA_COMPLETED: ("completed", "completed"),
    EventType.SAGA_ROLLED_BACK: ("failed", "rolled_back"),
    EventType.SAGA_FAILED: ("failed", "failed"),
}
"""Status and outcome of a run, by the event that ends it."""
_STEP_ENDS = {EventType.STEP_COMPLETED: "completed", EventType.STEP_FAILED: "failed"}
_COMPENSATION_ENDS = {EventType.COMPENSATION_COMPLETED: "completed", EventType.COMPENSATION_FAILED: "failed"}
_STATUSES = ("completed", "failed")
_GAUGES = {
    "saga_active_count": ("Runs that began and have not ended", ["saga_name"]),
    "sagaz_saga_running_duration_seconds": ("For how long the oldest active runs have been", ["saga_name", "saga_id"]),
}


class MetricsSagaListener(EventListener):
    """Counts and times sagas, steps and compensations in a Prometheus registry.

    Guarantee: an event counts once. Told twice, the duplicate is known by its event_id, which is remembered for 10,000
    events. There is no sink that could be down: counts are in memory, begin at zero when the process does, and need no
    order of events. All listeners of one registry count together, as one. A series is there, as 0, from the first event
    of its saga or step on, so that Prometheus sees it rise; what happens before the first scrape it can't see rise.

    Names of sagas and steps are labels, up to `max_sagas` and `max_steps`; those beyond count under `other`. A saga_id
    is a label only of the `longest_running` runs. Label values are cut at 120 characters, and what can't be printed in
    them is shown as `?`.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        max_sagas: int = 100,
        max_steps: int = 500,
        max_running: int = 10_000,
        max_age_seconds: float = 24 * 3600.0,
        longest_running: int = 10,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Register nothing yet.

        Args:
            registry: Where the metrics are registered when it opens; the client library's own by default.
            max_sagas: How many saga_names have series of their own.
            max_steps: How many steps have, over all sagas.
            max_running: How many active runs are known at once; beyond, the one that was told of first is dropped.
            max_age_seconds: After so long without its end a run is no longer counted as active: it may have died.
            longest_running: How many runs `sagaz_saga_running_duration_seconds` shows, the oldest first.
            clock: Seconds since the epoch, for the age of runs.

        Raises:
            ValueError: a limit below 1.
        """
        self._registry = registry
        self._settings = _Settings(max_sagas, max_steps, max_running, max_age_seconds, longest_running, clock)
        for name, limit in self._settings._asdict().items():
            if name != "clock" and not limit >= 1:
                msg = f"{name}: got {limit!r}; allowed: 1 or more"
                raise ValueError(msg)
        self._metrics: _Metrics | None = None

    async def open(self) -> None:
        """Register the metrics, if no listener of the registry has.

        Raises:
            ModuleNotFoundError: prometheus-client is not installed.
            PermanentError: the registry has other metrics of these names.
            ValueError: another listener of the registry has other limits.
        """
        self._opened()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if events:
            self._opened().count(events)

    def left(self, run_id: str) -> None:
        """A run that was cancelled tells no end, and is active no more."""
        if self._metrics is not None:
            self._metrics.leave(run_id)

    def _opened(self) -> _Metrics:
        if self._metrics is None:
            metrics = _metrics.of(self._registry, self._settings)
            if metrics.settings != self._settings:
                msg = f"another listener of this registry has {metrics.settings}, and they count together; got {self._settings}"
                raise ValueError(msg)
            self._metrics = metrics
        return self._metrics


class _Settings(NamedTuple):
    max_sagas: int
    max_steps: int
    max_running: int
    max_age_seconds: float
    longest_running: int
    clock: Callable[[], float]


class _Running(NamedTuple):
    began: float
    """Seconds since the epoch."""
    saga: str
    saga_id: str


class _Recent:
    """A set that forgets: the newest `size` keys."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> bool:
        """Whether it was not there."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._size:
            del self._keys[next(iter(self._keys))]
        return True


class _Metrics:
    """All metrics of one registry: one collector, which is registered as a whole or not at all."""

    def __init__(self, settings: _Settings) -> None:
        from prometheus_client import Counter, Histogram  # noqa: PLC0415 - the driver is known to be there by now

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=None)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=None, buckets=BUCKETS_SECONDS)

        saga, step = ("saga_name",), ("saga_name", "step_name")
        self.executions = counter("saga_execution", "Runs that ended", *saga, "status")
        self.compensated = counter("saga_compensations", "Compensations that ended", *saga, "status")
        self.run_seconds = histogram("saga_execution_duration_seconds", "What runs took that ended", *saga)
        self.step_seconds = histogram("saga_step_duration_seconds", "What steps took that ended", *step)
        self.dropped = counter("saga_active_dropped", "Runs no longer counted as active, their end untold", "reason")
        self.started = counter("sagaz_saga_started", "Runs that began", *saga)
        self.completed = counter("sagaz_saga_completed", "Runs that ended", *saga, "status", "outcome")
        self.steps = counter("sagaz_step_completed", "Steps that ended", *step, "status")
        self.rule_step_seconds = histogram("sagaz_step_duration_seconds", "What steps took that ended", *step)
        self.compensations = counter("sagaz_compensation", "Compensations that ended", *step, "status")
        self._instruments: tuple[Counter | Histogram, ...] = (
            *(self.executions, self.compensated, self.run_seconds, self.step_seconds, self.dropped),
            *(self.started, self.completed, self.steps, self.rule_step_seconds, self.compensations),
        )
        for reason in ("age", "room"):
            self.dropped.labels(reason)
        self.settings = settings
        self._lock = threading.Lock()
        self._saga_labels: set[str] = set()
        self._step_labels: set[tuple[str, str]] = set()
        self._running: dict[str, _Running] = {}
        self._events = _Recent(_REMEMBERED)
        self._ended = _Recent(_REMEMBERED)

    def count(self, events: Iterable[SagaEvent]) -> None:
        with self._lock:
            for event in events:
                if self._events.add(event.event_id):
                    self._count(event)

    def leave(self, run_id: str) -> None:
        with self._lock:
            self._ended.add(run_id)  # its start may be queued still
            self._running.pop(run_id, None)

    def _count(self, event: SagaEvent) -> None:
        saga = self._saga_label(event.saga_name)
        kind = event.event_type
        if kind is EventType.SAGA_STARTED:
            self.started.labels(saga).inc()
            self._begin(event, saga)
        elif kind in _ENDS:
            status, outcome = _ENDS[kind]
            self.executions.labels(saga, status).inc()
            self.completed.labels(saga, status, outcome).inc()
            _observe(event, event.total_duration_ms, self.run_seconds.labels(saga))
            self._ended.add(event.run_id)
            self._running.pop(event.run_id, None)
        elif event.step_name is not None:  # as all other types have
            step = self._step_label(saga, event.step_name)
            if kind in _STEP_ENDS:
                self.steps.labels(saga, step, _STEP_ENDS[kind]).inc()
                _observe(event, event.duration_ms, self.step_seconds.labels(saga, step))
                _observe(event, event.duration_ms, self.rule_step_seconds.labels(saga, step))
            elif kind in _COMPENSATION_ENDS:
                self.compensations.labels(saga, step, _COMPENSATION_ENDS[kind]).inc()
                self.compensated.labels(saga, _COMPENSATION_ENDS[kind]).inc()

    def _begin(self, event: SagaEvent, saga: str) -> None:
        if event.run_id in self._ended:  # its end came first
            return
        self._running[event.run_id] = _Running(event.timestamp / 1000, saga, _label(event.saga_id))
        if len(self._running) > self.settings.max_running:
            del self._running[next(iter(self._running))]
            self.dropped.labels("room").inc()

    def _saga_label(self, saga_name: str) -> str:
        saga = _label(saga_name)
        if saga not in self._saga_labels:
            if len(self._saga_labels) >= self.settings.max_sagas:
                saga = OTHER
            self._saga_labels.add(saga)
            self.started.labels(saga)
            self.run_seconds.labels(saga)
            for status in _STATUSES:
                self.executions.labels(saga, status)
                self.compensated.labels(saga, status)
            for status, outcome in _ENDS.values():
                self.completed.labels(saga, status, outcome)
        return saga

    def _step_label(self, saga: str, step_name: str) -> str:
        step = OTHER if saga == OTHER else _label(step_name)
        if (saga, step) not in self._step_labels:
            if len(self._step_labels) >= self.settings.max_steps:
                step = OTHER
            self._step_labels.add((saga, step))
            self.step_seconds.labels(saga, step)
            self.rule_step_seconds.labels(saga, step)
            for status in _STATUSES:
                self.steps.labels(saga, step, status)
                self.compensations.labels(saga, step, status)
        return step

    def describe(self) -> Iterator[Metric]:
        """What the registry asks for the names that are taken."""
        for instrument in self._instruments:
            yield from instrument.describe()
        yield from _gauges().values()

    def collect(self) -> Iterator[Metric]:
        """What a scrape asks for."""
        gauges = _gauges()
        self._show_running(self.settings.clock(), gauges)
        for instrument in self._instruments:
            yield from instrument.collect()
        yield from gauges.values()

    def _show_running(self, now: float, gauges: dict[str, Any]) -> None:
        with self._lock:
            earliest = now - self.settings.max_age_seconds
            for run_id in [run_id for run_id, run in self._running.items() if run.began < earliest]:
                del self._running[run_id]
                self.dropped.labels("age").inc()
            active = dict.fromkeys(sorted(self._saga_labels), 0)
            oldest: dict[tuple[str, str], float] = {}  # a saga_id may have several runs, a series only one value
            for began, saga, saga_id in self._running.values():
                active[saga] += 1
                oldest[saga, saga_id] = min(began, oldest.get((saga, saga_id), began))
        for saga, count in active.items():
            gauges["saga_active_count"].add_metric([saga], count)
        for labels, began in nsmallest(self.settings.longest_running, oldest.items(), key=lambda item: item[1]):
            gauges["sagaz_saga_running_duration_seconds"].add_metric(labels, max(0.0, now - began))


_metrics = OncePerRegistry("MetricsSagaListener", _Metrics)


def _gauges() -> dict[str, Any]:
    """The metrics that are worked out when they are asked for, still empty."""
    from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - as above

    return {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in _GAUGES.items()}


def _observe(event: SagaEvent, milliseconds: int | None, histogram: Histogram) -> None:
    """Put a duration into its bucket, with the trace as an exemplar, which OpenMetrics shows."""
    if milliseconds is not None:
        trace_id = event.trace_id
        exemplar = {"trace_id": trace_id} if trace_id and _TRACE_ID.fullmatch(trace_id) else None
        histogram.observe(milliseconds / 1000, exemplar)


def _label(text: str) -> str:
    """A label's value that every parser takes."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LABEL_LIMIT])
