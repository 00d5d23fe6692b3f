"""One run with all that is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from warehouse import reports, saga_runs

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from warehouse.history import History

Row = dict[str, Any]


class WholeRun(NamedTuple):
    """A run, the newest of its saga."""

    run: Row
    """A row of `runs`."""
    steps: list[Row]
    """Of `step_runs`, in order."""
    earlier: list[str]
    """The ids of the saga's other runs, the newest first."""


def find(tables: History, identity: str) -> WholeRun | None:
    """The run of that id, or the newest one of the saga of that id; None where no event has it."""
    runs = [run_id for run_id, *_ in tables.sql(reports.RUNS_OF_ID, {"id": identity}).fetchall()]
    if not runs:
        return None
    [run] = _rows(tables.sql("SELECT * FROM runs WHERE run_id = $run", {"run": runs[0]}))
    steps = _rows(tables.sql('SELECT * FROM step_runs WHERE run_id = $run ORDER BY "sequence"', {"run": runs[0]}))
    return WholeRun(run, steps, runs[1:])


def events_of(tables: History, run_id: str) -> list[Row]:
    """The events of a run, each once, in order."""
    single = saga_runs.single_events_query("(SELECT * FROM run_events WHERE run_id = $run)")
    query = f'SELECT * FROM ({single}) ORDER BY "sequence", event_id'  # noqa: S608 - ours
    return _rows(tables.sql(query, {"run": run_id}))


def _rows(answer: DuckDBPyRelation) -> list[Row]:
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]
