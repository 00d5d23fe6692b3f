"""A fan-out's health over HTTP: an ASGI app to mount beside a service's own, or to serve by itself.

    app = health_app(fan_out, registry=prometheus_registry)   # uvicorn module:app

`GET /healthz`: 200 while the process answers. `GET /readyz`: 200, or 503 where sagas are held up (see `Health.ready`).
Both tell each listener's state as JSON. `GET /metrics`: the registry and the fan-out's counts, for Prometheus.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sagascope.delivery_metrics import watch_fan_out

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry

    from sagascope.fan_out import FanOut

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

_JSON = b"application/json"


def health_app(
    fan_out: FanOut, *, registry: CollectorRegistry | None = None
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI 3.0 application with `/healthz`, `/readyz` and `/metrics`.

    Args:
        fan_out: Whose health it tells.
        registry: The Prometheus registry that `/metrics` shows, in which the fan-out's own counts are registered; the
            client library's default one where None. Without the extra `sagascope[prometheus]` `/metrics` answers 501.
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


def _answer(method: str, path: str, fan_out: FanOut, registry: CollectorRegistry | None) -> tuple[int, bytes, bytes]:
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


def _metrics(fan_out: FanOut, registry: CollectorRegistry | None) -> tuple[int, bytes, bytes]:
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest  # noqa: PLC0415 - a driver
    except ModuleNotFoundError:
        return 501, _JSON, b'{"error": "needs prometheus-client: pip install \'sagascope[prometheus]\'"}'
    watch_fan_out(fan_out, registry)
    return 200, CONTENT_TYPE_LATEST.encode(), generate_latest(registry or REGISTRY)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
