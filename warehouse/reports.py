"""The named reports over runs: each a SQL file of `sql/reports/` and a DuckDB macro of the same name.

    FROM most_failing_steps(saga := 'order*', attribute := MAP {'tenant': 'acme'}, span := INTERVAL 12 HOUR)

A file begins with comment lines: what the report tells, and last `Span:`, over how long it looks unless told.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    import duckdb

SQL = Path(__file__).parent / "sql" / "reports"
ASKED = Path(__file__).parent / "sql" / "asked"
SOURCES = ("asked_saga_runs", "asked_open_runs", "asked_step_runs", "asked_runs")
"""What reports select from, each after what it is made of."""

NAMES = (
    "running_sagas",
    "failure_rate",
    "duration_percentiles",
    "most_failing_steps",
    "compensations",
    "daily_trend",
    "failure_patterns",
    "slowest_sagas",
    "stuck_sagas",
    "variants",
    "branches",
    "outliers",
    "duration_heatmap",
)
"""The most useful first."""

_HEADER = re.compile(
    r"(?P<doc>(?:-- .*\n)+)-- Span: (?P<count>\d+) (?P<unit>minute|hour|day)s?\n(?P<query>.*)", re.DOTALL
)


class Report(NamedTuple):
    """A report as its file has it."""

    name: str
    doc: str
    """What it tells; its first sentence is the title."""
    span: timedelta
    """How far back it looks unless told."""
    query: str
    """One SELECT over the macros that `create_macros` makes, with the parameters `saga`, `attribute` and `span`."""

    @property
    def title(self) -> str:
        """The first sentence of what it tells."""
        return re.split(r"[.:;](?:\s|$)", self.doc, maxsplit=1)[0]


def load(name: str) -> Report:
    """The report of that name.

    Raises:
        LookupError: no report has that name; names those there are.
    """
    if name not in NAMES:
        msg = f"no report {name!r}; there are {', '.join(NAMES)}"
        raise LookupError(msg)
    header = _HEADER.fullmatch((SQL / f"{name}.sql").read_text(encoding="utf-8"))
    if header is None:
        msg = f"{name}.sql does not begin with comment lines and `-- Span: 7 days`"
        raise ValueError(msg)
    doc = " ".join(line.removeprefix("-- ") for line in header["doc"].splitlines())
    return Report(name, doc, timedelta(**{f"{header['unit']}s": int(header["count"])}), header["query"])


def create_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Create each report as a macro, where the views of `warehouse.saga_runs.create_views` are.

    Parameters of each, all optional: `saga`, a pattern of names with `*` and `?`; `attribute`, a map of which each run
    must have all entries; `span`, how far back from `as_of()`, NULL for as far as the history is open.
    """
    for source in SOURCES:
        query = (ASKED / f"{source}.sql").read_text(encoding="utf-8")
        connection.execute(f"CREATE OR REPLACE MACRO {source}(saga, attribute, span) AS TABLE {query}")
    for report in map(load, NAMES):
        span = f"INTERVAL '{report.span.total_seconds():.0f} seconds'"
        connection.execute(
            f"CREATE OR REPLACE MACRO {report.name}"
            f"(saga := '*', attribute := MAP {{}}::MAP(VARCHAR, VARCHAR), span := {span}) AS TABLE {report.query}"
        )


def ask(name: str, saga: str = "*", attributes: dict[str, str] | None = None) -> tuple[str, dict[str, object]]:
    """A query for the report over all that the history is open for, and its parameters, as `History.sql` takes them.

    Raises:
        LookupError: no report has that name; names those there are.
    """
    return f"FROM {load(name).name}({_ASKED})", asked(saga, attributes or {})


def ask_runs(
    statuses: Collection[str], order: str, limit: int, saga: str = "*", attributes: dict[str, str] | None = None
) -> tuple[str, dict[str, object]]:
    """A query for runs of these statuses (outcomes, and `open`) that the history is open for, and its parameters.

    Args:
        statuses: Any of `OUTCOMES` and "open".
        order: `started`, `ended` or `duration`: the latest or longest first.
        limit: At most so many.
        saga: A pattern of names with `*` and `?`.
        attributes: Of which each run must have all.

    Raises:
        LookupError: there is no such order.
    """
    if order not in ORDERS:
        msg = f"no order {order!r}; there are {', '.join(ORDERS)}"
        raise LookupError(msg)
    query = f"""
        FROM asked_runs({_ASKED})
        WHERE list_contains($statuses::VARCHAR[], status)
        ORDER BY {ORDERS[order]} LIMIT $limit
    """
    return query, asked(saga, attributes or {}) | {"statuses": list(statuses), "limit": limit}


def count_runs(
    statuses: Collection[str], saga: str = "*", attributes: dict[str, str] | None = None
) -> tuple[str, dict[str, object]]:
    """A query for how many runs of each kind have each of these statuses, and its parameters; see `ask_runs`."""
    query = f"""
        SELECT saga_name, status, count(*) AS sagas FROM asked_runs({_ASKED})
        WHERE list_contains($statuses::VARCHAR[], status)
        GROUP BY saga_name, status ORDER BY saga_name, sagas DESC, status
    """  # noqa: S608 - ours
    return query, asked(saga, attributes or {}) | {"statuses": list(statuses)}


def asked(saga: str, attributes: dict[str, str]) -> dict[str, object]:
    """Parameters that say which sagas a query is about."""
    return {"saga": saga, "entries": [{"key": key, "value": value} for key, value in attributes.items()]}


RUNS_OF_ID = """
    SELECT run_id, max("timestamp") AS newest FROM run_events WHERE saga_id = $id OR run_id = $id
    GROUP BY run_id ORDER BY newest DESC, run_id
"""
"""The runs of the saga or the run `$id`, the newest first."""

ORDERS = {
    "started": "started_at DESC, run_id",
    "ended": "ended_at DESC NULLS FIRST, run_id",
    "duration": "duration_ms DESC NULLS LAST, run_id",
}
"""How runs can be put in order, in SQL."""

_ASKED = (
    "saga := $saga, attribute := map_from_entries($entries::STRUCT(key VARCHAR, value VARCHAR)[]), "
    "span := NULL::INTERVAL"
)
