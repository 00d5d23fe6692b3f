"""The outbox in PostgreSQL. Needs the extra `sagascope[postgres]` (asyncpg).

outbox = PostgresOutbox("postgresql://orders@db/orders")
async with OutboxSagaListener(outbox) as listener:
    async with pool.acquire() as connection, connection.transaction(), outbox.using(connection):
        await connection.execute("INSERT INTO orders …")
        await OrderSaga(listeners=[listener]).run(context)
"""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sagascope.outbox.storage import Backlog, ClaimedEvent, OutboxRow, OutboxStorage, ParkedEvent
from sagascope.postgresql import PostgresPool, as_delivery_errors, driver, savepoint, table_name, transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import asyncpg

_UNSENT = "status IN ('pending', 'claimed')"
_LONGEST_CHANNEL = 63


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
CREATE INDEX IF NOT EXISTS {index}_dead ON {table} (left(saga_id, 200), position) WHERE status = 'dead';
CREATE INDEX IF NOT EXISTS {index}_sent ON {table} (sent_at) WHERE status = 'sent';
"""


def channel(table: str = "sagascope_outbox") -> str:
    """What a relay listens to (LISTEN) for new rows of the table: its name, or the end of a long one."""
    return table[-_LONGEST_CHANNEL:]


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
        notify: bool = True,
    ) -> None:
        """Do no I/O yet.

        Args:
            pool_or_dsn: `postgresql://…`, or a pool, which stays its owner's to close, and needs a connection more than
                transactions are open at once.
            table: The table's name, with a schema or without. Not `saga_outbox`: that is sagaz's own.
            create_table: Make the table where it is absent; False where migrations do.
            pool_size: Connections at most, of a pool made from a DSN.
            notify: Whether each transaction that stores events wakes the relay as it commits (NOTIFY). PostgreSQL lets
                such commits through one at a time; False for a service with thousands a second, or with two-phase
                commits, which may not notify: the relay then finds rows by its polling.

        Raises:
            ValueError: a table's name that would need quotes.
        """
        self.table = table_name(table)
        self._create_table = create_table
        self._pool = PostgresPool(pool_or_dsn, self._prepare, size=pool_size)
        self._insert = f"""
            INSERT INTO {table} (event_id, saga_id, event_type, payload, headers) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (event_id) DO NOTHING"""  # noqa: S608 - the name was checked
        self._wake = f"pg_notify('{channel(table)}', '')"
        if notify:  # part of the row's own statement and transaction: no round trip, and a rollback takes it back
            self._insert += f" RETURNING {self._wake}"
        self._claims = {past_dead: _claims(table, past_dead=past_dead) for past_dead in (True, False)}

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

    async def claim(
        self, worker: str, *, limit: int = 500, lease_seconds: float = 60.0, past_dead: bool = True
    ) -> list[ClaimedEvent]:
        """Take up to `limit` events to send, the eldest first, for so long; several workers may do so at once."""
        lease = timedelta(seconds=lease_seconds)
        claims = self._claims[past_dead]
        async with self._pool.connection() as connection:
            rows = await connection.fetch(claims.quick, worker, limit, lease)
            hides = not rows and await connection.fetchval(claims.is_crowded, limit, lease)
        if hides:
            async with self._pool.transaction() as connection:
                await connection.execute("SET LOCAL jit = off")  # compiling takes ten times as long as the claim
                rows = await connection.fetch(claims.thorough, worker, limit, lease)
        return await self._readable(worker, rows)

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
        return _count(done)

    async def backlog(self) -> Backlog:
        """What waits, what is parked, and how old the eldest is that waits."""
        async with self._pool.connection() as connection:
            row = await connection.fetchrow(self._backlog)
        return Backlog(*row)

    async def parked(self, *, saga_id: str | None = None, limit: int = 1_000) -> list[ParkedEvent]:
        """The dead, the eldest first; of one saga, or of all."""
        statement = f"""
            SELECT event_id::text, saga_id, event_type, attempts, created_at, coalesce(last_error, '') FROM {self.table}
            WHERE status = 'dead' AND ($1::text IS NULL OR saga_id = $1) ORDER BY position LIMIT $2"""  # noqa: S608 - checked
        async with self._pool.connection() as connection:
            rows = await connection.fetch(statement, saga_id, limit)
        return [ParkedEvent._make((*row[:4], row[4].astimezone(UTC).isoformat(), row[5])) for row in rows]

    async def retry_parked(self, event_ids: Collection[str]) -> int:
        """These dead ones are pending again, in their old place."""
        statement = f"""
            UPDATE {self.table} SET status = 'pending', claimed_by = NULL, claimed_at = NULL
            WHERE status = 'dead' AND event_id = ANY($1::uuid[]) RETURNING {self._wake}"""  # noqa: S608 - checked
        async with self._pool.connection() as connection:
            return _count(await connection.execute(statement, list(event_ids)))

    async def discard_parked(self, event_ids: Collection[str]) -> int:
        """These dead ones are deleted, and block nothing any more."""
        statement = f"""
            DELETE FROM {self.table} WHERE status = 'dead' AND event_id = ANY($1::uuid[])
            RETURNING {self._wake}"""  # noqa: S608 - checked
        async with self._pool.connection() as connection:
            return _count(await connection.execute(statement, list(event_ids)))

    async def purge(self, *, older_than_seconds: float, limit: int = 1_000) -> int:
        """Delete up to `limit` events that were sent so long ago; what another relay is deleting is left to it."""
        statement = f"""
            DELETE FROM {self.table} WHERE event_id IN (
                SELECT event_id FROM {self.table} WHERE status = 'sent' AND sent_at <= clock_timestamp() - $1::interval
                ORDER BY sent_at LIMIT $2 FOR UPDATE SKIP LOCKED)"""  # noqa: S608 - checked
        async with self._pool.connection() as connection:
            return _count(await connection.execute(statement, timedelta(seconds=older_than_seconds), limit))

    @property
    def _backlog(self) -> str:
        return f"""
            WITH dead AS MATERIALIZED (
                SELECT saga_id, min(position) AS position FROM {self.table} WHERE status = 'dead' GROUP BY saga_id)
            SELECT
                (SELECT count(*) FROM {self.table} WHERE {_UNSENT}),
                coalesce((
                    SELECT greatest(extract(epoch FROM clock_timestamp() - created_at), 0)::float8
                    FROM {self.table} WHERE {_UNSENT} ORDER BY position LIMIT 1), 0),
                (SELECT count(*) FROM {self.table} WHERE status = 'dead'),
                (SELECT count(*) FROM {self.table} AS event JOIN dead USING (saga_id)
                    WHERE event.{_UNSENT} AND event.position > dead.position)"""  # noqa: S608 - checked


def _count(done: str) -> int:
    """How many rows a statement's tag tells of."""
    return int(done.rpartition(" ")[2])


class _Claims(NamedTuple):
    """Statements; $1 the worker, $2 the limit, $3 the lease."""

    quick: str
    thorough: str
    is_crowded: str
    """Whether there are so many events that the quick one does not look at all; $1 the limit, $2 the lease."""


def _claims(table: str, *, past_dead: bool) -> _Claims:
    """Two ways to claim by sagas, the second for when the first finds nothing in a crowd.

    Whoever locks the first unsent event of a saga may take those after it, and nobody else can. An event that is locked,
    or whose saga has an earlier one claimed, is skipped, not waited for. A row that changed since the statement began is
    looked at again before it is locked, so a saga just claimed by another is skipped too.

    The first way looks at the next few events alone, and asks only for the first of each saga there whether an earlier
    one is unsent: half the work of a claim. The second asks that of each event, however many of sagas that others are
    at work on come before.
    """
    due = f"{_UNSENT} AND (status = 'pending' OR claimed_at <= clock_timestamp() - $3::interval)"
    unblocked = f"""
            NOT EXISTS (
                SELECT FROM {table} AS dead
                WHERE left(dead.saga_id, 200) = left(event.saga_id, 200) AND dead.saga_id = event.saga_id
                AND dead.position < event.position AND dead.status = 'dead')"""
    if past_dead:
        unblocked = "true"
    first_of_its_saga = f"""
            NOT EXISTS (
                SELECT FROM {table} AS earlier
                WHERE left(earlier.saga_id, 200) = left(event.saga_id, 200) AND earlier.saga_id = event.saga_id
                AND earlier.position < event.position AND earlier.{_UNSENT})"""
    update = f"""
        UPDATE {table} AS event
        SET status = 'claimed', claimed_by = $1, claimed_at = clock_timestamp(), attempts = attempts + 1
        FROM batch WHERE event.event_id = batch.event_id AND event.{_UNSENT}
        RETURNING event.position, event.event_id::text, event.payload, event.headers, event.attempts"""  # noqa: S608 - checked
    quick = f"""
        WITH next AS MATERIALIZED (
            SELECT position, event_id, saga_id FROM {table} AS event
            WHERE {due} AND {unblocked} ORDER BY position LIMIT 2 * $2
        ), first AS MATERIALIZED (
            SELECT event.saga_id FROM {table} AS event
            JOIN (SELECT DISTINCT ON (saga_id) event_id FROM next ORDER BY saga_id, position) AS of_saga USING (event_id)
            WHERE {due} AND {first_of_its_saga}
            ORDER BY event.position LIMIT $2 FOR UPDATE OF event SKIP LOCKED
        ), batch AS (
            SELECT event_id FROM next JOIN first USING (saga_id) ORDER BY position LIMIT $2
        ){update}"""  # noqa: S608 - checked
    thorough = f"""
        WITH first AS MATERIALIZED (
            SELECT saga_id FROM {table} AS event
            WHERE {due} AND {unblocked} AND {first_of_its_saga}
            ORDER BY position LIMIT $2 FOR UPDATE OF event SKIP LOCKED
        ), batch AS (
            SELECT of_saga.position, of_saga.event_id FROM first CROSS JOIN LATERAL (
                SELECT position, event_id FROM {table} AS event
                WHERE left(event.saga_id, 200) = left(first.saga_id, 200) AND event.saga_id = first.saga_id
                AND event.{_UNSENT} AND {unblocked} ORDER BY position LIMIT $2
            ) AS of_saga
            ORDER BY of_saga.position LIMIT $2
        ){update}"""  # noqa: S608 - checked
    is_crowded = f"""
        SELECT count(*) >= 2 * $1::bigint FROM (
            SELECT FROM {table} AS event
            WHERE {due} AND {unblocked} ORDER BY position LIMIT 2 * $1::bigint) AS next"""  # noqa: S608 - checked
    return _Claims(quick, thorough, is_crowded.replace("$3", "$2"))
