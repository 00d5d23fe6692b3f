"""The audit log in a table, of SQLite and of a real PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import abstractmethod
from contextlib import closing
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from sagascope import SQLAuditLog
from sagascope.audit import sql
from sagascope.audit.chain import Entry, event_id_of
from sagascope.errors import DeliveryError, TransientError
from tests.sagascope.audit.behaviour import NOW, AuditLogBehaviour
from tests.sagascope.conftest import make_event, until
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.servers.postgresql import PostgresServer

COLUMNS = "sequence, recorded_at, previous, event, hash"


class SQLBehaviour(AuditLogBehaviour):
    """Laws that hold for both databases."""

    def log(self, place: Any) -> SQLAuditLog:
        return SQLAuditLog(place, clock=lambda: NOW)

    def made_by_hand(self, place: Any) -> str:
        return f"SQLAuditLog({str(place)!r})"

    def test_several_writers_make_one_chain(self, place: Any) -> None:
        """Services that append at once, and make the table at once, don't fork it; and an event of both is there once."""
        shared = [make_event() for _ in range(20)]

        async def main() -> None:
            logs = [self.log(place) for _ in range(4)]

            async def write(log: SQLAuditLog) -> None:
                for event in shared:
                    await log.append([event, make_event()])

            await asyncio.gather(*map(write, logs))
            ids = [event_id_of(entry) for entry in await self.entries(place)]
            assert len(ids) == len(set(ids)) == 20 + 4 * 20
            assert (await logs[0].verify())[::2] == (100, None)
            await asyncio.gather(*(log.close() for log in logs))

        asyncio.run(main())

    def test_a_forged_column_is_found(self, place: Any) -> None:
        """The id that keeps an event out is that of the event."""

        async def main() -> None:
            log = self.log(place)
            await log.append(a_run("order-1"))
            await self.disarm(place)
            await self.run(place, "UPDATE sagascope_audit SET event_id = 'other' WHERE sequence = 3")
            found = await log.verify()
            assert (found.entries, str(found.broken)) == (
                3,
                "entry 3 was changed: its event_id is not that of its event",
            )
            await log.close()

        asyncio.run(main())

    def test_the_table_refuses_changes(self, place: Any) -> None:
        """Neither UPDATE nor DELETE, also where they would change nothing."""

        async def main() -> None:
            log = self.log(place)
            await log.append(a_run("order-1"))
            for statement in ("UPDATE sagascope_audit SET hash = ''", "DELETE FROM sagascope_audit WHERE sequence = 4"):
                with pytest.raises((asyncpg.RaiseError, sqlite3.IntegrityError), match="append only"):
                    await self.run(place, statement)
            assert (await log.verify())[::2] == (4, None)
            await log.close()

        asyncio.run(main())

    def test_more_than_a_page(self, place: Any) -> None:
        """A batch, and a log, of more rows than are read at once."""
        events = [make_event() for _ in range(2_300)]

        async def main() -> None:
            log = self.log(place)
            await log.append(events)
            await log.append(events)
            assert (await log.verify())[::2] == (2_300, None)
            await log.close()

        asyncio.run(main())

    @abstractmethod
    async def disarm(self, place: Any) -> None:
        """Remove the triggers, as who owns the table may."""

    @abstractmethod
    async def run(self, place: Any, statement: str) -> None:
        """Carry out and commit a statement past the log."""


class TestOnSQLite(SQLBehaviour):
    """The laws of every audit log."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "audit ö?.db"

    async def entries(self, place: Path) -> list[Entry]:
        with closing(sqlite3.connect(place)) as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM sagascope_audit ORDER BY sequence").fetchall()
        return [Entry(*row) for row in rows]

    async def rewrite(self, place: Path, entries: Sequence[Entry]) -> None:
        await self.disarm(place)
        with closing(sqlite3.connect(place)) as connection, connection:
            connection.execute("DELETE FROM sagascope_audit")
            rows = [(*entry, event_id_of(entry)) for entry in entries]
            connection.executemany("INSERT INTO sagascope_audit VALUES (?, ?, ?, ?, ?, ?)", rows)

    async def disarm(self, place: Path) -> None:
        await self.run(place, "DROP TRIGGER sagascope_audit_no_update")
        await self.run(place, "DROP TRIGGER sagascope_audit_no_delete")

    async def run(self, place: Path, statement: str) -> None:
        with closing(sqlite3.connect(place)) as connection, connection:
            connection.execute(statement)


class TestOnPostgreSQL(SQLBehaviour):
    """The laws of every audit log."""

    @pytest.fixture(autouse=True)
    def place(self, postgresql: PostgresServer) -> str:
        return postgresql.dsn(postgresql.create_database())

    async def entries(self, place: str) -> list[Entry]:
        connection = await asyncpg.connect(place)
        rows = await connection.fetch(f"SELECT {COLUMNS} FROM sagascope_audit ORDER BY sequence")
        await connection.close()
        return [Entry(*row) for row in rows]

    async def rewrite(self, place: str, entries: Sequence[Entry]) -> None:
        await self.disarm(place)
        connection = await asyncpg.connect(place)
        await connection.execute("DELETE FROM sagascope_audit")
        rows = [(*entry, event_id_of(entry)) for entry in entries]
        await connection.executemany("INSERT INTO sagascope_audit VALUES ($1, $2, $3, $4, $5, $6)", rows)
        await connection.close()

    async def disarm(self, place: str) -> None:
        await self.run(place, "DROP TRIGGER sagascope_audit_append_only ON sagascope_audit")

    async def run(self, place: str, statement: str) -> None:
        connection = await asyncpg.connect(place)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def test_it_cannot_be_emptied(self, place: str) -> None:
        """TRUNCATE is refused like DELETE."""

        async def main() -> None:
            log = self.log(place)
            await log.append(a_run("order-1"))
            with pytest.raises(asyncpg.RaiseError, match="append only: TRUNCATE refused"):
                await self.run(place, "TRUNCATE sagascope_audit")
            await log.close()

        asyncio.run(main())

    def test_a_writer_that_falls_silent_holds_up_the_others_for_a_while(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server ends a transaction that has its turn and says nothing more."""
        monkeypatch.setattr(sql, "_IDLE_MS", 100)

        async def main() -> None:
            log, silent = self.log(place), await asyncpg.connect(place)
            await log.append(a_run("order-1"))
            await silent.execute("BEGIN")
            assert isinstance(log._table, sql._PostgresTable)
            await log._table._take_turn(silent)
            async with asyncio.timeout(30):
                await log.append(a_run("order-2"))
            assert (await log.verify())[::2] == (8, None)
            silent.terminate()
            await log.close()

        asyncio.run(main())

    def test_a_schema_of_its_own(self, place: str) -> None:
        """Migrations may make the table from the documented SQL."""

        async def main() -> None:
            log = SQLAuditLog(place, table="trail.audit", create_table=False)
            with pytest.raises(TransientError, match="42P01"):
                await log.append([make_event()])
            await self.run(place, "CREATE SCHEMA trail;" + sql.postgresql_schema("trail.audit"))
            await log.append([make_event()])
            assert (await log.verify())[::2] == (1, None)
            await log.close()

        asyncio.run(main())


def test_verifying_creates_no_file(tmp_path: Path) -> None:
    """A path that was mistyped is said to lead nowhere."""

    async def main() -> None:
        with pytest.raises(TransientError, match="unable to open"):
            await SQLAuditLog(tmp_path / "audit.db").verify()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_a_cancel_while_the_file_is_locked_leaves_no_transaction_open(tmp_path: Path) -> None:
    """An append that waits for another process's lock is carried out once it has it, and holds up none after it."""
    path, one, two = tmp_path / "audit.db", a_run("order-1"), a_run("order-2")

    async def main() -> None:
        log = SQLAuditLog(path)
        await log.open()
        table = log._table
        assert isinstance(table, sql._SQLiteTable)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            appending = asyncio.create_task(log.append(one))
            await until(table._database._turn.locked)
            appending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await appending
            other.execute("ROLLBACK")
        await log.append(two)
        await log.close()
        assert (await log.verify())[::2] == (8, None)

    asyncio.run(main())


def test_no_room_is_transient(tmp_path: Path) -> None:
    """A full disk takes all of a batch or nothing, and the chain goes on once there is room."""
    events = [make_event(attributes={"big": "x" * 10_000}) for _ in range(50)]

    async def main() -> None:
        log = SQLAuditLog(tmp_path / "audit.db")
        await log.append(a_run("order-1"))
        assert isinstance(log._table, sql._SQLiteTable)
        await log._table._database.execute("PRAGMA max_page_count = 40")
        for _ in range(2):
            with pytest.raises(DeliveryError, match="full"):
                await log.append(events)
        assert (await log.verify())[::2] == (4, None)
        await log._table._database.execute("PRAGMA max_page_count = 100000")
        await log.append(events)
        assert (await log.verify())[::2] == (54, None)
        await log.close()

    asyncio.run(main())
