"""Saga events into an outbox: the service's own database, in its own transactions.

async with OutboxSagaListener(PostgresOutbox("postgresql://orders@db/orders")) as outbox:
    await OrderSaga(listeners=[outbox]).run(context)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.events import SagaEvent
    from sagascope.outbox.storage import OutboxStorage


class OutboxSagaListener(EventListener):
    """Writes each event as a row of the outbox's table, from which a relay sends it on.

    Guarantee: what `write` returned from is committed, or part of the transaction that the caller handed over
    (`storage.using(connection)`) and shares its fate. The key is event_id: the same event twice is one row, the first.
    Rows have the order in which they were written. The saga waits for each write, as an event that comes after the
    commit would not be part of it; while the database is down, writes raise TransientError, and nothing is kept
    here to be written later.
    """

    inline = True

    def __init__(self, storage: OutboxStorage) -> None:
        self.storage = storage

    async def open(self) -> None:
        await self.storage.open()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if events:
            await self.storage.append(events)

    async def close(self) -> None:
        await self.storage.close()
