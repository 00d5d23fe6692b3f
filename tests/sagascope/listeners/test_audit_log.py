"""The audit log's listener: every listener's laws on each kind of log, and what it shows of a real saga."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import msgspec
import pytest

from sagascope import AuditLogListener, FanOutSaga, JsonLinesAuditLog, SQLAuditLog
from sagascope.events import EventType, decode
from tests.sagascope.conftest import fails, ok
from tests.sagascope.listeners.contract import ListenerContract
from tests.sagascope.listeners.on_postgresql import NOBODY, PostgresContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class TestOnPostgreSQL(PostgresContract):
    """The laws of every listener, with a real server."""

    name = "AuditLogListener"

    def unopened(self, tmp_path: Path) -> AuditLogListener:
        return AuditLogListener(SQLAuditLog(NOBODY))

    @asynccontextmanager
    async def at(self, port: int) -> AsyncIterator[AuditLogListener]:
        listener = AuditLogListener(SQLAuditLog(self.dsn(port)))
        yield listener
        await listener.close()
        log = SQLAuditLog(self.dsn())
        assert (await log.verify()).broken is None
        await log.close()

    async def stored(self, port: int) -> list[str]:
        connection = await asyncpg.connect(self.dsn(port))
        rows = await connection.fetch("SELECT event FROM sagascope_audit ORDER BY sequence")
        await connection.close()
        return [decode(row[0]).event_id for row in rows]


class TestOnSQLite(ListenerContract):
    """The laws that need no server."""

    name = "AuditLogListener"
    drivers = ("aiosqlite",)
    extra = "sqlite"

    def unopened(self, tmp_path: Path) -> AuditLogListener:
        return AuditLogListener(SQLAuditLog(tmp_path / "missing" / "audit.db"))


class TestInAFile(ListenerContract):
    """The laws that need no server."""

    name = "AuditLogListener"

    def unopened(self, tmp_path: Path) -> AuditLogListener:
        return AuditLogListener(JsonLinesAuditLog(tmp_path / "missing" / "audit.jsonl"))


class TransferSaga(FanOutSaga):
    """Fails at its second step."""

    saga_name = "transfer"


def test_a_saga_that_fails_is_on_record(tmp_path: Path) -> None:
    """All that a real saga did stands there in its order, with no value of its context."""
    path = tmp_path / "audit.jsonl"

    async def main() -> None:
        async with AuditLogListener(JsonLinesAuditLog(path)) as listener:
            saga = TransferSaga(listeners=[listener])
            saga.add_step("debit", ok, ok)
            saga.add_step("credit", fails(ValueError("account closed")), depends_on={"debit"})
            with pytest.raises(ValueError, match="account closed"):
                await saga.run({"iban": "DE02120300000000202051"})
            assert (await listener.audit_storage.verify()).broken is None

    asyncio.run(main())
    text = path.read_bytes()
    events = [decode(msgspec.json.encode(msgspec.json.decode(line)["event"])) for line in text.splitlines()]
    assert [(event.event_type, event.step_name) for event in events] == [
        (EventType.SAGA_STARTED, None),
        (EventType.STEP_STARTED, "debit"),
        (EventType.STEP_COMPLETED, "debit"),
        (EventType.STEP_STARTED, "credit"),
        (EventType.STEP_FAILED, "credit"),
        (EventType.COMPENSATION_STARTED, "debit"),
        (EventType.COMPENSATION_COMPLETED, "debit"),
        (EventType.SAGA_ROLLED_BACK, None),
    ]
    assert b"DE02120300000000202051" not in text
    assert AuditLogListener.inline
