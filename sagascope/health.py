"""A fan-out's health over HTTP: an ASGI app to mount beside a service's own, or to serve by itself.

    app = health_app(fan_out, registry=prometheus_registry)   # uvicorn module:app

`GET /healthz`: 200 while the process answers. `GET /readyz`: 200, or 503 where sagas are held up (see `Health.ready`).
Both tell each listener's state as JSON. `GET /metrics`: the registry and the fan-out's counts, for Prometheus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sagascope.fan_out import FanOut

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

_JSON = b"application/json"


def health_app(fan_out: FanOut, *, registry: Any = None) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI 3.0 application with `/healthz`, `/readyz` and `/metrics`.

    Args:
        fan_out: Whose health it tells.
        registry: The Prometheus registry that `/metrics` shows besides the fan-out's own counts; the client library's
            default one where None. Needs the extra `sagascope[prometheus]`, else `/metrics` answers 501.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            status, kind, body = _answer(scope["method"], scope["path"], fan_out, registry)
            headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


def _answer(method: str, path: str, fan_out: FanOut, registry: Any) -> tuple[int, bytes, bytes]:
    if method not in ("GET", "HEAD"):
        return 405, _JSON, b'{"error": "GET or HEAD only"}'
    match path.rstrip("/").rsplit("/", 1)[-1]:
        case "healthz":
            return 200, _JSON, _health(fan_out)
        case "readyz":
            return (200 if fan_out.health().ready else 503), _JSON, _health(fan_out)
        case "metrics":
            return _metrics(fan_out, registry)
    return 404, _JSON, b'{"error": "there are /healthz, /readyz and /metrics"}'


def _health(fan_out: FanOut) -> bytes:
    health = fan_out.health()
    listeners = {
        name: {
            "state": each.state,
            "queued": each.queued,
            "size": each.size,
            "last_error": each.last_error,
            "accepted": each.counts.accepted,
            "delivered": each.counts.delivered,
            "dead_lettered": each.counts.dead_lettered,
            "dropped": each.counts.dropped,
            "retries": each.counts.retries,
        }
        for name, each in health.listeners.items()
    }
    return msgspec.json.encode({"ready": health.ready, "listeners": listeners})


def _metrics(fan_out: FanOut, registry: Any) -> tuple[int, bytes, bytes]:
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest  # noqa: PLC0415
    except ModuleNotFoundError:
        return 501, _JSON, b'{"error": "needs prometheus-client: pip install \'sagascope[prometheus]\'"}'
    own = CollectorRegistry()
    own.register(FanOutCollector(fan_out))
    body = generate_latest(registry or REGISTRY) + generate_latest(own)
    return 200, CONTENT_TYPE_LATEST.encode(), body


class FanOutCollector:
    """A fan-out's counts as Prometheus metrics, read when scraped: `registry.register(FanOutCollector(fan_out))`.

    `sagascope_listener_events_total{listener, outcome}` with the outcomes accepted, delivered, dead_lettered and
    dropped; `sagascope_listener_retries_total`, `sagascope_listener_queued`, and `sagascope_listener_up`, which is 0 while
    a listener is left alone. Needs the extra `sagascope[prometheus]`.
    """

    def __init__(self, fan_out: FanOut) -> None:
        self._fan_out = fan_out

    def collect(self) -> Iterator[Any]:
        """The four families, by the client library's collector protocol."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - a driver

        events = CounterMetricFamily(
            "sagascope_listener_events", "Events by what became of them", labels=("listener", "outcome")
        )
        retries = CounterMetricFamily("sagascope_listener_retries", "Calls made again", labels=("listener",))
        queued = GaugeMetricFamily("sagascope_listener_queued", "Events queued or under way", labels=("listener",))
        up = GaugeMetricFamily("sagascope_listener_up", "0 while the listener is left alone", labels=("listener",))
        for name, each in self._fan_out.health().listeners.items():
            for outcome in ("accepted", "delivered", "dead_lettered", "dropped"):
                events.add_metric((name, outcome), getattr(each.counts, outcome))
            retries.add_metric((name,), each.counts.retries)
            queued.add_metric((name,), each.queued)
            up.add_metric((name,), float(each.state != "open"))
        yield from (events, retries, queued, up)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
