"""An event's attributes by CloudEvents 1.0."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from sagascope.events import encode

if TYPE_CHECKING:
    from sagascope.events import SagaEvent


def rfc3339(milliseconds: int) -> str:
    """Milliseconds since the epoch as RFC 3339 has them, in UTC, to the millisecond.

    Raises:
        ValueError: after the year 9999.
    """
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03}Z"


def attributes(event: SagaEvent) -> dict[str, str]:
    """The event's context attributes, in both modes; but for the content type, which each mode calls by a name of its own."""
    return {
        "specversion": "1.0",
        "id": _text(event.event_id),
        "source": quote(event.service or "sagascope", errors="replace"),
        "type": f"sagascope.{event.event_type}",
        "subject": _text(event.saga_id),
        "time": rfc3339(event.timestamp),
    }


def headers(event: SagaEvent) -> list[tuple[str, bytes]]:
    """The event's attributes by the CloudEvents 1.0 Kafka protocol binding, binary mode."""
    named = [(f"ce_{name}", value.encode()) for name, value in attributes(event).items()]
    return [*named, ("content-type", b"application/json")]


def structured(event: SagaEvent) -> bytes:
    """The event by the CloudEvents 1.0 JSON format, structured mode: one JSON object, UTF-8, the event itself as `data`."""
    data = msgspec.Raw(encode(event))
    return msgspec.json.encode(attributes(event) | {"datacontenttype": "application/json", "data": data})


def _text(value: str) -> str:
    """Without lone surrogates, which UTF-8 has not."""
    return value.encode("utf-8", "replace").decode()
