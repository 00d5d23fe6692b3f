"""What the tests of webhooks share: listeners for endpoints of this machine, and events for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sagascope import EventType, WebhookListener
from tests.sagascope.conftest import make_event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.events import SagaEvent
    from tests.servers.webhook_receiver import Receiver

LOOPBACK = ("127.0.0.0/8",)
SECRET = "whsec_" + "c2FnYXNjb3Bl" * 4


def to(endpoint: int | str, **options: Any) -> WebhookListener:
    """A listener for a URL, or a port of this machine; a request has five seconds."""
    url = endpoint if isinstance(endpoint, str) else f"http://127.0.0.1:{endpoint}/hook"
    own: dict[str, Any] = {"allow_networks": LOOPBACK, "timeout": 5.0}
    return WebhookListener(url, **own | options)


def ends(number: int, *, saga_id: str | None = None) -> list[SagaEvent]:
    """So many ends of sagas, of different ones where no saga is named."""
    return [
        make_event(
            event_type=EventType.SAGA_COMPLETED, saga_id=saga_id or f"order-{n}", sequence=n, total_duration_ms=n
        )
        for n in range(number)
    ]


def ids(events: Sequence[SagaEvent]) -> list[str]:
    """Their ids."""
    return [event.event_id for event in events]


def got(receiver: Receiver) -> list[str]:
    """The ids that the endpoint has received, in order, the same one each time it came."""
    return [received.headers["webhook-id"] for received in receiver.received]


def written(listener: WebhookListener, events: Sequence[SagaEvent]) -> None:
    """Write and close, in an event loop of its own."""

    async def main() -> None:
        async with listener:
            await listener.write(events)

    asyncio.run(main())
