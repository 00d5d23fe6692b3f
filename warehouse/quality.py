"""Whether the rows of a table are what they should be, day by day: DuckDB counts, Great Expectations judges.

    for finding in quality.check(settings, EVENTS, date(2026, 11, 23)):
        print(finding.rule, finding.passed, finding.sample)

One pass over a day's partitions counts for each rule of `warehouse.rules` the rows that break it; what broke one is then
looked up, with its key. Great Expectations' own path to DuckDB does not work (it fetches after closing), so its pandas
engine gets these counts: one row a day, one column a rule.
"""

from __future__ import annotations

import tempfile
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import duckdb
import msgspec

from sagascope.events import SAGA_ENDS
from warehouse import stored_runs, windows
from warehouse.catalog import open_catalog
from warehouse.guarded_queries import DamagedFileError
from warehouse.imports import SAGAZ_OUTBOX
from warehouse.partitions import PartitionedFiles, partitioned_files
from warehouse.rules import EQUALS_EVENTS, FILES_READABLE, LONGEST, ROWS, RUNS_EQUAL_EVENTS, Rule, Severity, rules
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from warehouse.settings import Settings
    from warehouse.tables import Table

SHOWN = 5
"""How many of the rows that break a rule are shown; their count is whole."""
SHOWN_CHARACTERS = 200
"""Of each value."""
MEMORY = "1GiB"
"""What DuckDB may keep in memory; beyond it, it uses the disk."""
DAY = timedelta(days=1)

_SQL = Path(__file__).parent / "sql" / "quality"


class FailingRow(msgspec.Struct, frozen=True):
    """One row that breaks a rule."""

    key: dict[str, str]
    """The columns that name it, as text."""
    what: str
    """What is wrong with it."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one rule on one day of one table; also where it holds."""

    table: str
    day: date
    rule: str
    promise: str
    """What holds of each row where it passed."""
    severity: Severity
    passed: bool
    """As Great Expectations judges."""
    failing: int
    """How many rows, keys, runs, windows or files break the rule."""
    rows: int
    """How many rows the day's partitions have."""
    sample: tuple[FailingRow, ...] = ()
    """The first of those that break it."""

    @property
    def is_error(self) -> bool:
        """It did not pass, and that is an error."""
        return not self.passed and self.severity is Severity.ERROR


class Facts(msgspec.Struct, frozen=True):
    """What DuckDB counted on one day of one table."""

    rows: int
    failing: dict[str, int]
    """By the rule's name."""
    samples: dict[str, tuple[FailingRow, ...]]
    """Some of what breaks a rule, by its name."""


def check(settings: Settings, table: Table, day: date) -> list[Finding]:
    """All rules of a table, judged on one day, UTC; a day without rows breaks none.

    A file that can't be read breaks a rule of its own, and the rest of the day is judged without it. Reads what is stored
    just now: of today, beside a running job, a window may be there before those of another statistic are.

    Raises:
        CatalogError: the catalog can't be opened.
    """
    return inspect(settings, [table], [day])


def inspect(
    settings: Settings, tables: Sequence[Table] = TABLES, days: Sequence[date] = (), docs: Path | None = None
) -> list[Finding]:
    """All rules of these tables on these days, in order.

    Args:
        settings: Where the tables are.
        tables: Those to judge.
        days: UTC.
        docs: Folder for Great Expectations' Data Docs, a static site of just these results; what it held is replaced.

    Raises:
        CatalogError: the catalog can't be opened.
        OSError: the site can't be written.
    """
    from warehouse.expectations import Judge  # noqa: PLC0415 - Great Expectations takes two seconds to import

    judge = Judge()
    found: list[Finding] = []
    with closing(open_catalog(settings)) as catalog:
        for table in tables:
            files = partitioned_files(catalog, table)
            for day in days:
                facts = count(settings, table, day, files)
                found += _findings(table, day, facts, judge.verdicts(table, day, facts))
    if docs:
        judge.build_docs(docs)
    return found


def days_with_rows(settings: Settings, tables: Sequence[Table] = TABLES) -> list[date]:
    """The days, UTC, that have a partition in any of the tables, in order. No data file is opened."""
    with closing(open_catalog(settings)) as catalog:
        return sorted({start.date() for table in tables for start in partitioned_files(catalog, table).files})


def count(settings: Settings, table: Table, day: date, files: PartitionedFiles) -> Facts:
    """Count the rows of a day's partitions, and those that break each rule."""
    unreadable: dict[str, str] = {}
    with _connect(settings) as connection:
        try:
            facts = _count(connection, table, day, files)
        except duckdb.Error:  # a damaged file makes it raise whatever there is
            unreadable = dict(_unreadable(connection, files, files.between(day - LONGEST, day + DAY)))
            if not unreadable:
                raise
            facts = _count(connection, table, day, files, frozenset(unreadable))
    # One of the days before is told of on its own day.
    of_day = [path for _, path in files.between(day, day + DAY)]
    broken = tuple(FailingRow({"file": path}, unreadable[path]) for path in of_day if path in unreadable)
    others = {FILES_READABLE.name: (len(broken), broken[:SHOWN])}
    if EQUALS_EVENTS in rules(table):
        others[EQUALS_EVENTS.name] = _compared(partial(_compare_windows, settings, table, day))
    if RUNS_EQUAL_EVENTS in rules(table):
        others[RUNS_EQUAL_EVENTS.name] = _compared(partial(_compare_runs, settings, day))
    return Facts(
        facts.rows,
        facts.failing | {name: number for name, (number, _) in others.items()},
        facts.samples | {name: sample for name, (_, sample) in others.items()},
    )


def unreadable(settings: Settings, table: Table, since: datetime, until: datetime) -> dict[str, str]:
    """The files of a table's days, from that of `since` to before `until`, that can't be read to their end, and why."""
    with closing(open_catalog(settings)) as catalog, _connect(settings) as connection:
        files = partitioned_files(catalog, table)
        return dict(_unreadable(connection, files, files.between(since.date(), until.date())))


@contextmanager
def _connect(settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own, with a folder of its own on the disk: two that share one take each other's files for theirs."""
    settings.temporary.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="quality-", dir=settings.temporary) as folder,
        closing(duckdb.connect(":memory:")) as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET memory_limit = ?", [MEMORY])
        connection.execute("SET temp_directory = ?", [folder])
        connection.execute("SET preserve_insertion_order = false")
        yield connection


def _count(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    day: date,
    files: PartitionedFiles,
    without: frozenset[str] = frozenset(),
) -> Facts:
    listed = [one for one in files.between(day, day + DAY) if one[1] not in without]
    before = [one for one in files.between(day - LONGEST, day) if one[1] not in without]
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {ROWS} AS {files.rows(connection, listed)}")
    connection.execute(f"CREATE OR REPLACE TEMP VIEW earlier_rows AS {files.rows(connection, before)}")
    by_relation: dict[str, list[Rule]] = {}
    for rule in rules(table):
        if rule.relation:
            by_relation.setdefault(rule.relation, []).append(rule)
    failing: dict[str, int] = {}
    number = 0
    for relation, of in by_relation.items():
        if relation != ROWS:
            query = _statement(
                relation,
                key=", ".join(f'"{name}"' for name in table.key),
                ends=", ".join(f"'{end}'" for end in SAGA_ENDS),
                startless=f"'{SAGAZ_OUTBOX}'",
            )
            connection.execute(f"CREATE OR REPLACE TEMP TABLE {relation} AS {query}")
        counts = ", ".join(f'count(*) FILTER ({rule.fails}) AS "{rule.name}"' for rule in of)
        [(rows, *numbers)] = connection.execute(_statement("facts", counts=counts, relation=relation)).fetchall()
        failing |= dict(zip((rule.name for rule in of), numbers, strict=True))
        number = rows if relation == ROWS else number
    samples = {rule.name: _sample(connection, rule) for rule in rules(table) if failing.get(rule.name)}
    return Facts(number, failing, samples)


def _sample(connection: duckdb.DuckDBPyConnection, rule: Rule) -> tuple[FailingRow, ...]:
    key = ", ".join(f'"{name}"::VARCHAR AS "{name}"' for name in rule.key)
    query = _statement(
        "failing_rows", key=key, what=rule.what, relation=rule.relation, fails=rule.fails, shown=str(SHOWN)
    )
    return tuple(
        FailingRow(dict(zip(rule.key, map(_shown, values), strict=True)), _shown(what))
        for *values, what in connection.execute(query).fetchall()
    )


def _shown(value: str | None) -> str:
    """A value of a row as it may be printed: cut, and what a terminal would obey written out. Anybody may send events."""
    text = "NULL" if value is None else value
    text = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text):,} characters)"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _statement(name: str, **values: str) -> str:
    return Template((_SQL / f"{name}.sql").read_text(encoding="utf-8")).substitute(values)


def _unreadable(
    connection: duckdb.DuckDBPyConnection, files: PartitionedFiles, listed: Iterable[tuple[datetime, str]]
) -> Iterator[tuple[str, str]]:
    """Each file that can't be read to its end, and why."""
    for one in listed:
        try:
            connection.execute(f"SELECT bit_xor(hash(r)) FROM ({files.rows(connection, [one])}) AS r").fetchall()  # noqa: S608 - ours
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            yield one[1], str(error).partition("\n")[0]


Compared = tuple[int, tuple[FailingRow, ...]]
"""How many differ from what the events say, and the first of them."""


def _compared(compare: Callable[[], Compared]) -> Compared:
    """What differs; where the events can't be read, that."""
    try:
        return compare()
    except DamagedFileError as error:
        return 1, (FailingRow({}, f"can't be compared: {error}"),)


def _compare_windows(settings: Settings, table: Table, day: date) -> Compared:
    begin = datetime.combine(day, time(), UTC)
    [found] = windows.compare(settings, begin, begin + DAY, of=[table]).tables
    return found.differing, tuple(
        FailingRow(
            {"window_start": one.window_start.astimezone(UTC).isoformat(sep=" "), "names": one.names},
            f"{one.what}; counts {one.counted:,} of {one.events:,} events",
        )
        for one in found.shown[:SHOWN]
    )


def _compare_runs(settings: Settings, day: date) -> Compared:
    begin = datetime.combine(day, time(), UTC)
    with closing(open_catalog(settings)) as catalog:
        number, shown = stored_runs.differences(settings, catalog, begin, begin + DAY)
    return number, tuple(FailingRow({"run_id": one.run_id}, _shown(one.what)) for one in shown[:SHOWN])


def _findings(table: Table, day: date, facts: Facts, verdicts: dict[str, bool]) -> Iterator[Finding]:
    for rule in rules(table):
        yield Finding(
            table=table.name,
            day=day,
            rule=rule.name,
            promise=rule.promise,
            severity=rule.severity,
            passed=verdicts[rule.name],
            failing=facts.failing[rule.name],
            rows=facts.rows,
            sample=facts.samples.get(rule.name, ()),
        )
