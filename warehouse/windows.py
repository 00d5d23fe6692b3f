"""The stored statistics against those that `warehouse.statistics` computes from `events`, window by window."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pyiceberg.types import DoubleType

from warehouse import history, statistics
from warehouse.catalog import open_catalog
from warehouse.retention import kept_since
from warehouse.tables import EVENTS, SAGA_STATS, STATISTICS, STEP_DURATIONS, STEP_STATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from warehouse.settings import Settings
    from warehouse.tables import Column, Table

SHOWN = 20
"""How many windows a table are named; the counts are whole."""
TOLERANCE = 1e-9
"""By how much, in proportion, a floating-point number may differ: sums depend on their order."""
CHUNK_EVENTS = 1_000_000
"""So many events are compared at a time, or one minute's where it has more."""
EVENTS_OF = {
    STEP_STATS.name: "completed + failed",
    SAGA_STATS.name: "started + completed + rolled_back + failed",
    STEP_DURATIONS.name: '"count"',
}
"""How many events a row counts, in SQL."""


class WindowDifference(NamedTuple):
    """One row of a statistic that is not what `events` say."""

    window_start: datetime
    names: str
    """The rest of the row's key."""
    what: str
    events: int
    """How many events it should count."""
    counted: int
    """How many it counts."""


class HourDifferences(NamedTuple):
    """What differs in one hour of a statistic."""

    late: int
    """Events that its windows do not count."""
    wrong: int
    """Windows that count all their events, or more, and differ all the same: those are no late events' doing."""


class TableDifferences(NamedTuple):
    """What was found of one table."""

    table: str
    rows: int
    """Rows that there should be, in the windows compared."""
    differing: int
    shown: list[WindowDifference]
    """The first 20."""
    late: int
    """Events that are in `events` and that its windows do not count: they came late, or a row is lost."""
    hours: dict[datetime, HourDifferences]
    """The hours of the windows that differ."""


NONE = HourDifferences(0, 0)


class Comparison(NamedTuple):
    """What `compare` found."""

    closed: datetime | None
    """Windows that end by then were compared: the newest end of all stored ones. None: no window is stored."""
    tables: list[TableDifferences]

    @property
    def is_whole(self) -> bool:
        """No window differs."""
        return not any(table.differing for table in self.tables)

    @property
    def hours(self) -> list[datetime]:
        """The hours that differ, in order."""
        return sorted({hour for table in self.tables for hour in table.hours})


def compare(
    settings: Settings,
    since: datetime | None = None,
    until: datetime | None = None,
    closed: datetime | None = None,
    *,
    of: Sequence[Table] = STATISTICS,
) -> Comparison:
    """Compare every closed window that starts in [since, until), aware moments, and that is kept (see `warehouse.retention`).

    Args:
        settings: Where the tables are.
        since: Inclusive; None is from the first event on.
        until: Exclusive; None is up to the windows closed.
        closed: Compare windows that end by then, not those that are closed now. For a second look.
        of: The statistics to compare.
    """
    with history.open(settings) as tables:
        newest = _closed(tables, settings)
    closed = closed or newest
    with closing(open_catalog(settings)) as catalog:
        # What was deleted by age, here or there, is no difference.
        since = max(filter(None, (since, kept_since(catalog, (EVENTS, *of)))), default=None)
    if since and until and since >= until:
        return Comparison(closed, [TableDifferences(table.name, 0, 0, [], 0, {}) for table in of])
    widest = _widest(settings)
    # Only files of the span: a damaged one elsewhere is no matter of it, and a year has many.
    with history.open(settings, since and since - widest, until and until + widest) as tables:
        chunks = list(_chunks(tables, settings, since, until)) if closed else []
    found = {table: TableDifferences(table.name, 0, 0, [], 0, {}) for table in of}
    for first, last in chunks:
        with history.open(settings, first, last + _widest(settings)) as tables:
            for table in of:
                more = _compare(tables, settings, table, {"first": first, "last": last, "closed": closed})
                found[table] = _joined(found[table], more)
    return Comparison(closed, list(found.values()))


def _stored(table: Table) -> str:
    return f"stored_{table.name}"


def _widest(settings: Settings) -> timedelta:
    return timedelta(seconds=max(statistics.window_seconds(settings, table) for table in STATISTICS))


def _closed(tables: history.History, settings: Settings) -> datetime | None:
    """By `window_start`, which is of the key: an altered `window_end` must not decide what is looked at."""
    ends = " UNION ALL ".join(
        f"SELECT max(window_start) + INTERVAL '{statistics.window_seconds(settings, table)} seconds' AS ends "  # noqa: S608 - ours
        f"FROM {_stored(table)}"
        for table in STATISTICS
    )
    [(newest,)] = tables.sql(f"SELECT max(ends) FROM ({ends})").fetchall()  # noqa: S608 - ours
    return newest if isinstance(newest, datetime) else None


def _chunks(
    tables: history.History, settings: Settings, since: datetime | None, until: datetime | None
) -> Iterator[tuple[datetime, datetime]]:
    """Spans [first, last), one after the other, that hold the starts of all windows and about as many events each."""
    minutes = tables.sql(
        """SELECT date_trunc('minute', "timestamp"), count(*) FROM events GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    bounds = " UNION ALL ".join(
        f"SELECT min(window_start) AS oldest, max(window_start) AS newest FROM {_stored(table)}"  # noqa: S608 - ours
        for table in STATISTICS
    )
    [(oldest, newest)] = tables.sql(f"SELECT min(oldest), max(newest) FROM ({bounds})").fetchall()  # noqa: S608 - ours
    starts = [*([oldest] if oldest else []), *([minutes[0][0] - _widest(settings)] if minutes else [])]
    ends = [*([newest] if newest else []), *([minutes[-1][0]] if minutes else [])]
    if not starts:
        return
    first = max(min(starts), since) if since else min(starts)
    end = max(ends) + timedelta(minutes=1)
    end = min(end, until) if until else end
    events = 0
    for minute, number in minutes:
        if events and events + number > CHUNK_EVENTS and first < minute < end:
            yield first, minute
            first, events = minute, 0
        events += number if minute >= first else 0
    if first < end:
        yield first, end


def _compare(
    tables: history.History, settings: Settings, table: Table, bounds: dict[str, datetime | None]
) -> TableDifferences:
    keys = ", ".join(f'"{name}"' for name in table.key)
    differing = ", ".join(
        f"CASE WHEN NOT {_same(column)} THEN '{column.name}' END"
        for column in table.columns
        if column.name not in table.key
    )
    closed = f"""
        window_start >= $first AND window_start < $last
        AND window_start + INTERVAL '{statistics.window_seconds(settings, table)} seconds' <= $closed
    """
    rows = tables.sql(
        f"""
        WITH computed AS ({statistics.query(settings, table)}),
        c AS (SELECT *, {EVENTS_OF[table.name]} AS number FROM computed WHERE {closed}),
        s AS (SELECT *, {EVENTS_OF[table.name]} AS number FROM {_stored(table)} WHERE {closed}),
        judged AS (
            SELECT {keys}, any_value(c.number)::BIGINT AS events, coalesce(sum(s.number), 0)::BIGINT AS counted,
                count(s.number) AS times,
                string_agg(DISTINCT concat_ws(', ', {differing}), ', ') AS columns
            FROM c FULL JOIN s USING ({keys})
            GROUP BY {keys}
        ), told AS (
            SELECT *, concat_ws(' ', {", ".join(f'"{name}"' for name in table.key[1:])}) AS names, CASE
                WHEN times = 0 THEN 'no row'
                WHEN events IS NULL THEN 'a row, and no such events'
                WHEN times > 1 THEN times || ' rows'
                WHEN columns <> '' THEN 'differs in ' || columns
            END AS what
            FROM judged
        ), hours AS (
            SELECT date_trunc('hour', window_start) AS hour,
                sum(greatest(coalesce(events, 0) - counted, 0))::BIGINT AS late,
                count(*) FILTER (counted >= coalesce(events, 0)) AS wrong
            FROM told WHERE what IS NOT NULL GROUP BY hour
        )
        SELECT count(events), count(what),
            coalesce(sum(greatest(events - counted, 0)) FILTER (what IS NOT NULL), 0)::BIGINT,
            (SELECT list((hour, late, wrong)) FROM hours),
            list((window_start, names, what, coalesce(events, 0), counted) ORDER BY window_start, names)
                FILTER (what IS NOT NULL)[:{SHOWN}]
        FROM told
        """,  # noqa: S608 - ours
        bounds,
    ).fetchall()
    [(number, differ, late, hours, shown)] = rows
    return TableDifferences(
        table.name,
        number,
        differ,
        [WindowDifference(*row) for row in shown or []],
        late,
        {hour: HourDifferences(*counts) for hour, *counts in hours or []},
    )


def _same(column: Column) -> str:
    """Whether the column of both sides is the same, in SQL."""
    computed, stored = f'c."{column.name}"', f's."{column.name}"'
    same = f"({computed} IS NOT DISTINCT FROM {stored})"
    if not isinstance(column.type, DoubleType):
        return same
    near = f"abs({computed} - {stored}) <= {TOLERANCE} * greatest(abs({computed}), abs({stored}))"
    return f"({same} OR coalesce({near}, FALSE))"


def _joined(one: TableDifferences, other: TableDifferences) -> TableDifferences:
    return TableDifferences(
        one.table,
        one.rows + other.rows,
        one.differing + other.differing,
        [*one.shown, *other.shown][:SHOWN],
        one.late + other.late,
        {
            hour: HourDifferences(*map(sum, zip(one.hours.get(hour, NONE), other.hours.get(hour, NONE), strict=True)))
            for hour in one.hours.keys() | other.hours.keys()
        },
    )
