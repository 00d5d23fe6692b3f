"""The sagas that run now, each judged by the SQL of `warehouse.saga_runs` from all of its events; and when they may be done."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from warehouse import saga_runs, statistics

if TYPE_CHECKING:
    import duckdb

SQL = Path(__file__).parent / "sql" / "live"

SORTS = {
    "age": "age_ms",
    "silent": "silent_ms",
    "saga_name": "saga_name",
    "saga_id": "saga_id",
    "current_step": "current_step",
    "steps_done": "len(steps_done)",
    "steps_remaining": "steps_remaining",
    "undoing": "undoing",
}
"""By what running sagas can be put in order, in SQL."""
ENOUGH_RUNS = 100
"""So many completed runs of the last hour tell of durations by themselves; else all of `longest_run_days` do."""
RUNS_NEEDED = 20
"""An ETA is told where so many completed runs took longer than this one has by now."""


_OF_LAST_HOUR = """
    SELECT bucket, sum(completed)::BIGINT AS runs FROM saga_windows JOIN keys USING (key)
    WHERE saga_name = $1 AND bucket IS NOT NULL AND completed > 0 GROUP BY bucket
"""
_OF_ALL = "SELECT bucket, runs FROM run_durations WHERE saga_name = $1"


class RunningSaga(msgspec.Struct, frozen=True, kw_only=True):
    """A run that started and has not ended."""

    run_id: str
    saga_id: str
    saga_name: str
    started_at: Annotated[datetime, Meta(description="Its start, or its first event that is known.")]
    last_event_at: datetime
    age_ms: int
    silent_ms: Annotated[int, Meta(description="Since its newest event.")]
    last_event_type: str
    current_step: Annotated[str | None, Meta(description="Of its newest event; null where that is of the saga itself.")]
    undoing: Annotated[bool, Meta(description="It has begun to undo what it did.")]
    failing_step: str | None
    error_type: str | None
    error_message: str | None
    steps_done: list[str]
    steps_undone: list[str]
    steps_defined: Annotated[int | None, Meta(description="By its definition; null where that is not known.")]
    steps_remaining: Annotated[
        int | None, Meta(description="Of its definition, not done yet; null while it undoes, or without a definition.")
    ]
    attributes: dict[str, str]
    eta_p50_ms: Annotated[
        int | None,
        Meta(
            description="Until it is done: of completed runs of its kind that took longer than this one has by now, half took at "
            "most so much longer. Null while it undoes, and where fewer than 20 such runs are known."
        ),
    ] = None
    eta_p90_ms: Annotated[int | None, Meta(description="The same of nine in ten.")] = None


class RunningPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the running sagas."""

    matching: Annotated[int, Meta(description="How many there are that match, on all pages.")]
    sagas: list[RunningSaga]


class Eta(NamedTuple):
    """How long runs of one kind took: a bucket's duration in ms, and how many runs took at most that."""

    ms: list[float]
    up_to: list[int]

    def remaining(self, age_ms: int, share: float) -> int | None:
        """Of the runs that took longer than `age_ms`, what that share of them took beyond it at most; None: too few did."""
        first = bisect_right(self.ms, age_ms)
        before = self.up_to[first - 1] if first else 0
        longer = (self.up_to[-1] if self.up_to else 0) - before
        if longer < RUNS_NEEDED:
            return None
        wanted = before + -(-longer * round(share * 100) // 100)
        place = next(n for n in range(first, len(self.ms)) if self.up_to[n] >= wanted)
        return round(self.ms[place] - age_ms)


class RunningRuns:
    """What the events of open runs say of each; a run is judged again only where events of it came, and somebody asks."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Runs beside these tables.

        Args:
            connection: With the tables of `warehouse.live_runs`, `saga_windows`, `keys` and `definitions`.
        """
        self._connection = connection
        judged = saga_runs.query("changed_events", "definitions")
        for statement in (
            "CREATE TABLE clock AS SELECT now() AS moment",
            "CREATE MACRO as_of() AS (SELECT moment FROM clock)",
            "CREATE TABLE changed_runs (run_hash UBIGINT)",
            "CREATE VIEW changed_events AS SELECT * EXCLUDE (run_hash, id_hash) FROM open_events SEMI JOIN changed_runs USING (run_hash)",
            f"CREATE TABLE judged AS SELECT hash(run_id) AS run_hash, * FROM ({judged}) LIMIT 0",  # noqa: S608 - ours
        ):
            connection.execute(statement)
        self._judge = f"INSERT INTO judged SELECT hash(run_id), * FROM ({judged})"  # noqa: S608 - ours
        self._query = Template((SQL / "running.sql").read_text(encoding="utf-8")).substitute(
            running=saga_runs.running_query("judged")
        )

    def page(
        self, now: datetime, search: str, sort: str, *, saga: str, descending: bool, limit: int, offset: int
    ) -> RunningPage:
        """See `warehouse.live.LiveTables.running`."""
        if sort not in SORTS:
            msg = f"no sort {sort!r}; there are {', '.join(SORTS)}"
            raise LookupError(msg)
        self._judge_changed()
        self._connection.execute("UPDATE clock SET moment = $1", [now])
        matches = "$search = '' OR contains(lower(concat_ws(chr(10), saga_id, run_id, saga_name, current_step)), lower($search))"
        matching = f"""
            CREATE OR REPLACE TEMP TABLE matching AS FROM ({self._query})
            WHERE ({matches}) AND ($saga = '' OR saga_name = $saga)
        """
        self._connection.execute(matching, {"search": search, "saga": saga})
        [(count,)] = self._connection.execute("SELECT count(*) FROM matching").fetchall()
        order = f"{SORTS[sort]} {'DESC' if descending else 'ASC'} NULLS LAST, run_id"
        answer = self._connection.execute(f"FROM matching ORDER BY {order} LIMIT $1 OFFSET $2", [limit, offset])
        names = [name for name, *_ in answer.description]
        rows = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        etas = {name: self._eta(name) for name in {row["saga_name"] for row in rows}}
        return RunningPage(matching=count, sagas=[_saga(row, etas[row["saga_name"]]) for row in rows])

    def _judge_changed(self) -> None:
        self._connection.execute("DELETE FROM changed_runs")
        self._connection.execute("INSERT INTO changed_runs SELECT run_hash FROM open_runs WHERE NOT is_judged")
        self._connection.execute(
            "DELETE FROM judged WHERE run_hash IN (FROM changed_runs) OR run_hash NOT IN (SELECT run_hash FROM open_runs)"
        )
        self._connection.execute(self._judge)
        self._connection.execute("UPDATE open_runs SET is_judged = TRUE WHERE NOT is_judged")

    def _eta(self, saga_name: str) -> Eta:
        """By the runs that completed within the last hour, where these are enough, else by all that are known."""
        for durations in (_OF_LAST_HOUR, _OF_ALL):
            rows = self._connection.execute(
                f"""
                SELECT {statistics.BUCKET_MS} AS ms, (sum(runs) OVER (ORDER BY bucket))::BIGINT FROM ({durations}) ORDER BY bucket
                """,  # noqa: S608 - ours
                [saga_name],
            ).fetchall()
            eta = Eta([ms for ms, _ in rows], [up_to for _, up_to in rows])
            if eta.up_to and eta.up_to[-1] >= ENOUGH_RUNS:
                break
        return eta


def _saga(row: dict[str, Any], eta: Eta) -> RunningSaga:
    row["attributes"] = dict(row["attributes"] or {})
    if not row["undoing"]:
        row |= {f"eta_p{share:.0f}_ms": eta.remaining(row["age_ms"], share / 100) for share in (50, 90)}
    return RunningSaga(**row)
