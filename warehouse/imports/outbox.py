"""sagaz's outbox as a source: `saga_outbox` and its archive in PostgreSQL, `outbox_events` in SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from contextlib import closing
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from sagascope import postgresql
from warehouse.imports import SAGAZ_OUTBOX
from warehouse.imports.sagaz_outbox import UNKNOWN_SAGA, OutboxRow, events_of_saga
from warehouse.imports.source import BATCH_ROWS, DAY, EPOCH, MICROSECOND, Loaded, Refused, SourceError, Span, begin_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator
    from datetime import date

    import duckdb

    from sagascope.events import SagaEvent

CONNECT_SECONDS = 10.0
POSTGRESQL = ("postgresql://", "postgres://")
_IS_MOMENT = "(created_at >= timestamptz '1970-01-01Z' AND created_at < timestamptz '9999-01-01Z')"
"""PostgreSQL knows `infinity`, too, and years that no calendar of ours has."""
MOMENT = f"CASE WHEN {_IS_MOMENT} THEN (extract(epoch FROM created_at) * 1000000)::bigint END"
"""SQL of PostgreSQL for a row's created_at in microseconds since the epoch, NULL where it is no moment of our calendar."""
_SCHEMA = pa.schema(
    {
        "row_id": pa.string(),
        "saga_id": pa.string(),
        "event_type": pa.string(),
        "payload": pa.string(),
        "moment": pa.int64(),
    }
)


def outbox_at(where: str) -> Outbox:
    """The outbox at a URL, or in a file of SQLite. Nothing is opened yet.

    Raises:
        SourceError: it is neither.
    """
    if where.startswith(POSTGRESQL):
        return PostgresOutbox(where)
    path = where.removeprefix("sqlite:///") if where.startswith("sqlite:///") else where
    if "://" in path or not path:
        msg = f"{path.partition('://')[0]!r} is no scheme of an outbox: give postgresql://user:password@host/database, or the path of a SQLite file"
        raise SourceError(msg)
    return SQLiteOutbox(Path(path))


class Outbox(ABC):
    """Rows as sagaz's OutboxSagaListener writes them, whatever else is in the same table."""

    topic = SAGAZ_OUTBOX

    def load(self, spool: duckdb.DuckDBPyConnection, span: Span) -> Loaded:
        """Read the outbox once, in one snapshot: all rows of each saga that has one in the span, and those without a time.

        Raises:
            SourceError: it can't be read.
        """
        spool.execute(
            "CREATE TABLE rows (row_id VARCHAR, saga_id VARCHAR, event_type VARCHAR, payload VARCHAR, moment BIGINT)"
        )
        loaded = Loaded()
        for batch in self._batches(span, loaded):
            columns = list(zip(*batch, strict=True))
            arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
            spool.register("batch", pa.table(arrays, schema=_SCHEMA))
            spool.execute("INSERT INTO rows SELECT * FROM batch")
            spool.unregister("batch")
        return loaded

    def records(self, spool: duckdb.DuckDBPyConnection, day: date | None) -> Iterator[SagaEvent | Refused]:
        """What the rows of a day tell; None: those without a time."""
        if day is None:
            where, parameters = "moment IS NULL", []
        else:
            # All of a saga's rows: those before decide which run it is, and what number an event has in it.
            where = "saga_id IS NULL AND moment >= $1 AND moment < $2 OR saga_id IN (SELECT saga_id FROM rows WHERE moment >= $1 AND moment < $2)"
            parameters = [begin_of(day), begin_of(day + DAY)]
        answer = spool.cursor().execute(
            f"SELECT row_id, saga_id, event_type, payload, moment FROM rows WHERE {where} ORDER BY saga_id, moment, row_id",  # noqa: S608 - ours
            parameters,
        )
        for _, rows in groupby(_rows(answer), _saga):
            for one in events_of_saga(rows):
                if _day(one) == day:
                    yield one

    @abstractmethod
    def _batches(self, span: Span, loaded: Loaded) -> Iterator[list[tuple[Any, ...]]]:
        """The rows as they are read; what lies outside the span is counted in `loaded`."""


class PostgresOutbox(Outbox):
    """In PostgreSQL, by asyncpg (the extra `sagascope[postgres]`)."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def __str__(self) -> str:
        """Without user and password."""
        try:
            parts = urlsplit(self._dsn)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return "PostgreSQL"
        return f"PostgreSQL at {parts.hostname or 'its usual place'}{port}{parts.path}"

    def _batches(self, span: Span, loaded: Loaded) -> Iterator[list[tuple[Any, ...]]]:
        """From an event loop into a plain iterator: it runs while a batch is asked for."""
        with asyncio.Runner() as runner:
            batches = self._read(span, loaded)
            try:
                while batch := runner.run(_next_of(batches)):
                    yield batch
            finally:
                runner.run(batches.aclose())

    async def _read(self, span: Span, loaded: Loaded) -> AsyncGenerator[list[tuple[Any, ...]], None]:
        try:
            asyncpg = postgresql.driver()
        except ModuleNotFoundError as error:
            raise SourceError(str(error)) from None
        try:
            connection = await asyncpg.connect(self._dsn, timeout=CONNECT_SECONDS)
        except ValueError:  # of the DSN; its text may hold a part of the password
            msg = f"{self}: the URL can't be read; allowed: postgresql://user:password@host:port/database, percent-encoded"
            raise SourceError(msg) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            msg = f"{self} lets nobody in ({reason}): look at host, port, user, password and database of the URL"
            raise SourceError(msg) from None
        try:
            # One snapshot: a row that is being moved into the archive is seen in one of the two.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                tables = await self._tables(connection)
                begin, end = (None if one is None else EPOCH + one * MICROSECOND for one in span.microseconds)
                every = " UNION ALL ".join(f"SELECT created_at FROM {table}" for table in tables)  # noqa: S608 - ours
                loaded.before, loaded.after = await connection.fetchrow(
                    f"SELECT count(*) FILTER (WHERE created_at < $1), count(*) FILTER (WHERE created_at >= $2) FROM ({every}) AS a WHERE {_IS_MOMENT}",  # noqa: S608 - ours
                    begin,
                    end,
                )
                cursor = await connection.cursor(_asked(tables), begin, end)
                while batch := await cursor.fetch(BATCH_ROWS):
                    yield [tuple(row) for row in batch]
        except asyncpg.UndefinedColumnError as error:
            msg = f"{self}: a table has not the columns of sagaz 1.5 ({error.args[0]}): is it sagaz's?"
            raise SourceError(msg) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            msg = f"{self} could not be read ({type(error).__name__}: {error.args[0] if error.args else ''}): do it again; nothing is imported twice"
            raise SourceError(msg) from None
        finally:
            connection.terminate()  # it has only read, and a dead wire would let a goodbye wait

    async def _tables(self, connection: Any) -> list[str]:
        wanted = ("saga_outbox", "saga_outbox_archive")
        there = [table for table in wanted if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table)]
        if not there:
            msg = f"{self} has no table saga_outbox in the schemas of its search_path: name the database (and options=-csearch_path=…) of sagaz"
            raise SourceError(msg)
        return there


class SQLiteOutbox(Outbox):
    """In a file of SQLite; it is only read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        """The file."""
        return str(self._path)

    def _batches(self, span: Span, loaded: Loaded) -> Iterator[list[tuple[Any, ...]]]:
        if not self._path.is_file():
            msg = f"{self}: there is no such file"
            raise SourceError(msg)
        begin, end = span.microseconds
        try:
            with closing(
                sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
            ) as connection:
                connection.text_factory = lambda text: text.decode("utf-8", "replace")
                connection.create_function("at", 1, microseconds_of, deterministic=True)
                connection.execute("BEGIN")  # one snapshot
                loaded.before, loaded.after = connection.execute(
                    "SELECT count(*) FILTER (WHERE at(created_at) < ?), count(*) FILTER (WHERE at(created_at) >= ?) FROM outbox_events",
                    (begin, end),
                ).fetchone()
                cursor = connection.execute(
                    """
                    SELECT CAST(event_id AS TEXT), CAST(saga_id AS TEXT), CAST(event_type AS TEXT), CAST(payload AS TEXT),
                        at(created_at)
                    FROM outbox_events
                    WHERE at(created_at) IS NULL OR saga_id IN (
                        SELECT saga_id FROM outbox_events
                        WHERE at(created_at) >= coalesce(?1, at(created_at)) AND at(created_at) < coalesce(?2, at(created_at) + 1)
                    )
                    """,
                    (begin, end),
                )
                while batch := cursor.fetchmany(BATCH_ROWS):
                    yield batch
        except sqlite3.DatabaseError as error:
            msg = f"{self} is no outbox of sagaz 1.5 that can be read ({error}): give the file that its SQLiteOutboxStorage writes"
            raise SourceError(msg) from None


async def _next_of(batches: AsyncGenerator[list[tuple[Any, ...]], None]) -> list[tuple[Any, ...]]:
    return await anext(batches, [])


def _asked(tables: list[str]) -> str:
    """SQL for the rows of each saga that has one in [$1, $2), and for those without a time."""
    span = "($1::timestamptz IS NULL OR created_at >= $1) AND ($2::timestamptz IS NULL OR created_at < $2)"
    sagas = " UNION ".join(f"SELECT saga_id FROM {table} WHERE {span}" for table in tables)  # noqa: S608 - ours
    columns = f"SELECT event_id::text, saga_id, event_type, payload::text, {MOMENT} FROM"
    parts = [
        # Two conditions in one, joined by OR, would be tried for each pair of rows: PostgreSQL hashes only the first alone.
        f"{columns} {table} WHERE {where}"
        for table in tables
        for where in (f"{_IS_MOMENT} AND saga_id IN (SELECT saga_id FROM asked)", f"NOT {_IS_MOMENT}")  # noqa: S608 - ours
    ]
    return f"WITH asked AS ({sagas}) {' UNION ALL '.join(parts)}"


def microseconds_of(created_at: object) -> int | None:
    """Since the epoch; of a text without a zone, UTC. None: it is no moment since then."""
    try:
        moment = datetime.fromisoformat(str(created_at))
    except ValueError:
        return None
    microseconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
    return microseconds if microseconds >= 0 else None


def _rows(answer: duckdb.DuckDBPyConnection) -> Iterable[OutboxRow]:
    while batch := answer.fetchmany(BATCH_ROWS):
        yield from (OutboxRow(*row) for row in batch)


def _saga(row: OutboxRow) -> str:
    """What a row is judged together with: the others of its saga. Those of no known one, of which there may be many, alone."""
    return row.row_id if row.saga_id in {None, UNKNOWN_SAGA} else f"saga {row.saga_id}"


def _day(one: SagaEvent | Refused) -> date | None:
    if isinstance(one, Refused):
        return one.at and one.at.date()
    return (EPOCH + one.timestamp * 1000 * MICROSECOND).date()
