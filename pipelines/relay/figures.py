"""What a relay tells of itself: metrics for Prometheus, and the same numbers as a line of JSON."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from sagascope.outbox.storage import Backlog

_SIZES = (1, 5, 10, 50, 100, 250, 500, 1_000, 2_500, 5_000)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Figures:
    """Counts since the relay began, and what the source held when it was last asked."""

    def __init__(self) -> None:
        """Register everything in a registry of its own."""
        self.registry = CollectorRegistry()
        own = self.registry
        self._depth = Gauge("sagascope_relay_depth", "Events that are not sent yet", registry=own)
        self._lag = Gauge("sagascope_relay_lag_seconds", "Age of the eldest event that is not sent yet", registry=own)
        self._parked = Gauge(
            "sagascope_relay_parked", "Events that were given up and are to be dealt with", registry=own
        )
        self._blocked = Gauge("sagascope_relay_blocked", "Events behind a parked one of their saga", registry=own)
        self._sent = Counter("sagascope_relay_sent", "Events that the broker acknowledged", registry=own)
        self._retried = Counter(
            "sagascope_relay_retried", "Events that were given back to be tried again", registry=own
        )
        self._given_up = Counter("sagascope_relay_given_up", "Events that were parked", registry=own)
        self._purged = Counter("sagascope_relay_purged", "Sent events that were deleted", registry=own)
        self._batch = Histogram("sagascope_relay_batch_size", "Events taken at a time", buckets=_SIZES, registry=own)
        self._publish = Histogram(
            "sagascope_relay_publish_seconds",
            "From a batch's hand-over to its last answer",
            buckets=_SECONDS,
            registry=own,
        )
        self._numbers: dict[str, float] = dict.fromkeys(
            ("depth", "lag_seconds", "parked", "blocked", "sent", "retried", "given_up", "purged", "batches"), 0
        )
        self._slowest = 0.0
        self._publish_seconds = 0.0

    def serve(self, port: int) -> Callable[[], None]:
        """Answer at http://127.0.0.1:port/metrics; returns what ends that.

        Raises:
            OSError: the port is taken.
        """
        server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join(5)

        return end

    def published(self, events: int, seconds: float) -> None:
        """A batch was handed over and answered."""
        self._batch.observe(events)
        self._publish.observe(seconds)
        self._numbers["batches"] += 1
        self._publish_seconds += seconds
        self._slowest = max(self._slowest, seconds)

    def settled(self, *, sent: int, retried: int, given_up: int) -> None:
        """What became of a batch."""
        for counter, name, number in (
            (self._sent, "sent", sent),
            (self._retried, "retried", retried),
            (self._given_up, "given_up", given_up),
        ):
            counter.inc(number)
            self._numbers[name] += number

    def purged(self, events: int) -> None:
        """So many were deleted."""
        self._purged.inc(events)
        self._numbers["purged"] += events

    def backlog(self, now: Backlog) -> None:
        """What the source holds."""
        for gauge, name, number in (
            (self._depth, "depth", now.depth),
            (self._lag, "lag_seconds", round(now.lag_seconds, 3)),
            (self._parked, "parked", now.parked),
            (self._blocked, "blocked", now.blocked),
        ):
            gauge.set(number)
            self._numbers[name] = number

    def line(self) -> str:
        """All numbers as one JSON object; latencies are those since the line before."""
        batches = self._numbers.pop("batches")
        told = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self._numbers,
            "batches": batches,
            "publish_seconds_mean": round(self._publish_seconds / batches, 4) if batches else None,
            "publish_seconds_max": round(self._slowest, 4),
        }
        self._numbers["batches"] = 0
        self._publish_seconds = self._slowest = 0.0
        return json.dumps({"relay": told})
