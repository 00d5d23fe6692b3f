"""An event's attributes by CloudEvents 1.0."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from sagascope.events import SagaEvent


def rfc3339(milliseconds: int) -> str:
    """Milliseconds since the epoch as RFC 3339 has them, in UTC, to the millisecond.

    Raises:
        ValueError: after the year 9999.
    """
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03}Z"


def headers(event: SagaEvent) -> list[tuple[str, bytes]]:
    """The event's attributes by the CloudEvents 1.0 Kafka protocol binding, binary mode."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.event_id.encode("utf-8", "replace")),
        ("ce_source", quote(event.service or "sagascope", errors="replace").encode()),
        ("ce_type", f"sagascope.{event.event_type}".encode()),
        ("ce_subject", event.saga_id.encode("utf-8", "replace")),
        ("ce_time", rfc3339(event.timestamp).encode()),
        ("content-type", b"application/json"),
    ]
