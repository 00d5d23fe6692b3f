"""Stores the past of a source in `events`, one commit a day. A second import of the same rows changes nothing.

    with open_import(settings, outbox_at("postgresql://…"), Span(first, until)) as opened:
        for day in opened.days():
            print(opened.store(day))

What is stored already is found by its ids, so nothing needs to be remembered of an import that was killed.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import schema_to_pyarrow

from sagascope.events import SagaEvent
from warehouse import history, stored_runs
from warehouse.catalog import open_catalog
from warehouse.errors import WarehouseError
from warehouse.event_rows import event_rows
from warehouse.imports import PREFIX
from warehouse.imports.source import DAY, EPOCH, MICROSECOND, Loaded, Refused, Source, Span, begin_of, offset_of
from warehouse.tables import EVENTS, REJECTED_EVENTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Transaction

    from warehouse.settings import Settings
    from warehouse.tables import Table

CHUNK_EVENTS = 50_000
"""So many are looked up and written at a time: a file each."""
MEMORY = "256MiB"
"""What DuckDB may hold of the spool; beyond it, it uses the disk."""
SHOWN = 5
"""So many reasons a day are named; the counts are whole."""
_FIELDS = SagaEvent.__struct_fields__

logger = logging.getLogger(__name__)


class CanNotImportError(WarehouseError):
    """These days can't be imported, or not now; says why."""


class DayImport(NamedTuple):
    """What became of the rows of a day: each is counted once."""

    day: date | None
    """UTC; None: rows that tell no time."""
    imported: int = 0
    """Events that are in `events` now and were not before."""
    already_there: int = 0
    """Events that were there, by their ids: of an earlier import, or given twice."""
    known_live: int = 0
    """Events of sagas that are known from the topic: they are left out."""
    known_sagas: int = 0
    """How many sagas these are."""
    unclassified: int = 0
    """Rows of a shape that nobody knows; they are in `rejected_events`, by this import or an earlier one."""
    invalid: int = 0
    """Rows that are wrong; they are there, too."""
    reasons: tuple[str, ...] = ()
    """Of the first of these."""

    @property
    def rows(self) -> int:
        """All of them."""
        return self.imported + self.already_there + self.known_live + self.unclassified + self.invalid


class OpenedImport:
    """A source that was read, and is to be stored day by day."""

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        source: Source,
        spool: duckdb.DuckDBPyConnection,
        span: Span,
        *,
        dry_run: bool,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._source = source
        self._spool = spool
        self._span = span
        self._dry_run = dry_run
        self.loaded: Loaded = source.load(spool, span)
        self._known_live = self._sagas_of_the_topic()

    def days(self) -> list[date | None]:
        """The days of the span that have rows, in order; None, for the rows that tell no time, comes first."""
        found = self._spool.execute("SELECT DISTINCT moment // 86400000000 FROM rows ORDER BY 1 NULLS FIRST").fetchall()
        days = [None if number is None else EPOCH.date() + number * DAY for (number,) in found]
        return [day for day in days if day is None or self._span.has(day)]

    def store(self, day: date | None) -> DayImport:
        """Put what is new of a day into `events`, in one commit, and what is no event into `rejected_events`, in another.

        A kill leaves each of them as it was before or after; the next import does the rest.

        Raises:
            CanNotImportError: others committed all the time; nothing of the day is stored, or only one of the two.
        """
        told = DayImport(day)
        sagas: set[str] = set()
        refused: list[Refused] = []
        seen: set[int] = set()
        events = self._catalog.load_table(EVENTS.identifier).transaction()
        with _history_of(self._settings, self._catalog, day) as tables:
            for chunk in _chunks(self._source.records(self._spool, day)):
                found = [one for one in chunk if isinstance(one, SagaEvent)]
                refused += (one for one in chunk if isinstance(one, Refused))
                there = _which_of(tables, "SELECT event_id FROM events WHERE event_id", [one.event_id for one in found])
                fresh = []
                for event in found:
                    if event.event_id in there or hash(event.event_id) in seen:
                        told = told._replace(already_there=told.already_there + 1)
                    elif event.saga_id in self._known_live:
                        sagas.add(event.saga_id)
                        told = told._replace(known_live=told.known_live + 1)
                    else:
                        seen.add(hash(event.event_id))  # a million ids take 300 MB, their hashes a fifth of it
                        fresh.append(event)
                if fresh and not self._dry_run:
                    events.append(event_rows(fresh, self._source.topic, [offset_of(one.event_id) for one in fresh]))
                told = told._replace(imported=told.imported + len(fresh))
        if told.imported and day and not self._dry_run:
            since = datetime.combine(day, time(), UTC)
            # Before the commit: whoever is killed after it finds all of the day there. What ended later may have begun then.
            until = since + DAY + timedelta(days=self._settings.longest_run_days)
            stored_runs.forget(self._settings, self._catalog, since, until)
        self._commit(EVENTS, events)
        self._keep(refused)
        unclassified = sum(one.is_unclassified for one in refused)
        return told._replace(
            known_sagas=len(sagas),
            unclassified=unclassified,
            invalid=len(refused) - unclassified,
            reasons=tuple(one.reason for one in refused[:SHOWN]),
        )

    def _keep(self, refused: Sequence[Refused]) -> None:
        """Store what is no event, if it is not there yet. Of rows without a time the time of the import is kept."""
        now = datetime.now(UTC)
        rejected = self._catalog.load_table(REJECTED_EVENTS.identifier).transaction()
        schema = _schema(REJECTED_EVENTS)
        with history.open(self._settings, catalog=self._catalog) as tables:
            for start in range(0, len(refused), CHUNK_EVENTS):
                rows = {offset_of(one.identity): one for one in refused[start : start + CHUNK_EVENTS]}
                query = f"SELECT source_offset FROM rejected_events WHERE source_topic = '{self._source.topic}' AND source_offset"  # noqa: S608 - ours
                for offset in _which_of(tables, query, list(rows)):
                    del rows[offset]
                if rows and not self._dry_run:
                    values = [
                        {
                            "source_topic": self._source.topic,
                            "source_partition": 0,
                            "source_offset": offset,
                            "record_time": one.at or now,
                            "value": one.value,
                            "reason": one.reason,
                        }
                        for offset, one in rows.items()
                    ]
                    rejected.append(pa.Table.from_pylist(values, schema=schema))
        self._commit(REJECTED_EVENTS, rejected)

    def _commit(self, table: Table, transaction: Transaction) -> None:
        """All of it at once; a commit of the stream in between lets it be tried again on top. Nothing, where nothing is new."""
        try:
            transaction.commit_transaction()
        except CommitFailedException as error:  # by its promise nothing has landed
            msg = f"{table.name}: others committed before each attempt to store what is imported: do it again; nothing is stored twice"
            raise CanNotImportError(msg) from error

    def _sagas_of_the_topic(self) -> set[str]:
        """Those of the source that have events from the topic, of whatever time."""
        with history.open(self._settings, catalog=self._catalog) as tables:
            reader = tables.sql(
                f"SELECT DISTINCT saga_id FROM events WHERE coalesce(source_topic, '') NOT LIKE '{PREFIX}%'"  # noqa: S608 - ours
            ).to_arrow_reader(100_000)
            self._spool.register("of_topic", reader)
            known = self._spool.execute(
                "SELECT DISTINCT saga_id FROM rows SEMI JOIN of_topic USING (saga_id)"
            ).fetchall()
            self._spool.unregister("of_topic")
        return {saga_id for (saga_id,) in known}


@contextmanager
def open_import(
    settings: Settings, source: Source, span: Span, *, now: datetime, dry_run: bool = False
) -> Iterator[OpenedImport]:
    """Read a source, to store its days. One import at a time: a second one waits.

    Args:
        settings: Where the tables are.
        source: What is read, once and whole, into a file below `settings.temporary` that is removed in the end.
        span: Whole days; without an end, up to today.
        now: The present moment, aware.
        dry_run: Count only, store nothing.

    Raises:
        CanNotImportError: days in the future, or a span that ends before it begins.
        SourceError: it can't be read.
    """
    today = now.astimezone(UTC).date()
    first, until = span.first, span.until or today + DAY
    if until > today + DAY or (first and first > today):
        msg = f"{max(filter(None, (first, until - DAY)))} is in the future: today is {today}, UTC; no saga has run then"
        raise CanNotImportError(msg)
    if first and first >= until:
        msg = f"no day lies between {first} and {until}, which is not imported itself: give a later end"
        raise CanNotImportError(msg)
    with (
        _alone(settings),
        _spool(settings) as spool,
        closing(open_catalog(settings)) as catalog,
    ):
        yield OpenedImport(catalog, settings, source, spool, Span(first, until), dry_run=dry_run)


def ranges_of(days: Collection[date]) -> list[tuple[date, date]]:
    """Days as ranges [first, last) of neighbours, in order."""
    ranges: list[tuple[date, date]] = []
    for day in sorted(days):
        if ranges and ranges[-1][1] == day:
            ranges[-1] = ranges[-1][0], day + DAY
        else:
            ranges.append((day, day + DAY))
    return ranges


def recompute_of(days: Collection[date], today: date) -> list[str]:
    """The commands that compute the statistics of these days again; today's as far as it is closed."""
    return [
        f"python -m jobs.recompute --from {first}T00:00Z" + (f" --to {last}T00:00Z" if last <= today else "")
        for first, last in ranges_of(days)
    ]


def _schema(table: Table) -> pa.Schema:
    return schema_to_pyarrow(table.schema, include_field_ids=False)


def _history_of(settings: Settings, catalog: Catalog, day: date | None) -> Any:
    """The rows of a day; without one, none are asked for."""
    begin = EPOCH + begin_of(day or EPOCH.date()) * MICROSECOND
    return history.open(settings, begin, begin + (DAY if day else 0 * DAY), catalog=catalog)


def _which_of(tables: history.History, query: str, values: list[Any]) -> set[Any]:
    """Those of the values that the query, whose condition they end, has found."""
    return (
        {value for (value,) in tables.sql(f"{query} IN (SELECT unnest($values))", {"values": values}).fetchall()}
        if values
        else set()
    )


def _chunks(records: Iterable[SagaEvent | Refused]) -> Iterator[list[SagaEvent | Refused]]:
    held: list[SagaEvent | Refused] = []
    for one in records:
        held.append(one)
        if len(held) == CHUNK_EVENTS:
            yield held
            held = []
    if held:
        yield held


@contextmanager
def _spool(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own on the disk, for this user's eyes only: it holds what the source's rows say, results too."""
    settings.temporary.mkdir(parents=True, exist_ok=True)
    for left in settings.temporary.glob("import-*"):  # by one that was killed: only one is at work
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="import-", dir=settings.temporary))
    try:
        with closing(duckdb.connect(str(folder / "spool.db"))) as spool:
            spool.execute("SET TimeZone = 'UTC'")
            spool.execute("SET memory_limit = ?", [MEMORY])
            spool.execute("SET temp_directory = ?", [str(folder)])
            yield spool
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One import at a time, from its reading to its last commit: what another stores meanwhile it would store again."""
    settings.catalog_file.parent.mkdir(parents=True, exist_ok=True)
    with (settings.catalog_file.parent / "import.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another import is at work (lock %s): waiting for it", lock.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
