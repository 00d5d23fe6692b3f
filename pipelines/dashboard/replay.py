"""An hour of real sagas that ends now, straight into the tables, and what follows as time passes: a live page to look at.

Neither a broker nor the analytics job is needed: sagaz executes the sagas in simulated time, and a commit each second
brings the events whose moment has come. For screenshots and tests; never where there is history.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipelines import seed, simulated_time
from pipelines.workload import run_workload
from warehouse import history, statistics
from warehouse.catalog import open_catalog
from warehouse.event_rows import event_rows
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, STATISTICS

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

    from sagascope.events import SagaEvent
    from warehouse.settings import Settings

PAST = timedelta(hours=1, minutes=10)
"""So that the last hour is whole, and has sagas that began before it."""
SETTLING = timedelta(seconds=12)
"""After so long a window is closed, as the job would do it."""
SOURCE = "replay"


class Replay:
    """Sagas of which some are past, some run, and some are to come."""

    def __init__(self, settings: Settings, now: datetime, *, rate: float, ahead: timedelta, number: int = 7) -> None:
        """Execute all of them; nothing is stored yet.

        Args:
            settings: Where the tables are.
            now: Aware.
            rate: Sagas a second.
            ahead: For so long there is something to come.
            number: Of which all follows.
        """
        self._settings = settings
        self._begin = datetime.fromtimestamp(int((now - PAST).timestamp()) // 10 * 10, UTC)
        seconds = (now + ahead - self._begin).total_seconds()
        self._events = _simulate(self._begin, rate, seconds, number)
        self._stored = 0
        self._closed = self._begin

    def go_on(self, now: datetime) -> int:
        """Store what has happened since the last time; returns how many events that were."""
        until = round(now.timestamp() * 1000)
        due = self._stored
        while due < len(self._events) and self._events[due].timestamp <= until:
            due += 1
        rows = event_rows(self._events[self._stored : due], SOURCE, range(self._stored, due))
        with closing(open_catalog(self._settings)) as catalog:
            if not self._stored:
                self._define(catalog)
            if rows:
                seed.append(catalog, EVENTS, rows)
            self._close_windows(catalog, now)
        self._stored = due
        return len(rows)

    def _define(self, catalog: Catalog) -> None:
        stored = catalog.load_table(SAGA_DEFINITIONS.identifier).scan(selected_fields=("definition_id",)).to_arrow()
        known = set(stored["definition_id"].to_pylist())
        rows = [row for row in seed.definition_rows(self._events) if row["definition_id"] not in known]
        if rows:
            seed.append(catalog, SAGA_DEFINITIONS, rows)

    def _close_windows(self, catalog: Catalog, now: datetime) -> None:
        closed = datetime.fromtimestamp(int((now - SETTLING).timestamp()) // 10 * 10, UTC)
        if closed <= self._closed:
            return
        with history.open(self._settings, self._closed, closed, catalog=catalog) as tables:
            for table in STATISTICS:
                rows: Any = tables.sql(statistics.query(self._settings, table)).to_arrow_table()
                if rows.num_rows:
                    seed.append(catalog, table, rows)
        self._closed = closed


def _simulate(begin: datetime, rate: float, seconds: float, number: int) -> list[SagaEvent]:
    """All events of sagas that start from `begin` on, in order of time."""

    async def live() -> list[SagaEvent]:
        recorder = seed.Recorder(begin)
        await run_workload([recorder], rate=rate, seconds=seconds, seed=number, scale_time=1, stop=asyncio.Event())
        return recorder.events

    return sorted(simulated_time.run(live()), key=lambda event: (event.timestamp, event.run_id, event.sequence))
