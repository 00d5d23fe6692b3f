"""What a follower has told of somebody else's outbox: a small file of ours, as nothing is ever written to theirs."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.relay.ends import RelayError
from sagascope.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS told (
    row_id     TEXT PRIMARY KEY, -- the row's own event_id
    status     TEXT NOT NULL CHECK (status IN ('sent', 'refused', 'parked', 'retry', 'discarded')),
    saga_id    TEXT NOT NULL,
    event_id   TEXT,             -- of the event that it became
    event_type TEXT,
    run_id     TEXT,
    sequence   INTEGER,
    reason     TEXT,
    at         REAL NOT NULL
) WITHOUT ROWID, STRICT;
CREATE INDEX IF NOT EXISTS told_saga ON told (saga_id);
CREATE INDEX IF NOT EXISTS told_open ON told (saga_id) WHERE status IN ('parked', 'retry', 'discarded');
CREATE TABLE IF NOT EXISTS place (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID, STRICT;
"""
_AT_A_TIME = 5_000


class Row(NamedTuple):
    """What became of one row."""

    row_id: str
    status: str
    saga_id: str
    event_id: str | None = None
    event_type: str | None = None
    run_id: str | None = None
    sequence: int | None = None
    reason: str | None = None


class Told:
    """The rows that were told or given up, and how far the outbox was read. Whole after a kill at any moment."""

    def __init__(self, path: Path) -> None:
        """Open the file; made where it is absent.

        Raises:
            RelayError: it can't be.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            msg = f"{path}, where the relay keeps how far it has read, can't be used ({error}): look at SAGASCOPE_HOME and its disk"
            raise RelayError(msg) from None
        self._path = path

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def place(self) -> str | None:
        """How far the outbox was read: all before it is in here."""
        for (value,) in self._rows("SELECT value FROM place WHERE name = 'read'"):
            return str(value)
        return None

    def set_place(self, place: str) -> None:
        """All before it is in here now."""
        self._rows("INSERT OR REPLACE INTO place VALUES ('read', ?)", (place,))

    def known(self, row_ids: Iterable[str]) -> set[str]:
        """Those of them that need not be told."""
        ids = list(row_ids)
        found: set[str] = set()
        for start in range(0, len(ids), _AT_A_TIME):
            some = ids[start : start + _AT_A_TIME]
            marks = ", ".join("?" * len(some))
            statement = f"SELECT row_id FROM told WHERE status <> 'retry' AND row_id IN ({marks})"  # noqa: S608 - no input
            found.update(row_id for (row_id,) in self._rows(statement, some))
        return found

    def of_saga(self, saga_id: str) -> dict[str, Row]:
        """What became of a saga's rows, by their ids."""
        columns = ", ".join(Row._fields)
        statement = f"SELECT {columns} FROM told WHERE saga_id = ?"  # noqa: S608 - no input
        return {row[0]: Row(*row) for row in self._rows(statement, (saga_id,))}

    def put(self, rows: Collection[Row]) -> None:
        """This became of them; all or none is kept."""
        if not rows:
            return
        now = time.time()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [(*row, now) for row in rows]
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise self._failed(error) from None

    def open_sagas(self) -> tuple[set[str], set[str]]:
        """Sagas with a parked row, and those of which somebody has dealt with one."""
        parked: set[str] = set()
        dealt: set[str] = set()
        statement = "SELECT saga_id, status FROM told WHERE status IN ('parked', 'retry', 'discarded')"
        for saga_id, status in self._rows(statement):
            (parked if status == "parked" else dealt).add(saga_id)
        return parked, dealt

    def parked(self, saga_id: str | None, limit: int) -> list[tuple[str, str, str, float, str]]:
        """Event id, saga id, type, when and why of what was given up, the eldest first."""
        return self._rows(
            """SELECT event_id, saga_id, coalesce(event_type, ''), at, coalesce(reason, '') FROM told
               WHERE status = 'parked' AND (?1 IS NULL OR saga_id = ?1) ORDER BY at LIMIT ?2""",
            (saga_id, limit),
        )

    def parked_count(self) -> int:
        """How many were given up."""
        return int(self._rows("SELECT count(*) FROM told WHERE status = 'parked'")[0][0])

    def deal(self, event_ids: Collection[str], status: str) -> int:
        """Parked ones are to be tried again (`retry`) or never (`discarded`); returns how many were parked."""
        done = 0
        for event_id in event_ids:
            statement = "UPDATE told SET status = ? WHERE event_id = ? AND status = 'parked' RETURNING 1"
            done += len(self._rows(statement, (status, event_id)))
        return done

    def forget(self, row_ids: Collection[str]) -> None:
        """They are gone from the outbox for good."""
        for row_id in row_ids:
            self._rows("DELETE FROM told WHERE row_id = ?", (row_id,))

    def eldest(self, after: str, before: float, limit: int) -> list[str]:
        """Some rows that were sent before a moment, in the order of their ids, from one on."""
        statement = "SELECT row_id FROM told WHERE row_id > ? AND status IN ('sent', 'refused') AND at < ? ORDER BY row_id LIMIT ?"
        return [row_id for (row_id,) in self._rows(statement, (after, before, limit))]

    def _rows(self, statement: str, values: Collection[object] = ()) -> list[Any]:
        try:
            with closing(self._connection.execute(statement, tuple(values))) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: sqlite3.Error) -> TransientError:
        return TransientError(f"{self._path}: {error}")
