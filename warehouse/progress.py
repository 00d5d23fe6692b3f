"""How far the tables are: which records they hold, and which windows of event time are closed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from warehouse import history
from warehouse.statistics import window_seconds
from warehouse.tables import EVENTS, REJECTED_EVENTS, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyiceberg.catalog import Catalog

    from warehouse.settings import Settings
    from warehouse.tables import Table

EPOCH = datetime.fromtimestamp(0, UTC)


class Progress(NamedTuple):
    """What the tables' newest snapshots hold.

    Flink commits a table in the order of its records, and of its windows, so one bound tells all that is in it.
    """

    events: dict[int, int]
    """The last offset of each partition that has a row in `events`."""
    rejected: dict[int, int]
    """The last offset of each partition that has a row in `rejected_events`."""
    closed: dict[str, datetime]
    """By table, the end of the newest window that it holds: no window up to there is still to come. Absent: none yet."""

    def last(self, partition: int) -> int:
        """The last offset of a partition that has a row in either table; -1: none has."""
        return max(self.events.get(partition, -1), self.rejected.get(partition, -1))

    def deleted(self, bounds: Mapping[int, tuple[int, int]]) -> dict[int, range]:
        """By partition, the offsets behind its last row that the topic, of these bounds, no longer has.

        Nothing where the tables are empty: they begin where the topic does. Records that were duplicates may be among them.
        """
        if not (self.events or self.rejected):
            return {}
        behind = {partition: range(self.last(partition) + 1, begin) for partition, (begin, _) in sorted(bounds.items())}
        return {partition: offsets for partition, offsets in behind.items() if offsets}

    @property
    def watermark(self) -> datetime | None:
        """Up to where windows are closed; None before the first one is. A table without newer rows had none to come."""
        return max(self.closed.values(), default=None)

    def closed_up_to(self, settings: Settings, table: Table) -> datetime | None:
        """The end of the last window of a table that is closed, whether it has rows or not; None before the first one."""
        if self.watermark is None:
            return None
        width = timedelta(seconds=window_seconds(settings, table))
        return self.watermark - (self.watermark - EPOCH) % width


NOTHING = Progress({}, {}, {})


def read_progress(settings: Settings, catalog: Catalog | None = None) -> Progress:
    """The progress of the tables on the settings' topic."""
    with history.open(settings, catalog=catalog) as tables:
        return Progress(
            events=_last_offsets(tables, EVENTS, settings.topic),
            rejected=_last_offsets(tables, REJECTED_EVENTS, settings.topic),
            closed=_closed(tables),
        )


def read_closed(settings: Settings, catalog: Catalog | None = None) -> Progress:
    """Which windows are closed, and no offsets: no file of `events` is opened, so that a damaged one does not matter."""
    with history.open(settings, catalog=catalog) as tables:
        return Progress(events={}, rejected={}, closed=_closed(tables))


def _closed(tables: history.History) -> dict[str, datetime]:
    ends = {
        table.name: tables.sql(f"SELECT max(window_end) FROM stored_{table.name}").fetchall()[0][0]  # noqa: S608 - ours
        for table in STATISTICS
    }
    return {name: end for name, end in ends.items() if end}


def _last_offsets(tables: history.History, table: Table, topic: str) -> dict[int, int]:
    rows = tables.sql(
        f"SELECT source_partition, max(source_offset) FROM {table.name} WHERE source_topic = $topic GROUP BY ALL",  # noqa: S608
        {"topic": topic},
    ).fetchall()
    return dict(rows)


def offsets_since(settings: Settings, moment: datetime, catalog: Catalog | None = None) -> dict[int, int]:
    """The first offset of each partition whose event is not before the moment; partitions without one are absent."""
    with history.open(settings, since=moment, catalog=catalog) as tables:
        rows = tables.sql(
            "SELECT source_partition, min(source_offset) FROM events WHERE source_topic = $topic GROUP BY ALL",
            {"topic": settings.topic},
        ).fetchall()
    return dict(rows)
