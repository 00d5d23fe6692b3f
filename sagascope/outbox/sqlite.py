"""The outbox in SQLite.

Needs the extra `sagascope[sqlite]` (aiosqlite).

outbox = SQLiteOutbox("orders.db")
async with OutboxSagaListener(outbox) as listener, aiosqlite.connect("orders.db") as connection:
    await connection.execute("BEGIN IMMEDIATE")
    async with outbox.using(connection):
        await connection.execute("INSERT INTO orders …")
        await OrderSaga(listeners=[listener]).run(context)
    await connection.commit()
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sagascope.outbox.storage import ClaimedEvent, OutboxRow, OutboxStorage, claimed_event
from sagascope.sqlite import SQLiteDatabase, as_delivery_errors, driver, run

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

TABLE = "sagascope_outbox"
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    position   INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice, also when rows are deleted
    event_id   TEXT NOT NULL UNIQUE,
    saga_id    TEXT NOT NULL,
    event_type TEXT NOT NULL,
    payload    BLOB NOT NULL, -- the event's JSON, byte for byte: CAST(payload AS TEXT)
    headers    TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    status     TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'claimed', 'sent', 'dead')),
    attempts   INTEGER NOT NULL DEFAULT 0,
    claimed_by TEXT,
    claimed_at REAL, -- seconds since the epoch, as sent_at
    sent_at    REAL,
    last_error TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS {TABLE}_unsent ON {TABLE} (position) WHERE status IN ('pending', 'claimed');
CREATE INDEX IF NOT EXISTS {TABLE}_claimed ON {TABLE} (saga_id, position) WHERE status = 'claimed';
"""
"""The SQL that makes the table where it is absent, for those who run migrations by themselves."""

_NOW = "(julianday('now') - 2440587.5) * 86400.0"
_ROWS_A_STATEMENT = 1_000
"""Five values each, of the 32,766 that SQLite takes."""
_EVENTS_A_STATEMENT = 10_000


class SQLiteOutbox(OutboxStorage):
    """Events in a table of a SQLite file (3.37 or later), which other processes may write at the same time.

    A transaction that holds the file's write lock must be handed over (`using`): a write outside of it, of a saga that it
    waits for, waits for it in turn until the busy timeout. Begin it with BEGIN IMMEDIATE, as one that has read before it
    writes may find that it can't.
    """

    def __init__(self, path: str | Path, *, busy_timeout_ms: int = 5_000) -> None:
        """Do no I/O yet.

        Args:
            path: The file; made where it is absent, its folder is not.
            busy_timeout_ms: How long a write waits for another process's, before it is a TransientError.
        """
        self._database = SQLiteDatabase(path, SCHEMA, busy_timeout_ms=busy_timeout_ms)

    async def open(self) -> None:
        """Connect, and make the table where it is absent."""
        await self._database.open()

    async def close(self) -> None:
        """Close the connection."""
        await self._database.close()

    def _check(self, connection: Any) -> None:
        if not isinstance(connection, driver().Connection):
            msg = f"connection: got a {type(connection).__name__}; allowed: one of aiosqlite"
            raise TypeError(msg)

    def _in_transaction(self, connection: Any) -> bool:
        try:
            return bool(connection.in_transaction)
        except (ValueError, sqlite3.ProgrammingError):  # closed
            return False

    async def _append_within(self, connection: Any, rows: Sequence[OutboxRow]) -> None:
        # One statement, which SQLite undoes by itself when it fails: a savepoint of ours would also undo what another
        # task wrote between our statements.
        with as_delivery_errors():
            for insert, values in _inserts(rows):
                await run(connection, insert, values)

    async def _append(self, rows: Sequence[OutboxRow]) -> None:
        for insert, values in _inserts(rows):
            await self._database.execute(insert, values)

    async def claim(self, worker: str, *, limit: int = 500, lease_seconds: float = 60.0) -> list[ClaimedEvent]:
        """Take up to `limit` events to send, the eldest first, for so long; several workers may do so at once."""
        rows = await self._database.execute(_CLAIM, (worker, f"{lease_seconds}", limit))
        return sorted(claimed_event(*row) for row in rows)

    async def mark_sent(self, worker: str, event_ids: Collection[str]) -> int:
        """These are sent."""
        return await self._settle(f"status = 'sent', sent_at = {_NOW}", worker, event_ids, None)

    async def release(self, worker: str, event_ids: Collection[str], reason: str | None = None) -> int:
        """These are not sent, and may be claimed again."""
        return await self._settle("status = 'pending', claimed_by = NULL, claimed_at = NULL", worker, event_ids, reason)

    async def mark_dead(self, worker: str, event_ids: Collection[str], reason: str) -> int:
        """These will not be sent."""
        return await self._settle("status = 'dead'", worker, event_ids, reason)

    async def _settle(self, change: str, worker: str, event_ids: Collection[str], reason: str | None) -> int:
        done = 0
        ids = list(event_ids)
        for start in range(0, len(ids), _EVENTS_A_STATEMENT):
            some = ids[start : start + _EVENTS_A_STATEMENT]
            statement = f"""
                UPDATE {TABLE} SET {change}, last_error = ?
                WHERE event_id IN ({_marks(len(some))}) AND status = 'claimed' AND claimed_by = ?
                RETURNING 1"""  # noqa: S608 - nothing of it is input
            done += len(await self._database.execute(statement, (reason, *some, worker)))
        return done


def _inserts(rows: Sequence[OutboxRow]) -> list[tuple[str, list[Any]]]:
    """One statement for each thousand rows."""
    parts = [rows[start : start + _ROWS_A_STATEMENT] for start in range(0, len(rows), _ROWS_A_STATEMENT)]
    return [(_insert(len(part)), [value for row in part for value in row]) for part in parts]


def _insert(rows: int) -> str:
    values = ", ".join([f"({_marks(5)})"] * rows)
    return (
        f"INSERT INTO {TABLE} (event_id, saga_id, event_type, payload, headers) VALUES {values} "  # noqa: S608 - no input
        "ON CONFLICT (event_id) DO NOTHING"
    )


def _marks(count: int) -> str:
    return ", ".join("?" * count)


_DUE = f"(status = 'pending' OR status = 'claimed' AND claimed_at <= {_NOW} - CAST(?2 AS REAL))"
_CLAIM = f"""
    UPDATE {TABLE} SET status = 'claimed', claimed_by = ?1, claimed_at = {_NOW}, attempts = attempts + 1
    WHERE position IN (
        SELECT position FROM {TABLE} AS event
        WHERE status IN ('pending', 'claimed') AND {_DUE}
        AND NOT EXISTS (
            SELECT 1 FROM {TABLE} AS earlier
            WHERE earlier.saga_id = event.saga_id AND earlier.position < event.position
            AND earlier.status = 'claimed' AND earlier.claimed_at > {_NOW} - CAST(?2 AS REAL))
        ORDER BY position LIMIT ?3)
    RETURNING position, event_id, payload, headers, attempts"""  # noqa: S608 - nothing of it is input
"""One statement, and so one writer at a time; of a saga it takes what comes next, unless some before is claimed."""
