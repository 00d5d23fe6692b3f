"""A week of history, straight into the tables: real sagas, executed by sagaz, whose days pass in seconds.

Two days of it are not as they should be, for whoever learns to mend them: on one a service's events came late, after the
statistics of that day were computed; on another the statistics of steps count everything twice.
"""

from __future__ import annotations

import asyncio
import fcntl
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.io.pyarrow import schema_to_pyarrow

from pipelines import simulated_time
from pipelines.workload import run_workload
from sagascope.definitions import recall
from sagascope.events import SAGA_ENDS, EventType, SagaEvent, new_id
from sagascope.listener import EventListener
from warehouse import history, statistics
from warehouse.catalog import open_catalog
from warehouse.definitions import row_of
from warehouse.errors import WarehouseError
from warehouse.event_rows import event_rows
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, STATISTICS, STEP_STATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyiceberg.catalog import Catalog

    from warehouse.settings import Settings
    from warehouse.tables import Table

DAY = timedelta(days=1)
SOURCE = "seed"
"""The `source_topic` of seeded events, which came through no topic."""
LATE_SERVICE, LATE_HOURS = "payment-service", (14, 16)
"""Whose events came late, and those of which hours."""
_BEGINS = {
    EventType.STEP_COMPLETED: EventType.STEP_STARTED,
    EventType.STEP_FAILED: EventType.STEP_STARTED,
    EventType.COMPENSATION_COMPLETED: EventType.COMPENSATION_STARTED,
    EventType.COMPENSATION_FAILED: EventType.COMPENSATION_STARTED,
}


class AlreadyHistoryError(WarehouseError):
    """There is history already, and made-up rows among real ones would mislead: says since when, and the cure."""


class Seeded(msgspec.Struct, frozen=True, kw_only=True):
    """What was put into the tables."""

    first: date
    days: int
    events: int
    late_day: date
    """Its statistics lack events that came after they were computed."""
    late_events: int
    wrong_day: date
    """Its `step_stats` count everything twice."""


def seed(settings: Settings, now: datetime, *, days: int = 7, sagas_a_day: int = 1_000, number: int = 7) -> Seeded:
    """Fill `events`, `saga_definitions` and the statistics with the `days` days, UTC, before today.

    Args:
        settings: Where the tables are.
        now: Aware; what is seeded ends where its day begins.
        days: At least 5.
        sagas_a_day: About how many.
        number: Of which all follows: the same sagas, outcomes and durations each time.

    Raises:
        AlreadyHistoryError: `events` has rows of before today.
        ValueError: fewer than 5 days, or no saga a day.
    """
    if days < 5 or sagas_a_day < 1:
        msg = f"days={days}, sagas_a_day={sagas_a_day}: allowed are 5 days or more and 1 saga or more"
        raise ValueError(msg)
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first, late_day, wrong_day = today - days * DAY, today - 2 * DAY, today - 4 * DAY
    with closing(open_catalog(settings)) as catalog, (settings.catalog_file.parent / "seed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _refuse_history(settings, catalog, today)
        events = _simulate(first, days, sagas_a_day, number)
        late = [event for event in events if _is_late(event, late_day)]
        in_time = [event for event in events if not _is_late(event, late_day)]
        append(catalog, SAGA_DEFINITIONS, definition_rows(events))
        append(catalog, EVENTS, event_rows(in_time, SOURCE, range(len(in_time))))
        with history.open(settings, first, today, catalog=catalog) as tables:
            for table in STATISTICS:
                rows = tables.sql(statistics.query(settings, table)).to_arrow_table()
                append(catalog, table, _spoilt(rows, wrong_day) if table is STEP_STATS else rows)
        append(catalog, EVENTS, event_rows(late, SOURCE, range(len(in_time), len(events))))
    return Seeded(
        first=first.date(),
        days=days,
        events=len(events),
        late_day=late_day.date(),
        late_events=len(late),
        wrong_day=wrong_day.date(),
    )


def _refuse_history(settings: Settings, catalog: Catalog, today: datetime) -> None:
    with history.open(settings, until=today, catalog=catalog) as tables:
        [(oldest,)] = tables.sql('SELECT min("timestamp") FROM events').fetchall()
    if oldest is not None:
        msg = (
            f"events holds history since {oldest:%Y-%m-%d %H:%M} UTC already, and made-up sagas among it would mislead: "
            "seed another SAGASCOPE_HOME, or delete all tables first (`make clean`)"
        )
        raise AlreadyHistoryError(msg)


def _simulate(first: datetime, days: int, sagas_a_day: int, number: int) -> list[SagaEvent]:
    """All events of sagas that start from `first` on, in order; what runs over the end of the last day is not begun."""

    async def live() -> list[SagaEvent]:
        recorder = Recorder(first)
        seconds = (days * DAY - timedelta(hours=1)).total_seconds()
        stop = asyncio.Event()
        rate = sagas_a_day / DAY.total_seconds()
        await run_workload([recorder], rate=rate, seconds=seconds, seed=number, scale_time=1, stop=stop)
        return recorder.events

    return simulated_time.run(live())


class Recorder(EventListener):
    """Keeps each event, with the time that passed in the simulation in place of the time that passed here."""

    def __init__(self, first: datetime) -> None:
        self.events: list[SagaEvent] = []
        self._first = round(first.timestamp() * 1000)
        self._runs: dict[str, str] = {}
        self._began: dict[tuple[str, EventType, str | None], int] = {}

    async def write(self, events: Sequence[SagaEvent]) -> None:
        """See `EventListener`."""
        moment = self._first + round(asyncio.get_running_loop().time() * 1000)
        for event in events:
            run_id = self._runs.setdefault(event.run_id, new_id(moment))
            changes: dict[str, Any] = {"event_id": new_id(moment), "run_id": run_id, "timestamp": moment}
            self._began[run_id, event.event_type, event.step_name] = moment
            if began := _BEGINS.get(event.event_type):
                changes["duration_ms"] = moment - self._began[run_id, began, event.step_name]
            if event.event_type in SAGA_ENDS:
                changes["total_duration_ms"] = moment - self._began[run_id, EventType.SAGA_STARTED, None]
            self.events.append(msgspec.structs.replace(event, **changes))


def _is_late(event: SagaEvent, day: datetime) -> bool:
    since, until = (round((day + timedelta(hours=hour)).timestamp() * 1000) for hour in LATE_HOURS)
    return event.service == LATE_SERVICE and since <= event.timestamp < until


def definition_rows(events: Sequence[SagaEvent]) -> list[dict[str, Any]]:
    """A row for each definition that the events name, first seen when the first of them was."""
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        definition = recall(event.definition_id) if event.definition_id else None
        if definition and definition.definition_id not in rows:
            seen = datetime.fromtimestamp(event.timestamp / 1000, UTC)
            rows[definition.definition_id] = row_of(definition, seen, event.service)
    return list(rows.values())


def _spoilt(rows: pa.Table, day: datetime) -> pa.Table:
    """The statistics of steps, as a job would have left them that counted each event of that day twice."""
    start = rows["window_start"]
    times = pc.if_else(pc.and_(pc.greater_equal(start, day), pc.less(start, day + DAY)), 2, 1)
    for column in ("completed", "failed"):
        rows = rows.set_column(rows.column_names.index(column), column, pc.multiply(rows[column], times))
    return rows


def append(catalog: Catalog, table: Table, rows: list[dict[str, Any]] | pa.Table) -> None:
    """Add rows to a table, in one commit."""
    stored = catalog.load_table(table.identifier)
    schema = schema_to_pyarrow(stored.schema(), include_field_ids=False)
    if isinstance(rows, list):
        rows = pa.Table.from_pylist(rows, schema=schema)
    stored.append(rows.select(schema.names).cast(schema))
