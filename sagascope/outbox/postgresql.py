"""The outbox in PostgreSQL. Needs the extra `sagascope[postgres]` (asyncpg).

outbox = PostgresOutbox("postgresql://orders@db/orders")
async with OutboxSagaListener(outbox) as listener:
    async with pool.acquire() as connection, connection.transaction(), outbox.using(connection):
        await connection.execute("INSERT INTO orders …")
        await OrderSaga(listeners=[listener]).run(context)
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sagascope.outbox.storage import ClaimedEvent, OutboxRow, OutboxStorage, claimed_event
from sagascope.postgresql import PostgresPool, as_delivery_errors, driver, savepoint, table_name, transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import asyncpg

_UNSENT = "status IN ('pending', 'claimed')"


def schema(table: str = "sagascope_outbox") -> str:
    """The SQL that makes the table where it is absent, for those who run migrations by themselves; the database's encoding is UTF8."""
    index = table_name(table).rpartition(".")[2]
    return f"""
CREATE TABLE IF NOT EXISTS {table} (
    event_id   uuid PRIMARY KEY,
    position   bigint GENERATED ALWAYS AS IDENTITY,
    saga_id    text NOT NULL,
    event_type text NOT NULL,
    payload    bytea NOT NULL, -- the event's JSON, byte for byte: convert_from(payload, 'UTF8')::json
    headers    json NOT NULL,  -- json keeps the text as it is, and takes \\u0000, which jsonb refuses
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    status     text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'claimed', 'sent', 'dead')),
    attempts   integer NOT NULL DEFAULT 0,
    claimed_by text,
    claimed_at timestamptz,
    sent_at    timestamptz,
    last_error text
);
CREATE INDEX IF NOT EXISTS {index}_unsent ON {table} (position) WHERE {_UNSENT};
CREATE INDEX IF NOT EXISTS {index}_unsent_of_saga ON {table} (left(saga_id, 200), position) WHERE {_UNSENT};
"""


class PostgresOutbox(OutboxStorage):
    """Events in a table of PostgreSQL 12 or later.

    `position` grows as events are written, not as they are committed: of two transactions the later to commit may hold
    the lower positions. A saga whose events are all written outside of transactions, or all in one, keeps its order.
    """

    def __init__(
        self,
        pool_or_dsn: str | asyncpg.Pool,
        *,
        table: str = "sagascope_outbox",
        create_table: bool = True,
        pool_size: int = 4,
    ) -> None:
        """Do no I/O yet.

        Args:
            pool_or_dsn: `postgresql://…`, or a pool, which stays its owner's to close, and needs a connection more than
                transactions are open at once.
            table: The table's name, with a schema or without. Not `saga_outbox`: that is sagaz's own.
            create_table: Make the table where it is absent; False where migrations do.
            pool_size: Connections at most, of a pool made from a DSN.

        Raises:
            ValueError: a table's name that would need quotes.
        """
        self.table = table_name(table)
        self._create_table = create_table
        self._pool = PostgresPool(pool_or_dsn, self._prepare, size=pool_size)
        self._insert = f"""
            INSERT INTO {table} (event_id, saga_id, event_type, payload, headers) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (event_id) DO NOTHING"""  # noqa: S608 - the name was checked
        self._claim = _claim(table)

    async def open(self) -> None:
        """Connect, and make the table where it is absent."""
        await self._pool.open()

    async def close(self) -> None:
        """Close the pool, if it was made from a DSN."""
        await self._pool.close()

    async def _prepare(self, connection: Any) -> None:
        if not self._create_table or await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", self.table):
            return  # also where a role may not make any
        async with transaction(connection):
            # Two services may start at once, and IF NOT EXISTS alone would let both try.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"sagascope {self.table}")
            await connection.execute(schema(self.table))

    def _check(self, connection: Any) -> None:
        if not isinstance(connection, driver().Connection):
            msg = f"connection: got a {type(connection).__name__}; allowed: one of asyncpg"
            raise TypeError(msg)

    def _in_transaction(self, connection: Any) -> bool:
        try:
            return not connection.is_closed() and bool(connection.is_in_transaction())
        except driver().InterfaceError:  # given back to its pool
            return False

    async def _append_within(self, connection: Any, rows: Sequence[OutboxRow]) -> None:
        with as_delivery_errors():
            async with savepoint(connection):
                await connection.executemany(self._insert, rows)

    async def _append(self, rows: Sequence[OutboxRow]) -> None:
        async with self._pool.connection() as connection:
            await connection.executemany(self._insert, rows)  # all or none

    async def claim(self, worker: str, *, limit: int = 500, lease_seconds: float = 60.0) -> list[ClaimedEvent]:
        """Take up to `limit` events to send, the eldest first, for so long; several workers may do so at once."""
        async with self._pool.transaction() as connection:
            await connection.execute("SET LOCAL jit = off")  # compiling takes ten times as long as the claim
            rows = await connection.fetch(self._claim, worker, limit, timedelta(seconds=lease_seconds))
        return sorted(claimed_event(r[0], str(r[1]), r[2], r[3], r[4]) for r in rows)

    async def mark_sent(self, worker: str, event_ids: Collection[str]) -> int:
        """These are sent."""
        return await self._settle("status = 'sent', sent_at = clock_timestamp()", worker, event_ids, None)

    async def release(self, worker: str, event_ids: Collection[str], reason: str | None = None) -> int:
        """These are not sent, and may be claimed again."""
        return await self._settle("status = 'pending', claimed_by = NULL, claimed_at = NULL", worker, event_ids, reason)

    async def mark_dead(self, worker: str, event_ids: Collection[str], reason: str) -> int:
        """These will not be sent."""
        return await self._settle("status = 'dead'", worker, event_ids, reason)

    async def _settle(self, change: str, worker: str, event_ids: Collection[str], reason: str | None) -> int:
        statement = f"""
            UPDATE {self.table} SET {change}, last_error = $3
            WHERE event_id = ANY($2::uuid[]) AND status = 'claimed' AND claimed_by = $1"""  # noqa: S608 - checked
        async with self._pool.connection() as connection:
            done: str = await connection.execute(statement, worker, list(event_ids), reason)
        return int(done.rpartition(" ")[2])


def _claim(table: str) -> str:
    """Claim by sagas: whoever locks the first unsent event of a saga may take those after it, and nobody else can.

    An event that is locked, or whose saga has an earlier one claimed, is skipped, not waited for. A row that changed
    since the statement began is looked at again before it is locked, so a saga just claimed by another is skipped too.
    """
    return f"""
        WITH first AS MATERIALIZED (
            SELECT saga_id FROM {table} AS event
            WHERE {_UNSENT} AND (status = 'pending' OR claimed_at <= clock_timestamp() - $3::interval)
            AND NOT EXISTS (
                SELECT FROM {table} AS earlier
                WHERE left(earlier.saga_id, 200) = left(event.saga_id, 200) AND earlier.saga_id = event.saga_id
                AND earlier.position < event.position AND earlier.{_UNSENT})
            ORDER BY position LIMIT $2 FOR UPDATE SKIP LOCKED
        ), batch AS (
            SELECT of_saga.position, of_saga.event_id FROM first CROSS JOIN LATERAL (
                SELECT position, event_id FROM {table} AS event
                WHERE left(event.saga_id, 200) = left(first.saga_id, 200) AND event.saga_id = first.saga_id
                AND event.{_UNSENT} ORDER BY position LIMIT $2
            ) AS of_saga
            ORDER BY of_saga.position LIMIT $2
        )
        UPDATE {table} AS event
        SET status = 'claimed', claimed_by = $1, claimed_at = clock_timestamp(), attempts = attempts + 1
        FROM batch WHERE event.event_id = batch.event_id AND event.{_UNSENT}
        RETURNING event.position, event.event_id, event.payload, event.headers, event.attempts"""  # noqa: S608 - checked
