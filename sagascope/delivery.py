"""What may stand between a saga and a listener: a timeout, figures. Each wraps any listener, covers every hook and `write`.

    MonitoredListener(TimeoutWrappedListener(ElasticsearchListener(es), timeout_ms=1000), "elasticsearch")

A hook goes from the outermost inwards. `ResilientListener` (sagascope.resilient) tries again what these let fail.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from sagascope.errors import ListenerTimeoutError
from sagascope.listener import HOOKS, EventListener
from sagascope.registries import OncePerRegistry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from prometheus_client import CollectorRegistry, Metric

    from sagascope.events import SagaEvent
    from sagascope.listener import SagaListener

_GRACE_SECONDS = 0.25
"""What a cancelled call may take to clean up before it is left to itself."""


class WrappedListener(EventListener):
    """Passes every hook, and `write`, on to another listener through `call`, which is what a subclass overrides."""

    def __init__(self, inner: SagaListener) -> None:
        self.inner = inner
        self.inline = inner.inline

    async def call(self, hook: str, *arguments: Any) -> None:
        """Call the hook, or `write`, of the listener within."""
        await getattr(self.inner, hook)(*arguments)

    @property
    def takes_events(self) -> bool:
        return self.inner.takes_events

    def stamp(self, event: SagaEvent) -> SagaEvent:
        return self.inner.stamp(event)

    def left(self, run_id: str) -> None:
        self.inner.left(run_id)

    async def open(self) -> None:
        await self.inner.open()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        await self.call("write", events)

    async def close(self) -> None:
        await self.inner.close()


def _passed_on(hook: str) -> Callable[..., Awaitable[None]]:
    async def passed_on(self: WrappedListener, *arguments: Any) -> None:
        await self.call(hook, *arguments)

    passed_on.__name__ = hook
    return passed_on


for _hook in HOOKS:
    setattr(WrappedListener, _hook, _passed_on(_hook))


def name_of(listener: SagaListener) -> str:
    """The name a listener goes by in logs and metrics: its own where it was given one, else its class's."""
    while isinstance(listener, WrappedListener):
        if isinstance(listener, MonitoredListener):
            return listener.name
        listener = listener.inner
    return type(listener).__name__


class TimeoutWrappedListener(WrappedListener):
    """Gives each call of a listener so long, then cancels it.

    A listener that will not be cancelled is left behind, running; nobody waits for it.

    Raises:
        ListenerTimeoutError: from a hook or `write` that took longer; transient.
        ValueError: a timeout that is not above 0.
    """

    def __init__(self, inner: SagaListener, timeout_ms: int = 1000) -> None:
        super().__init__(inner)
        if not timeout_ms > 0:
            msg = f"timeout_ms: got {timeout_ms!r}; allowed: milliseconds above 0"
            raise ValueError(msg)
        self.timeout_ms = timeout_ms

    async def call(self, hook: str, *arguments: Any) -> None:
        running = asyncio.ensure_future(super().call(hook, *arguments))
        try:
            done, _ = await asyncio.wait({running}, timeout=self.timeout_ms / 1000)
        except asyncio.CancelledError:
            await _cancelled(running)
            raise
        if not done:
            await _cancelled(running)
            msg = f"{name_of(self.inner)}.{hook} did not end within {self.timeout_ms} ms"
            raise ListenerTimeoutError(msg)
        running.result()


async def _cancelled(running: asyncio.Future[None]) -> None:
    """Cancel it, and wait a moment for it to clean up."""
    running.cancel()
    running.add_done_callback(
        lambda ended: ended.cancelled() or ended.exception()
    )  # it has been given up: no complaint
    await asyncio.wait({running}, timeout=_GRACE_SECONDS)


class MonitoredListener(WrappedListener):
    """Counts and times every call of a listener, for Prometheus. Needs the extra `sagascope[prometheus]`.

    Metrics, all with the labels `listener` (the name given) and `hook` (`write` for a batch of events):
    `listener_success_total`, `listener_errors_total`, `listener_duration` (a histogram, in seconds).

    Args:
        inner: The listener.
        name: What to call it in the metrics.
        registry: Where to register the metrics; the client library's own by default.
    """

    def __init__(self, inner: SagaListener, name: str, registry: CollectorRegistry | None = None) -> None:
        super().__init__(inner)
        self.name = name
        self._registry = registry

    async def call(self, hook: str, *arguments: Any) -> None:
        metrics = _metrics.of(self._registry)
        labels = {"listener": self.name, "hook": hook}
        began = time.perf_counter()
        try:
            await super().call(hook, *arguments)
        except BaseException:  # a cancelled call, too
            metrics.errors.labels(**labels).inc()
            raise
        else:
            metrics.success.labels(**labels).inc()
        finally:
            metrics.duration.labels(**labels).observe(time.perf_counter() - began)


class _CallMetrics:
    """The three metrics of a registry: one collector, which is registered as a whole or not at all."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram  # noqa: PLC0415 - the driver is known to be there by now

        labels = ("listener", "hook")
        self.success = Counter("listener_success", "Calls of a listener that succeeded", labels, registry=None)
        self.errors = Counter("listener_errors", "Calls of a listener that failed", labels, registry=None)
        seconds = "What a call of a listener took, in seconds"
        self.duration = Histogram("listener_duration", seconds, labels, registry=None)

    def describe(self) -> Iterator[Metric]:
        """What the registry asks for the names that are taken."""
        for metric in (self.success, self.errors, self.duration):
            yield from metric.describe()

    def collect(self) -> Iterator[Metric]:
        """What a scrape asks for."""
        for metric in (self.success, self.errors, self.duration):
            yield from metric.collect()


_metrics = OncePerRegistry("MonitoredListener", _CallMetrics)
