"""What became of each run of a saga: its outcome, what it undid, what it left behind, what that cost.

One way for all who ask: the SQL files of `sql/runs/`, pure functions of the events and definitions they are given. DuckDB
computes the views of the history from them, and a batch job the rows of whole days. See
docs/decisions/0011-runs-are-judged-in-sql.md for why, and for what each outcome means.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from sagascope.events import SAGA_ENDS
from warehouse.coverage import gaps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from warehouse.coverage import Gap, Span

SQL = Path(__file__).parent / "sql" / "runs"

OUTCOMES = (
    "completed",
    "rolled_back",
    "rolled_back_partial",
    "compensation_failed",
    "partially_committed",
    "failed_nothing_to_undo",
)
"""What can have become of a run that ended."""


def query(events: str = "events", definitions: str = "saga_definitions") -> str:
    """SQL for one row a run, given the names of the relations that hold its events and the sagas' definitions.

    A run that has not ended has no `outcome`. The order of the events means nothing, and an id that comes twice counts
    once. All events of a run have to be there: what is missing did not happen.
    """
    return _text("runs", events=events, definitions=definitions)


def ended_query(events: str, definitions: str, spans: Sequence[Gap]) -> str:
    """SQL for one row a run that ended in one of the spans, as `saga_runs` has it; only events of such runs are judged."""
    ends = ", ".join(f"'{end}'" for end in SAGA_ENDS)
    return f"""
        WITH ending AS MATERIALIZED (
            SELECT DISTINCT run_id FROM {events} WHERE event_type IN ({ends}) AND {in_spans('"timestamp"', spans)}
        ), ending_events AS NOT MATERIALIZED (
            SELECT * FROM {events} SEMI JOIN ending USING (run_id)
        )
        {_text("saga_runs", runs=f"({query('ending_events', definitions)})", span=in_spans("ended_at", spans))}
    """  # noqa: S608 - ours


def open_query(events: str, definitions: str) -> str:
    """SQL for one row a run of which no end is known; only events of such runs are judged."""
    return f"""
        WITH open_events AS MATERIALIZED ({open_events_query(events)})
        SELECT * FROM ({query("open_events", definitions)})
    """  # noqa: S608 - ours


def open_events_query(events: str, columns: str = "*") -> str:
    """SQL for the events of runs of which no end is known."""
    ends = ", ".join(f"'{end}'" for end in SAGA_ENDS)
    return f"""
        WITH unended AS MATERIALIZED (
            -- By the hash: 8 bytes a run in memory instead of its id.
            SELECT DISTINCT run_id FROM {events} ANTI JOIN (
                SELECT hash(run_id) AS run_hash FROM {events} WHERE event_type IN ({ends})
            ) ON hash(run_id) = run_hash
        )
        SELECT {columns} FROM {events} SEMI JOIN unended USING (run_id)
    """  # noqa: S608 - ours


def running_query(runs: str, since: datetime | None = None, until: datetime | None = None) -> str:
    """SQL for the rows of `open_runs`, given the name of a relation with rows of `query`, or such a query in parentheses.

    Ages are those at `as_of()`, a macro that has to be there. A run belongs to [since, until) by its newest event.
    """
    return _text("open_runs", runs=runs, span=within("last_event_at", since, until))


def step_query(events: str = "events") -> str:
    """SQL for one row an execution of a step or of a compensation. Durations are in ms; derived where none was measured."""
    return _text("step_runs", events=events)


def single_events_query(events: str = "events") -> str:
    """SQL for the events, each id once."""
    return _text("single_events", events=events)


def views(
    events: str,
    definitions: str,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    stored: str = "",
    spans: Sequence[Span] = (),
) -> dict[str, str]:
    """What makes the views `runs`, `saga_runs`, `open_runs`, `step_runs` and the macros `as_of()` and `abandoned_runs(age)`.

    A run belongs to [since, until) by its end, an open one by its newest event, an execution of a step by its end or
    else its start. What is open is so as of `until`, or of now where that is earlier or there is none.

    Args:
        events: Name of a relation with all events of the runs of that span, hence also some of before it.
        definitions: Name of a relation with all definitions.
        since: Inclusive, aware; None is unbounded.
        until: Exclusive, aware; None is unbounded.
        stored: Name of a relation with the rows of runs that ended in `spans`, for these are not computed.
        spans: In order and apart.

    Returns:
        A statement each, by name, in the order in which they can be made.
    """
    now = f"least(now(), TIMESTAMPTZ '{until.isoformat()}')" if until else "now()"
    left = gaps(spans, since, until)
    computed = ended_query(events, definitions, left) if left else ""
    kept = f"SELECT * FROM {stored} WHERE {within('ended_at', since, until)}" if spans else ""  # noqa: S608 - ours
    still_open = running_query(f"({open_query(events, definitions)})", since, until)
    steps = f"SELECT * FROM ({step_query(events)}) WHERE {within('coalesce(ended_at, started_at)', since, until)}"  # noqa: S608 - ours
    return {
        "as_of": f"CREATE OR REPLACE MACRO as_of() AS {now}",
        "runs": f"CREATE OR REPLACE VIEW runs AS {query(events, definitions)}",
        "saga_runs": f"CREATE OR REPLACE VIEW saga_runs AS {_joined(kept, computed)}",
        "open_runs": f"CREATE OR REPLACE VIEW open_runs AS {still_open}",
        "abandoned_runs": "CREATE OR REPLACE MACRO abandoned_runs(age := INTERVAL 1 DAY) AS TABLE "
        + _text("abandoned_runs"),
        "step_runs": f"CREATE OR REPLACE VIEW step_runs AS {steps}",
    }


def _joined(stored: str, computed: str) -> str:
    """SQL for the rows of both, either of which may be none."""
    if not (stored and computed):
        return stored or computed
    return f"""
        WITH computed AS MATERIALIZED ({computed})
        FROM computed
        UNION ALL BY NAME
        -- A run that has told a second end since is one run.
        SELECT * FROM ({stored}) ANTI JOIN computed USING (run_id)
    """  # noqa: S608 - ours


def _text(name: str, **names: str) -> str:
    text = (SQL / f"{name}.sql").read_text(encoding="utf-8")
    if "${single_events}" in text:
        names["single_events"] = _text("single_events", events=names["events"])
    return Template(text).substitute(names)


def in_spans(column: str, spans: Sequence[Gap]) -> str:
    """SQL that is true of moments in one of the spans."""
    return "(" + " OR ".join(f"({within(column, since, until)})" for since, until in spans) + ")" if spans else "FALSE"


def within(column: str, since: datetime | None, until: datetime | None) -> str:
    """SQL that is true where the column is a moment in [since, until)."""
    bounds = [
        f"{column} {sign} TIMESTAMPTZ '{moment.isoformat()}'"
        for sign, moment in ((">=", since), ("<", until))
        if moment is not None
    ]
    return " AND ".join(bounds) or "TRUE"
