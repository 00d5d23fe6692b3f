"""What becomes of events on their way to listeners, as Prometheus metrics. Needs the extra `sagascope[prometheus]`.

    watch_fan_out(fan_out)
    watch_dead_letters("dead-letters.jsonl", FiguresOfFile("dead-letters.jsonl"))

| metric | labels | |
|---|---|---|
| `sagascope_listener_events_total` | listener, fate | of a FanOut: accepted, delivered, dead_lettered, dropped |
| `sagascope_listener_queued_events` | listener | of a FanOut: accepted, and none of the others yet |
| `sagascope_listener_retries_total` | listener | of a FanOut: calls that failed and were made again |
| `sagascope_listener_up` | listener | of a FanOut: 0 while the listener is left alone |
| `sagaz_dlq_messages_total` | topic | dead letters ever put there |
| `sagaz_dlq_queue_depth` | topic | dead letters that lie there |
| `sagaz_dlq_oldest_message_age_seconds` | topic | for how long the oldest of them has |
| `sagaz_dlq_depth` | | dead letters that lie in all topics |

The names `sagaz_dlq_…` are those that sagaz's alert rules ask for. Each is asked for when the registry is scraped, in the
scrape's thread. What can't be read then is logged once, and its series are left out until it can.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sagascope.registries import OncePerRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry, Metric

    from sagascope.fan_out import FanOut

logger = logging.getLogger(__name__)

_FATES = ("accepted", "delivered", "dead_lettered", "dropped")
_READ_BYTES = 1024 * 1024


class DeadLetterFigures(NamedTuple):
    """What is known of one place for dead letters. What is None is not known, and shows no series."""

    total: int
    """How many were put there, so far as this process has seen."""
    depth: int | None = None
    """How many lie there."""
    oldest: float | None = None
    """Since when the oldest of them has: seconds since the epoch. Of no meaning where the depth is 0."""


def watch_fan_out(fan_out: FanOut, registry: CollectorRegistry | None = None) -> None:
    """Show what a fan-out counts for each of its listeners; those of one name in several fan-outs are added up.

    Args:
        fan_out: A FanOut; it lives as long as the registry from now on.
        registry: Where; the client library's own by default.

    Raises:
        ModuleNotFoundError: prometheus-client is not installed.
        PermanentError: the registry has other metrics of these names.
    """
    fan_outs = _metrics.of(registry).fan_outs
    if not any(fan_out is known for known in fan_outs):
        fan_outs.append(fan_out)


def watch_dead_letters(
    topic: str, figures: Callable[[], DeadLetterFigures], registry: CollectorRegistry | None = None
) -> None:
    """Show the figures of a place for dead letters, in place of those of the same topic before.

    Args:
        topic: What to call the place: the label.
        figures: Asked at each scrape, in the scrape's thread: must be quick.
        registry: Where; the client library's own by default.

    Raises:
        ModuleNotFoundError: prometheus-client is not installed.
        PermanentError: the registry has other metrics of these names.
    """
    _metrics.of(registry).places[topic] = figures


class FiguresOfFile:
    """The figures of a DeadLetterFile: a line is a letter. Reads only what was appended since it was asked before.

    A file that became shorter or was replaced, as lines are taken out to be replayed, is read anew. An absent one is empty.

    Raises:
        OSError: from a call, where the file can't be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._inode = self._read = self._lines = self._total = 0
        self._oldest: float | None = None

    def __call__(self) -> DeadLetterFigures:
        """The figures now."""
        with self._lock:
            before = self._lines
            try:
                with self._path.open("rb") as file:
                    self._catch_up(file)
            except FileNotFoundError:
                self._inode = self._read = self._lines = 0
            self._total += max(0, self._lines - before)  # what is left of a file read anew was there before
            return DeadLetterFigures(self._total, self._lines, self._oldest if self._lines else None)

    def _catch_up(self, file: Any) -> None:
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._read:
            self._inode, self._read, self._lines, self._oldest = status.st_ino, 0, 0, None
        if self._oldest is None:
            self._oldest = _failure_time(file.readline())
        file.seek(self._read)
        while chunk := file.read(_READ_BYTES):
            self._read += len(chunk)
            self._lines += chunk.count(b"\n")


class _Letter(msgspec.Struct):
    dlq_metadata: dict[str, Any]


def _failure_time(line: bytes) -> float | None:
    """When the event of this line became a dead letter; None where the line does not say."""
    try:
        stated = msgspec.json.decode(line, type=_Letter).dlq_metadata["failure_timestamp"]
        return datetime.fromisoformat(stated).timestamp()
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return None


class _DeliveryMetrics:
    """The metrics of one registry: a collector, with nothing of its own to count."""

    def __init__(self) -> None:
        self.fan_outs: list[FanOut] = []
        self.places: dict[str, Callable[[], DeadLetterFigures]] = {}
        self._unread: set[str] = set()

    def describe(self) -> Iterator[Metric]:
        """What the registry asks for the names that are taken."""
        yield from _families().values()

    def collect(self) -> Iterator[Metric]:
        """What a scrape asks for."""
        families = _families()
        self._show_fan_outs(families)
        self._show_places(families)
        yield from families.values()

    def _show_fan_outs(self, families: dict[str, Any]) -> None:
        events: Counter[tuple[str, str]] = Counter()
        queued: Counter[str] = Counter()
        retries: Counter[str] = Counter()
        up: dict[str, bool] = {}
        for fan_out in tuple(self.fan_outs):
            for listener, health in fan_out.health().listeners.items():
                counts = health.counts
                queued[listener] += counts.under_way
                retries[listener] += counts.retries
                up[listener] = up.get(listener, True) and health.state != "open"
                for fate in _FATES:
                    events[listener, fate] += getattr(counts, fate)
        for (listener, fate), number in events.items():
            families["sagascope_listener_events"].add_metric([listener, fate], number)
        for listener in queued:
            families["sagascope_listener_queued_events"].add_metric([listener], queued[listener])
            families["sagascope_listener_retries"].add_metric([listener], retries[listener])
            families["sagascope_listener_up"].add_metric([listener], float(up[listener]))

    def _show_places(self, families: dict[str, Any]) -> None:
        depths = []
        for topic, figures in tuple(self.places.items()):
            try:
                total, depth, oldest = figures()
            except Exception:
                if topic not in self._unread:
                    logger.exception("the figures of the dead letters in %s can't be read, and are not shown", topic)
                self._unread.add(topic)
                continue
            self._unread.discard(topic)
            families["sagaz_dlq_messages"].add_metric([topic], total)
            if depth is not None:
                depths.append(depth)
                families["sagaz_dlq_queue_depth"].add_metric([topic], depth)
            if depth == 0 or oldest is not None:
                age = 0.0 if depth == 0 or oldest is None else max(0.0, time.time() - oldest)
                families["sagaz_dlq_oldest_message_age_seconds"].add_metric([topic], age)
        if depths:
            families["sagaz_dlq_depth"].add_metric([], sum(depths))


_metrics = OncePerRegistry("sagascope.delivery_metrics", _DeliveryMetrics)


def _families() -> dict[str, Any]:
    """The metrics, still empty."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - as above

    families = (
        CounterMetricFamily("sagascope_listener_events", "Events by what became of them", labels=["listener", "fate"]),
        GaugeMetricFamily("sagascope_listener_queued_events", "Events still to be delivered", labels=["listener"]),
        CounterMetricFamily("sagascope_listener_retries", "Calls that failed and were made again", labels=["listener"]),
        GaugeMetricFamily("sagascope_listener_up", "0 while the listener is left alone", labels=["listener"]),
        CounterMetricFamily("sagaz_dlq_messages", "Events that became dead letters", labels=["topic"]),
        GaugeMetricFamily("sagaz_dlq_queue_depth", "Dead letters that lie there", labels=["topic"]),
        GaugeMetricFamily(
            "sagaz_dlq_oldest_message_age_seconds", "For how long the oldest dead letter lies there", labels=["topic"]
        ),
        GaugeMetricFamily("sagaz_dlq_depth", "Dead letters that lie in all topics", labels=[]),
    )
    return {family.name: family for family in families}
