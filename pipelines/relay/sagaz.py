"""sagaz's own outbox as a source, followed read-only: live analytics for its users without a changed line.

What its rows tell is made of them by `warehouse.imports.sagaz_outbox`, as an import does: the same row becomes the same
event, whichever of the two brings it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.relay.ends import RelayError
from pipelines.relay.follower import Follower, Found
from pipelines.relay.outbox import check_table, connected
from sagascope.errors import TransientError
from sagascope.postgresql import as_delivery_errors
from warehouse.imports.outbox import MOMENT, microseconds_of
from warehouse.imports.sagaz_outbox import OutboxRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_FAR = 1 << 30
"""A place so many transactions back can't be compared any more: the table is read from its beginning."""
T = TypeVar("T")


class PostgresFollower(Follower):
    """Follows `saga_outbox`; a row is found by the transaction that wrote it, so that one that commits late is not missed.

    The place is the oldest transaction that ran at the last look: what was not to be seen then was written by it or by a
    later one. Neither the order of commits nor what a row says of its time matters. Rows that were updated since are
    seen again, and known by their ids.
    """

    def __init__(self, dsn: str, where: str, folder: Path, *, pass_on: bool = False) -> None:
        super().__init__(where, folder, where, pass_on=pass_on)
        self._dsn = dsn
        self._connection: Any = None
        self._snapshot = ""
        self._using = asyncio.Lock()

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
        await super().close()

    async def _connect(self) -> None:
        if self._connection is not None and not self._connection.is_closed():
            return
        self._connection = await connected(self._dsn, self._where)
        await self._connection.execute("SET default_transaction_read_only = on")
        if not await self._connection.fetchval("SELECT to_regclass('saga_outbox') IS NOT NULL"):
            msg = f"{self._where} has no table saga_outbox in the schemas of its search_path: name the database of sagaz in --from"
            raise RelayError(msg)

    async def _since(self, place: str | None) -> tuple[list[Found], str]:
        async with self._using:
            await self._connect()
            with as_delivery_errors():
                async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                    snapshot, xmin, xmax = await self._connection.fetchrow(
                        "SELECT s::text, pg_snapshot_xmin(s)::text, pg_snapshot_xmax(s)::text FROM pg_current_snapshot() AS s"
                    )
                    if snapshot == self._snapshot:  # nobody has committed anything
                        return [], xmin
                    is_far = place is None or not 0 <= int(xmax) - int(place) < _FAR  # also another cluster's
                    where = "true" if is_far or place is None else "age(xmin) <= age($1::text::xid)"
                    values = [] if where == "true" or place is None else [str(int(place) % 2**32)]
                    rows = await self._connection.fetch(
                        f"SELECT event_id::text, saga_id, {MOMENT} FROM saga_outbox WHERE {where} ORDER BY created_at",  # noqa: S608 - ours
                        *values,
                    )
            self._snapshot = snapshot
            return [Found(*row) for row in rows], xmin

    async def _rows_of(self, sagas: Sequence[str]) -> list[OutboxRow]:
        parts = [
            f"SELECT event_id::text, saga_id, event_type, payload::text, {MOMENT} FROM {table} WHERE saga_id = ANY($1)"  # noqa: S608 - ours
            for table in await self._tables()
        ]
        async with self._using:
            with as_delivery_errors():
                rows = await self._connection.fetch(" UNION ALL ".join(parts), list(sagas))
        return [OutboxRow(*row) for row in rows]

    async def _still_there(self, row_ids: Sequence[str]) -> set[str]:
        parts = [
            f"SELECT event_id::text FROM {table} WHERE event_id = ANY($1::uuid[])"  # noqa: S608 - ours
            for table in await self._tables()
        ]
        async with self._using:
            with as_delivery_errors():
                rows = await self._connection.fetch(" UNION ".join(parts), list(row_ids))
        return {row[0] for row in rows}

    async def _tables(self) -> list[str]:
        async with self._using:
            await self._connect()
            with as_delivery_errors():
                archived = await self._connection.fetchval("SELECT to_regclass('saga_outbox_archive') IS NOT NULL")
        return ["saga_outbox", "saga_outbox_archive"] if archived else ["saga_outbox"]


class SQLiteFollower(Follower):
    """Follows `outbox_events`; SQLite has one writer at a time, so rows are to be seen in the order of their rowids.

    Rowids are given again where the last rows were deleted, and anew by VACUUM: where the row at the place is not the
    one that was there, the table is read from its beginning.
    """

    def __init__(self, path: Path, folder: Path, *, pass_on: bool = False) -> None:
        super().__init__(str(path.resolve()), folder, f"SQLite file {path}", pass_on=pass_on)
        self._file = path

    async def _connect(self) -> None:
        await check_table(self._file, "outbox_events", "sagaz's SQLiteOutboxStorage makes it")

    async def _since(self, place: str | None) -> tuple[list[Found], str]:
        rowid, _, row_id = (place or "0:").partition(":")

        def find(connection: sqlite3.Connection) -> tuple[list[Found], str]:
            connection.execute("BEGIN")  # one snapshot
            there = connection.execute("SELECT event_id FROM outbox_events WHERE rowid = ?", (int(rowid),)).fetchone()
            begin = int(rowid) if there and there[0] == row_id else 0
            rows = connection.execute(
                "SELECT CAST(event_id AS TEXT), CAST(saga_id AS TEXT), at(created_at), rowid FROM outbox_events WHERE rowid > ? ORDER BY rowid",
                (begin,),
            ).fetchall()
            last = f"{rows[-1][3]}:{rows[-1][0]}" if rows else (place if begin else "0:")
            return [Found(*row[:3]) for row in rows], last or "0:"

        return await self._asked(find)

    async def _rows_of(self, sagas: Sequence[str]) -> list[OutboxRow]:
        marks = ", ".join("?" * len(sagas))
        statement = f"""
            SELECT CAST(event_id AS TEXT), CAST(saga_id AS TEXT), CAST(event_type AS TEXT), CAST(payload AS TEXT), at(created_at)
            FROM outbox_events WHERE saga_id IN ({marks})"""  # noqa: S608 - no input
        return await self._asked(
            lambda connection: [OutboxRow(*row) for row in connection.execute(statement, list(sagas))]
        )

    async def _still_there(self, row_ids: Sequence[str]) -> set[str]:
        marks = ", ".join("?" * len(row_ids))
        statement = f"SELECT event_id FROM outbox_events WHERE event_id IN ({marks})"  # noqa: S608 - no input
        return await self._asked(lambda connection: {row[0] for row in connection.execute(statement, list(row_ids))})

    async def _asked(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """In a thread, with a connection that can only read."""

        def in_thread() -> T:
            try:
                uri = f"{self._file.resolve().as_uri()}?mode=ro"
                with closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
                    connection.text_factory = lambda text: text.decode("utf-8", "replace")
                    connection.create_function("at", 1, microseconds_of, deterministic=True)
                    return ask(connection)
            except sqlite3.Error as error:
                msg = f"{self._where}: {error}"
                raise TransientError(msg) from None

        return await asyncio.to_thread(in_thread)
