"""How long an import takes, and how much memory: `warehouse.imports`.

Makes sources of one day in a temporary folder: an outbox of sagaz in SQLite, and the same sagas as JSON lines; with `--postgresql
DSN` also that outbox in a database (table saga_outbox is dropped and made). Then imports each of them into a lake of its own, in a
process of its own, so that its resident peak is that of the import alone, and again, when all is there. Prints rows, seconds, MiB, and
the ratio to the baseline: the same rows fetched from SQLite, their payload parsed, and thrown away.

Beyond 1,024 MiB: exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from sagascope.events import SagaEvent, encode
from warehouse.imports.days import open_import
from warehouse.imports.files import EventFiles
from warehouse.imports.outbox import Outbox, SQLiteOutbox, outbox_at
from warehouse.imports.source import Source, Span
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = "2026-11-20"
ROWS_OF_SAGA = 4
LIMIT_MEBIBYTES = 1_024
BASELINE, SQLITE, FILES, POSTGRESQL = "baseline", "SQLite", "JSON lines", "PostgreSQL"


def rows(count: int) -> Iterator[tuple[str, str, str, str, str]]:
    """So many rows of an outbox, four a saga, spread over the day."""
    for number in range(count // ROWS_OF_SAGA):
        saga_id = f"saga-{number}"
        second, millisecond = divmod(number * 86_000_000 // (count // ROWS_OF_SAGA), 1000)
        clock = f"{DAY}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{millisecond:03}"
        for place in range(ROWS_OF_SAGA):
            event_id = f"00000000-0000-4000-8000-{number * ROWS_OF_SAGA + place:012x}"
            payload: dict[str, object]
            if place == ROWS_OF_SAGA - 1:
                kind, payload = "order.completed", {"saga_id": saga_id, "status": "completed"}
            else:
                step = ("reserve", "charge", "ship")[place]
                kind, payload = f"order.{step}.success", {"step": step, "result": {"id": event_id, "amount": number}}
            yield event_id, saga_id, kind, json.dumps(payload), f"{clock}{place:03}+00:00"


def make_sqlite(path: Path, count: int) -> None:
    """An outbox in SQLite."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE outbox_events (event_id TEXT PRIMARY KEY, saga_id TEXT, event_type TEXT, payload TEXT, created_at TEXT)"
        )
        connection.execute("CREATE INDEX by_saga ON outbox_events (saga_id)")
        connection.executemany("INSERT INTO outbox_events VALUES (?, ?, ?, ?, ?)", rows(count))
        connection.commit()


async def make_postgresql(dsn: str, count: int) -> None:
    """An outbox in PostgreSQL, with the columns of sagaz that are read."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "DROP TABLE IF EXISTS saga_outbox; CREATE TABLE saga_outbox (event_id uuid PRIMARY KEY, saga_id varchar(255), "
        "event_type varchar(255), payload jsonb, created_at timestamptz); CREATE INDEX ON saga_outbox (saga_id)"
    )
    records = ((i, s, t, p, datetime.fromisoformat(at)) for i, s, t, p, at in rows(count))
    await connection.copy_records_to_table("saga_outbox", records=records)
    await connection.close()


def make_lines(outbox: Path, path: Path) -> None:
    """The same sagas as events in a file."""
    import duckdb  # noqa: PLC0415

    with duckdb.connect() as spool, path.open("wb") as file:
        source = SQLiteOutbox(outbox)
        source.load(spool, Span())
        for one in source.records(spool, datetime.fromisoformat(DAY).date()):
            if isinstance(one, SagaEvent):
                file.write(encode(one) + b"\n")


def source_of(name: str, folder: Path, dsn: str) -> Source:
    """What a turn reads."""
    if name == FILES:
        return EventFiles([str(folder / "events.jsonl")])
    outbox: Outbox = outbox_at(dsn) if name == POSTGRESQL else SQLiteOutbox(folder / "outbox.db")
    return outbox


def turn(name: str, folder: Path, dsn: str) -> dict[str, float]:
    """One turn, in this process."""
    began, cpu = time.perf_counter(), time.process_time()
    imported = there = 0
    if name == BASELINE:
        with closing(sqlite3.connect(folder / "outbox.db")) as connection:
            for row in connection.execute("SELECT * FROM outbox_events"):
                msgspec.json.decode(row[3])
                imported += 1
    else:
        settings = Settings(home=str(folder / f"home-{name.replace(' ', '-')}"))
        with open_import(settings, source_of(name, folder, dsn), Span(), now=datetime.now(UTC)) as opened:
            for told in map(opened.store, opened.days()):
                imported, there = imported + told.imported, there + told.already_there
    return {
        "imported": imported,
        "there": there,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def started(name: str, folder: Path, dsn: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--turn", name, "--folder", str(folder), "--postgresql", dsn]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/imports.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--postgresql", metavar="DSN", default="", help="an empty database")
    parser.add_argument("--turn", metavar="NAME", help="one turn, of sources that are there: what this script starts")
    parser.add_argument("--folder", type=Path, help="of those sources")
    given = parser.parse_args()
    if given.turn:
        print(json.dumps(turn(given.turn, given.folder, given.postgresql)))
        return
    with tempfile.TemporaryDirectory(prefix="imports-") as made:
        folder = Path(made)
        make_sqlite(folder / "outbox.db", given.rows)
        make_lines(folder / "outbox.db", folder / "events.jsonl")
        if given.postgresql:
            asyncio.run(make_postgresql(given.postgresql, given.rows))
        bare = started(BASELINE, folder, "")
        print(f"baseline: {bare['imported']:,} rows in {bare['seconds']:.1f} s")
        peak = 0.0
        for name in (SQLITE, FILES, *([POSTGRESQL] if given.postgresql else [])):
            for again in ("", ", again"):
                took = started(name, folder, given.postgresql)
                peak = max(peak, took["mebibytes"])
                print(
                    f"{name}{again}: {took['imported']:,} imported, {took['there']:,} there, {took['seconds']:.1f} s, "
                    f"{took['cpu']:.1f} CPU s, {took['mebibytes']:,.0f} MiB, ratio {took['seconds'] / bare['seconds']:.1f}",
                    flush=True,
                )
    if peak > LIMIT_MEBIBYTES:
        sys.exit(1)


if __name__ == "__main__":
    main()
