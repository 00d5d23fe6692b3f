"""What became of each run of a saga: its outcome, what it undid, what it left behind, what that cost.

One way for all who ask: the SQL files of `sql/runs/`, pure functions of the events and definitions they are given. DuckDB
computes the views of the history from them, and a batch job the rows of whole days. See
docs/decisions/0011-runs-are-judged-in-sql.md for why, and for what each outcome means.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    import duckdb

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


def step_query(events: str = "events") -> str:
    """SQL for one row an execution of a step or of a compensation. Durations are in ms; derived where none was measured."""
    return _text("step_runs", events=events)


def create_views(
    connection: duckdb.DuckDBPyConnection,
    events: str,
    definitions: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> None:
    """Create the views `runs`, `saga_runs`, `open_runs`, `step_runs` and the macros `as_of()` and `abandoned_runs(age)`.

    A run belongs to [since, until) by its end, an open one by its newest event, an execution of a step by its end or
    else its start. What is open is so as of `until`, or of now where that is earlier or there is none.

    Args:
        connection: Where.
        events: Name of a relation with all events of the runs of that span, hence also some of before it.
        definitions: Name of a relation with all definitions.
        since: Inclusive, aware; None is unbounded.
        until: Exclusive, aware; None is unbounded.
    """
    now = f"least(now(), TIMESTAMPTZ '{until.isoformat()}')" if until else "now()"
    connection.execute(f"CREATE OR REPLACE MACRO as_of() AS {now}")
    connection.execute(f"CREATE OR REPLACE VIEW runs AS {query(events, definitions)}")
    connection.execute(
        f"CREATE OR REPLACE VIEW saga_runs AS {_text('saga_runs', span=within('ended_at', since, until))}"
    )
    connection.execute(
        f"CREATE OR REPLACE VIEW open_runs AS {_text('open_runs', span=within('last_event_at', since, until))}"
    )
    connection.execute(
        f"CREATE OR REPLACE MACRO abandoned_runs(age := INTERVAL 1 DAY) AS TABLE {_text('abandoned_runs')}"
    )
    steps = f"SELECT * FROM ({step_query(events)}) WHERE {within('coalesce(ended_at, started_at)', since, until)}"  # noqa: S608 - ours
    connection.execute(f"CREATE OR REPLACE VIEW step_runs AS {steps}")


def _text(name: str, **names: str) -> str:
    text = (SQL / f"{name}.sql").read_text(encoding="utf-8")
    if "${single_events}" in text:
        names["single_events"] = _text("single_events", events=names["events"])
    return Template(text).substitute(names)


def within(column: str, since: datetime | None, until: datetime | None) -> str:
    """SQL that is true where the column is a moment in [since, until)."""
    bounds = [
        f"{column} {sign} TIMESTAMPTZ '{moment.isoformat()}'"
        for sign, moment in ((">=", since), ("<", until))
        if moment is not None
    ]
    return " AND ".join(bounds) or "TRUE"
