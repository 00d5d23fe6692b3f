"""Saga events into an audit log that shows what was changed afterwards.

For those who must be able to prove what happened.

    async with AuditLogListener(JsonLinesAuditLog("/var/log/orders/audit.jsonl")) as audit:
        await OrderSaga(listeners=[audit]).run(context)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.audit.chain import AuditLog
    from sagascope.events import SagaEvent


class AuditLogListener(EventListener):
    """Appends each event to a log whose entries are chained by their hashes.

    Guarantee: what `write` returned from is durable, in the order in which it was written, and verifiable:
    `verify` finds an entry that was changed, removed or moved. The key is event_id: an event that is written twice is
    one entry (of a JsonLinesAuditLog, unless 10,000 others came between). The saga waits for each write; while the log
    can't be written, writes raise TransientError, and nothing is kept here to be written later. No transaction of the
    saga's undoes an entry.
    """

    inline = True

    def __init__(self, audit_storage: AuditLog) -> None:
        self.audit_storage = audit_storage

    async def open(self) -> None:
        await self.audit_storage.open()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if events:
            await self.audit_storage.append(events)

    async def close(self) -> None:
        await self.audit_storage.close()
