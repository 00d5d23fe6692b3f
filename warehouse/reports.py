"""The named reports over sagas: each a SQL file of `sql/reports/` and a DuckDB macro of the same name.

    FROM most_failing_steps(saga := 'order*', attribute := MAP {'tenant': 'acme'}, span := INTERVAL 12 HOUR)

A file begins with comment lines: what the report tells, then `Span:`, over how long it looks unless told; `Takes:`, what
must be given beside that, where something must; and `Chart:`, how it is drawn, see `warehouse.report_page`.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from warehouse import saga_runs, statistics
from warehouse.tables import STATISTICS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from warehouse.settings import Settings
    from warehouse.targets import Target

SQL = Path(__file__).parent / "sql" / "reports"
ASKED = Path(__file__).parent / "sql" / "asked"
SOURCES = {
    "asked_saga_runs": (),
    "asked_open_runs": (),
    "asked_runs": (),
    "asked_step_events": ("types",),
    **{f"asked_{table.name}": () for table in STATISTICS},
    "asked_trend": ("unit",),
    "asked_step_percentiles": ("hourly",),
}
"""What reports select from, each after what it is made of; with what it takes beside `saga`, `attribute` and `span`."""

NAMES = (
    "running_sagas",
    "failure_rate",
    "duration_percentiles",
    "most_failing_steps",
    "step_statistics",
    "recent_steps",
    "compensations",
    "unexercised_compensations",
    "daily_trend",
    "weekly_trend",
    "duration_heatmap",
    "failure_patterns",
    "sla_compliance",
    "before_after",
    "slowest_sagas",
    "outliers",
    "variants",
    "branches",
    "stuck_sagas",
)
"""The most useful first."""

TAKEN = {"moment": "NULL::TIMESTAMPTZ", "targets": "[]"}
"""What a report can take beside `saga`, `attribute` and `span`, and what stands for it in SQL where it is not given."""

_HEADER = re.compile(
    r"(?P<doc>(?:-- .*\n)+?)-- Span: (?P<count>\d+) (?P<unit>minute|hour|day)s?\n(?:-- Takes: (?P<takes>\w+)\n)?"
    r"-- Chart: (?P<kind>\w+) x=(?P<x>\S+) y=(?P<y>\S+)(?: color=(?P<color>\w+))?(?: z=(?P<z>\w+))?\n(?P<query>.*)",
    re.DOTALL,
)


class Chart(NamedTuple):
    """How a report is drawn: `bar`, `ranking` (bars that lie), `line`, `scatter` or `heatmap`.

    Of several columns, those of the axis with names are one name together; those of the other have a colour each.
    """

    kind: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    color: str | None = None
    """The column by which the rows are told apart."""
    z: str | None = None
    """Of a heatmap: the column that is its colour."""


class Report(NamedTuple):
    """A report as its file has it."""

    name: str
    doc: str
    """What it tells; its first sentence is the title."""
    span: timedelta
    """How far back it looks unless told."""
    takes: str | None
    """What must be given, one of `TAKEN`."""
    chart: Chart
    query: str
    """One SELECT over the macros of `SOURCES`, with the parameters `saga`, `attribute`, `span` and `takes`."""

    @property
    def title(self) -> str:
        """The first sentence of what it tells."""
        return re.split(r"[.:;](?:\s|$)", self.doc, maxsplit=1)[0]


class MissingParameterError(ValueError):
    """A report was asked without what it takes, or with what it does not: says which."""


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
        msg = f"{name}.sql does not begin with comment lines, `-- Span: 7 days` and `-- Chart: bar x=… y=…`"
        raise ValueError(msg)
    doc = " ".join(line.removeprefix("-- ") for line in header["doc"].splitlines())
    chart = Chart(
        header["kind"], tuple(header["x"].split(",")), tuple(header["y"].split(",")), header["color"], header["z"]
    )
    span = timedelta(**{f"{header['unit']}s": int(header["count"])})
    return Report(name, doc, span, header["takes"], chart, header["query"])


def macros(settings: Settings, since: datetime | None = None) -> dict[str, str]:
    """What makes the reports as macros, where the tables, the statistics and the views of `warehouse.saga_runs` are.

    Parameters of each, all optional: `saga`, a pattern of names with `*` and `?`; `attribute`, a map of which each saga
    must have all entries; `span`, how far back from `as_of()`, NULL for as far as the history is open.

    Args:
        settings: The width of the windows.
        since: From where on the history is open; a window that begins before is not whole.

    Returns:
        A statement each, by name, in the order in which they can be made.
    """
    made = {}
    for name, more in SOURCES.items():
        parameters = ", ".join(("saga", "attribute", "span", *more))
        made[name] = f"CREATE OR REPLACE MACRO {name}({parameters}) AS TABLE {_source(name, settings, since)}"
    for report in map(load, NAMES):
        parameters = f"saga := '*', attribute := MAP {{}}::MAP(VARCHAR, VARCHAR), span := {_interval(report.span)}"
        parameters += f", {report.takes} := {TAKEN[report.takes]}" if report.takes else ""
        made[report.name] = f"CREATE OR REPLACE MACRO {report.name}({parameters}) AS TABLE {report.query}"
    return made


def _interval(span: timedelta) -> str:
    return f"INTERVAL '{span.total_seconds():.0f} seconds'"


def _source(name: str, settings: Settings, since: datetime | None) -> str:
    """SQL of what reports select from."""
    statistic = next((table for table in STATISTICS if name == f"asked_{table.name}"), None)
    if statistic is None:
        return (ASKED / f"{name}.sql").read_text(encoding="utf-8")
    sliced = (ASKED / "sliced_events.sql").read_text(encoding="utf-8")
    return Template((ASKED / "asked_statistics.sql").read_text(encoding="utf-8")).substitute(
        statistic=statistic.name,
        computed=statistics.query(settings, statistic, f"({sliced})"),
        since=saga_runs.within("window_start", since, None),
    )


def ask(
    name: str,
    saga: str = "*",
    attributes: dict[str, str] | None = None,
    *,
    moment: datetime | None = None,
    targets: Sequence[Target] | None = None,
) -> tuple[str, dict[str, object]]:
    """A query for the report over all that the history is open for, and its parameters, as `History.sql` takes them.

    Args:
        name: Which report.
        saga: A pattern of names with `*` and `?`.
        attributes: Of which each saga must have all.
        moment: What `before_after` compares the two sides of; aware.
        targets: What `sla_compliance` judges by.

    Raises:
        LookupError: no report has that name; names those there are.
        MissingParameterError: the report needs one of the last two, or has no use for one that is given.
    """
    report = load(name)
    parameters = asked(saga, attributes or {})
    given = {"moment": moment, "targets": targets}
    for parameter, value in given.items():
        if (value is not None) is not (parameter == report.takes):
            msg = f"{name} {'takes no' if value is not None else 'needs'} {parameter}"
            raise MissingParameterError(msg)
    if moment is not None:
        return f"FROM {report.name}({_ASKED}, moment := $moment::TIMESTAMPTZ)", parameters | {"moment": moment}
    if targets is not None:
        rows = json.dumps([msgspec.structs.asdict(target) for target in targets])
        return f"FROM {report.name}({_ASKED}, targets := from_json($targets, '{_TARGETS}'))", parameters | {
            "targets": rows
        }
    return f"FROM {report.name}({_ASKED})", parameters


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
    return {"saga": saga, "keys": list(attributes), "values": list(attributes.values())}


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

_ASKED = "saga := $saga, attribute := map($keys::VARCHAR[], $values::VARCHAR[]), span := NULL::INTERVAL"
_TARGETS = """[{"saga": "VARCHAR", "step": "VARCHAR", "percentile": "DOUBLE", "max_ms": "DOUBLE", "max_failure_rate": "DOUBLE"}]"""
