"""Real sagas of sagaz, their real outbox in SQLite and in PostgreSQL, and what an import makes of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sagaz.core.storage.backends.postgresql import PostgreSQLOutboxStorage
from sagaz.core.storage.backends.sqlite import SQLiteOutboxStorage

from tests.warehouse.imports.outboxes import PRIVATE, UNCLASSIFIED, Happened, add_rows, move, run_sagas, saga_rows
from warehouse import history, quality
from warehouse.imports.days import open_import
from warehouse.imports.outbox import outbox_at
from warehouse.imports.source import SourceError, Span
from warehouse.tables import EVENTS, REJECTED_EVENTS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.postgresql import PostgresServer
    from warehouse.imports.days import DayImport
    from warehouse.settings import Settings

TODAY = datetime.now(UTC).date


def load(lake: Settings, where: str, span: Span = Span()) -> list[DayImport]:  # noqa: B008 - immutable
    """Import all days of the span."""
    with open_import(lake, outbox_at(where), span, now=datetime.now(UTC)) as opened:
        return [opened.store(day) for day in opened.days()]


def stored(lake: Settings) -> Happened:
    """What `events` tells of each saga, in order."""
    with history.open(lake) as tables:
        rows = tables.sql(
            'SELECT saga_id, event_type, step_name FROM events ORDER BY min("timestamp") OVER (PARTITION BY run_id), run_id, "sequence"'
        ).fetchall()
    happened: Happened = {}
    for saga_id, event_type, step in rows:
        happened.setdefault(saga_id, []).append((event_type, step))
    return happened


def count(told: list[DayImport], name: str) -> int:
    """Of all days."""
    return sum(getattr(one, name) for one in told)


def judge(lake: Settings, happened: Happened, told: list[DayImport]) -> None:
    """The import has told what happened, no more and no less, and what it stored breaks no rule."""
    assert stored(lake) == happened
    assert count(told, "imported") == sum(map(len, happened.values()))
    assert (count(told, "unclassified"), count(told, "invalid")) == (UNCLASSIFIED, 0)
    with history.open(lake) as tables:
        text = str(tables.sql("SELECT * FROM events").fetchall()) + str(
            tables.sql("SELECT * FROM rejected_events").fetchall()
        )
        outcomes = dict(tables.sql("SELECT saga_id, outcome FROM saga_runs WHERE saga_name = 'shop.pay'").fetchall())
        [(unmarked,)] = tables.sql(
            "SELECT count(*) FROM events WHERE duration_ms IS NOT NULL AND NOT duration_derived"
        ).fetchall()
    assert PRIVATE not in text
    assert unmarked == 0
    assert outcomes == {"o-done": "completed", "o-undone": "rolled_back", "o-stuck": "rolled_back_partial"}
    for table in (EVENTS, REJECTED_EVENTS):
        for day in {one.day for one in told if one.day}:
            assert [one for one in quality.check(lake, table, day) if not one.passed] == []


def test_what_happened_from_sqlite(lake: Settings, tmp_path: Path) -> None:
    """Event for event, saga for saga, and a second import changes nothing."""
    file = tmp_path / "outbox.db"

    async def main() -> Happened:
        async with SQLiteOutboxStorage(str(file)) as storage:
            return await run_sagas(storage)

    happened = asyncio.run(main())
    told = load(lake, str(file))
    judge(lake, happened, told)
    again = load(lake, f"sqlite:///{file}")
    assert count(again, "imported") == 0
    assert count(again, "already_there") == count(told, "imported")
    assert count(again, "unclassified") == UNCLASSIFIED
    judge(lake, happened, told)


def test_what_happened_from_postgresql(lake: Settings, postgresql: PostgresServer) -> None:
    """The same from the outbox and its archive; rows that were archived meanwhile are not imported again."""
    dsn = postgresql.dsn(postgresql.create_database())

    async def main() -> Happened:
        storage = PostgreSQLOutboxStorage(dsn, pool_min_size=1, pool_max_size=2)
        await storage.initialize()
        happened = await run_sagas(storage)
        await ask(
            dsn,
            "UPDATE saga_outbox SET status = 'sent', sent_at = now() - INTERVAL '8 days' WHERE saga_id = 'o-undone'",
        )
        assert await storage.archive_sent_events(7) > 0
        await storage.close()
        return happened

    happened = asyncio.run(main())
    told = load(lake, dsn)
    judge(lake, happened, told)
    asyncio.run(ask(dsn, "INSERT INTO saga_outbox_archive SELECT * FROM saga_outbox"))
    asyncio.run(ask(dsn, "DELETE FROM saga_outbox WHERE saga_id <> 'o-done'"))  # whose rows are in both tables now
    again = load(lake, dsn)
    assert count(again, "imported") == 0
    judge(lake, happened, told)


async def ask(dsn: str, statement: str) -> None:
    """Run a statement past sagaz."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close()


DAYS = [date(2026, 11, day) for day in (19, 20, 21)]


def over_midnight(tmp_path: Path) -> str:
    """An outbox in which a saga runs twice within three days, both times over a midnight."""
    file = tmp_path / "outbox.db"
    rows = [*saga_rows(1, "2026-11-19"), *[("again-" + i, s, t, p, a) for i, s, t, p, a in saga_rows(1, "2026-11-19")]]
    add_rows(file, rows)
    times = ["19T23:59:58", "19T23:59:59.9996", "20T00:00:00", "20T23:59:59", "21T00:00:00", "21T05:00:00"]
    move(file, "s1-2026-11-19", [f"2026-11-{moment}+00:00" for moment in times])
    return str(file)


def runs(lake: Settings) -> list[tuple[Any, ...]]:
    """What tells each event's place."""
    with history.open(lake) as tables:
        return tables.sql(
            'SELECT run_id, "sequence", event_id, "timestamp", duration_ms FROM events ORDER BY ALL'
        ).fetchall()


def test_a_run_over_midnight_is_one_run(lake: Settings, tmp_path: Path) -> None:
    """In whatever order its days are imported, and each by itself."""
    where = over_midnight(tmp_path)
    for day in (DAYS[1], DAYS[2], DAYS[0]):
        [told] = load(lake, where, Span(day, day.replace(day=day.day + 1)))
        assert (told.day, told.imported) == (day, 2)
    by_day = runs(lake)
    whole = lake.__class__(home=f"{lake.home}-whole", topic="t")
    assert [one.imported for one in load(whole, where)] == [2, 2, 2]
    assert runs(whole) == by_day
    assert [number for _, number, *_ in by_day] == [0, 1, 2, 0, 1, 2]
    assert len({run for run, *_ in by_day}) == 2


def test_rows_that_come_later_go_on_in_their_run(lake: Settings, tmp_path: Path) -> None:
    """A saga that had not ended when it was imported is imported to its end the next time."""
    file = tmp_path / "outbox.db"
    first, *rest = saga_rows(1, "2026-11-20")
    add_rows(file, [first])
    assert count(load(lake, str(file)), "imported") == 1
    add_rows(file, rest)
    assert count(load(lake, str(file)), "imported") == 2
    assert [number for _, number, *_ in runs(lake)] == [0, 1, 2]
    assert len({run for run, *_ in runs(lake)}) == 1


def test_times_that_are_none(lake: Settings, tmp_path: Path) -> None:
    """A row without a time belongs to no day: it is kept, once, whatever days are asked for. Offsets and naive ones are times."""
    file = tmp_path / "outbox.db"
    rows = saga_rows(1, "2026-11-20")
    times = ["2026-11-21T01:30:00+02:00", "2026-11-20 23:31:00", "soon"]
    add_rows(file, [(i, s, t, p, moment) for (i, s, t, p, _), moment in zip(rows, times, strict=True)])
    for days in (Span(date(2026, 11, 19), date(2026, 11, 20)), Span()):
        told = load(lake, str(file), days)
        assert told[0].day is None
        assert told[0].invalid == 1
        assert "created_at" in told[0].reasons[0]
    assert [(one.day, one.imported) for one in told[1:]] == [(date(2026, 11, 20), 2)]
    with history.open(lake) as tables:
        assert tables.sql("SELECT source_topic, source_partition FROM rejected_events").fetchall() == [
            ("import:sagaz_outbox", 0)
        ]


def test_what_is_outside_the_span_is_said(lake: Settings, tmp_path: Path) -> None:
    """Rows before and after it are counted, also those of the future."""
    file = tmp_path / "outbox.db"
    add_rows(file, [row for day in ("2026-11-18", "2026-11-20", "2199-01-01") for row in saga_rows(1, day)])
    with open_import(lake, outbox_at(str(file)), Span(date(2026, 11, 19)), now=datetime.now(UTC)) as opened:
        assert (opened.loaded.before, opened.loaded.after) == (3, 3)
        assert opened.days() == [date(2026, 11, 20)]


async def infinite(dsn: str) -> None:
    """Rows of times that only PostgreSQL knows, and one that is a time."""
    storage = PostgreSQLOutboxStorage(dsn, pool_min_size=1, pool_max_size=1)
    await storage.initialize()
    await storage.close()
    for number, moment in enumerate(("infinity", "-infinity", "0001-01-01 BC", "2026-11-20 12:00:00.123456+00")):
        await ask(
            dsn,
            f"INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, created_at) VALUES "
            f"(gen_random_uuid(), 's{number}', 's', 'order.pay.success', '{{\"step\": \"pay\", \"result\": {{}}}}', '{moment}')",
        )


def test_postgresql_times_that_are_none(lake: Settings, postgresql: PostgresServer) -> None:
    """PostgreSQL's infinity and its years before ours are kept as rows without a time; microseconds are read exactly."""
    dsn = postgresql.dsn(postgresql.create_database())
    asyncio.run(infinite(dsn))
    undated, dated = load(lake, dsn)
    assert (undated.day, undated.invalid, dated.day, dated.imported) == (None, 3, date(2026, 11, 20), 1)
    assert runs(lake)[0][3] == datetime(2026, 11, 20, 12, 0, 0, 123_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("mysql://root@db/orders", "'mysql' is no scheme of an outbox"),
        ("postgresql://user:hunter2@127.0.0.1:1/orders", "PostgreSQL at 127.0.0.1:1/orders lets nobody in"),
        ("postgresql://user:hunter2@127.0.0.1:nan/orders", "the URL can't be read"),
        ("/no/such/file.db", "/no/such/file.db: there is no such file"),
    ],
)
def test_a_source_that_is_none(lake: Settings, where: str, reason: str) -> None:
    """Named, with the cure, and without the password."""
    with pytest.raises(SourceError) as raised:
        load(lake, where)
    assert reason in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_file_that_is_no_outbox(lake: Settings, tmp_path: Path) -> None:
    """No database, another one, and one with other columns."""
    text = tmp_path / "text.db"
    text.write_text("not a database, whatever its name says")
    with pytest.raises(SourceError, match="file is not a database"):
        load(lake, str(text))
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(SourceError, match="no such table: outbox_events"):
        load(lake, str(empty))


def test_postgresql_without_an_outbox(lake: Settings, postgresql: PostgresServer) -> None:
    """A database that is not there, one without the table, one whose table is another, and a wrong role."""
    dsn = postgresql.dsn(postgresql.create_database())
    with pytest.raises(SourceError, match="has no table saga_outbox"):
        load(lake, dsn)
    asyncio.run(ask(dsn, "CREATE TABLE saga_outbox (created_at timestamptz, id int)"))
    with pytest.raises(SourceError, match="has not the columns of sagaz"):
        load(lake, dsn)
    with pytest.raises(SourceError, match='database "nowhere" does not exist'):
        load(lake, postgresql.dsn("nowhere"))
    with pytest.raises(SourceError, match='role "nobody" does not exist'):
        load(lake, dsn.replace("postgres:let-me-in", "nobody:let-me-in"))
