"""The rows of the table `saga_runs`: put there, forgotten, and held against what the events say."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from pyiceberg.expressions.parser import parse

from warehouse import coverage, history, saga_runs
from warehouse.replace import change_properties, replace_rows
from warehouse.retention import kept_since
from warehouse.tables import EVENTS, SAGA_RUNS

if TYPE_CHECKING:
    from datetime import datetime

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table as StoredTable

    from warehouse.settings import Settings

SHOWN = 20


class RunDifference(NamedTuple):
    """A stored run that is not what its events say, or that is not stored."""

    run_id: str
    what: str


def store(settings: Settings, catalog: Catalog, since: datetime, until: datetime) -> int:
    """Put the runs that ended in [since, until) in place of those that are stored of it; returns how many they are.

    Raises:
        duckdb.Error: the events can't be read.
        ReplacedMeanwhileError: see `warehouse.replace`.
    """

    def properties(stored: StoredTable) -> dict[str, str]:
        return coverage.properties_of(coverage.with_span(coverage.covered(stored.properties), (since, until)))

    with history.open(settings, since, until, catalog=catalog) as tables:
        rows = tables.sql(f"FROM ({_computed([(since, until)])}) ORDER BY ended_at, run_id").to_arrow_table()
    where = parse(f"ended_at >= '{since.isoformat()}' and ended_at < '{until.isoformat()}'")
    replace_rows(settings, catalog, SAGA_RUNS, rows, where, properties=properties)
    return int(rows.num_rows)


def forget(settings: Settings, catalog: Catalog, since: datetime, until: datetime) -> None:
    """Have what ended in [since, until) computed when it is asked for: after events of it were added or removed."""

    def properties(stored: StoredTable) -> dict[str, str]:
        return coverage.properties_of(coverage.without_span(coverage.covered(stored.properties), (since, until)))

    change_properties(settings, catalog, SAGA_RUNS, properties)


def differences(
    settings: Settings, catalog: Catalog, since: datetime, until: datetime
) -> tuple[int, list[RunDifference]]:
    """How many runs that ended in [since, until), as far as it is covered, are not as their events say; and 20 of them.

    What was deleted by age is no difference.
    """
    covered = coverage.covered(catalog.load_table(SAGA_RUNS.identifier).properties)
    if kept := kept_since(catalog, [SAGA_RUNS]):
        since = max(since, kept)
    if kept := kept_since(catalog, [EVENTS]):  # what ended soon after may have begun before
        since = max(since, kept + timedelta(days=settings.longest_run_days))
    spans = [(max(first, since), min(last, until)) for first, last in covered if first < until and since < last]
    if not spans:
        return 0, []
    differing = ", ".join(
        f"CASE WHEN to_json(c.{name}) IS DISTINCT FROM to_json(s.{name}) THEN '{name}' END"
        for name in (column.name for column in SAGA_RUNS.columns)
        if name not in SAGA_RUNS.key
    )
    with history.open(settings, since, until, catalog=catalog) as tables:
        rows = tables.sql(
            f"""
            WITH c AS ({_computed(spans)}), s AS (
                SELECT *, count(*) OVER (PARTITION BY run_id) AS times
                FROM stored_saga_runs WHERE {saga_runs.in_spans("ended_at", spans)}
                QUALIFY row_number() OVER (PARTITION BY run_id) = 1
            ), judged AS (
                SELECT run_id, CASE
                    WHEN s.times IS NULL THEN 'no row'
                    WHEN c.outcome IS NULL THEN 'a row, and no such run ended then'
                    WHEN s.times > 1 THEN s.times || ' rows'
                    ELSE 'differs in ' || nullif(concat_ws(', ', {differing}), '')
                END AS what
                FROM c FULL JOIN s USING (run_id)
            )
            SELECT count(*) OVER (), run_id, what FROM judged WHERE what IS NOT NULL ORDER BY run_id LIMIT {SHOWN}
            """  # noqa: S608 - ours
        ).fetchall()
    return (rows[0][0] if rows else 0), [RunDifference(run_id, what) for _, run_id, what in rows]


def _computed(spans: list[coverage.Span]) -> str:
    return saga_runs.ended_query("run_events", "known_definitions", spans)
