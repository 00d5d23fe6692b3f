"""Figures of sliding windows, and the series of the last hour, from the small tables of `warehouse.live`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from warehouse import statistics

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import duckdb

SQL = Path(__file__).parent / "sql" / "live"

WINDOW = timedelta(seconds=10)
"""What is counted together; every sliding window is some of these."""
SPANS = {
    "1m": timedelta(minutes=1),
    "5m": timedelta(minutes=5),
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
}
"""The sliding windows by name, the shortest first."""
MOST_STEPS = 200
"""So many steps are told of in each sliding window, those that ended most often."""
WORST_STEPS = 5
"""So many are among the slowest, and the most failing."""

SUMS = {
    "step_windows": ("completed", "failed", "timed", "sum_ms"),
    "saga_windows": ("started", "completed", "rolled_back", "failed", "timed", "sum_ms"),
}
"""What a row of each table counts."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Rate = Annotated[float | None, Meta(description="failed / ended; null where nothing ended.")]
Milliseconds = Annotated[
    float | None, Meta(description="Nearest rank, of merged buckets: at most 1 % off. Null where no duration is known.")
]


class SagaFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Sagas of one kind, or all, in a sliding window. Durations are of those that ended, from start to end."""

    saga_name: Annotated[str | None, Meta(description="Null: of all.")]
    started: int
    completed: int
    rolled_back: Annotated[int, Meta(description="Ended in failure, with all undone that had to be.")]
    failed: Annotated[int, Meta(description="Ended in failure, with something left.")]
    started_per_minute: float
    completed_per_minute: float
    failed_per_minute: Annotated[float, Meta(description="Of those that ended in failure, rolled back or not.")]
    failure_rate: Rate
    avg_ms: float | None
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    p99_ms: Milliseconds


class StepFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Executions of one step, or of its compensation, or of all steps and compensations, in a sliding window."""

    saga_name: Annotated[str | None, Meta(description="Null: of all.")]
    step_name: Annotated[str | None, Meta(description="Null: of all.")]
    phase: Annotated[str | None, Meta(description="step or compensation; null: of all.")]
    completed: int
    failed: int
    completed_per_minute: float
    failed_per_minute: float
    failure_rate: Rate
    avg_ms: float | None
    p50_ms: Milliseconds
    p95_ms: Milliseconds
    p99_ms: Milliseconds


Figure = TypeVar("Figure", SagaFigures, StepFigures)


class SlidingWindow(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in the last minute, five minutes …: events whose timestamp is in [since, until)."""

    name: Annotated[str, Meta(description="1m, 5m, 15m or 1h.")]
    since: Annotated[
        datetime, Meta(description="The start of a 10 s window: at least the name's span ago, and less than 10 s more.")
    ]
    until: Annotated[datetime, Meta(description="The end of the 10 s window that it is now.")]
    elapsed_seconds: Annotated[float, Meta(description="From `since` to now: what rates are by.")]
    all_sagas: SagaFigures
    all_steps: StepFigures
    sagas: list[SagaFigures]
    steps: Annotated[list[StepFigures], Meta(description="By saga and step; the 200 that ended most often.")]
    steps_known: Annotated[int, Meta(description="How many there are.")]
    slowest: Annotated[list[StepFigures], Meta(description="The 5 steps with the largest p95.")]
    most_failing: Annotated[list[StepFigures], Meta(description="The 5 steps that failed most often, if they did.")]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """The last hour in windows of 10 s; the n-th value is of the window that starts at first + n * width."""

    first: datetime
    width_seconds: int
    started: list[int]
    completed: list[int]
    failed: Annotated[list[int], Meta(description="Ended in failure, rolled back or not.")]
    p50_ms: Annotated[list[float | None], Meta(description="Of all steps and compensations.")]
    p95_ms: list[float | None]
    p99_ms: list[float | None]
    open_since: Annotated[
        datetime | None,
        Meta(description="Windows from here on the job has not closed yet: they may still change. Null: all are open."),
    ]


class Point(NamedTuple):
    """A window of the series."""

    started: int = 0
    completed: int = 0
    failed: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


def window_of(moment: datetime) -> datetime:
    """The start of the 10 s window that the moment is in."""
    return moment - (moment - EPOCH) % WINDOW


class Figures:
    """Computes them; what did not change since the last time is not computed again."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Figures of what these tables hold.

        Args:
            connection: With the tables `step_windows` and `saga_windows`.
        """
        self._connection = connection
        self._points: dict[datetime, Point] = {}
        self._changed: set[datetime] = set()
        self._settled_since: list[datetime] = []
        self._queries = [_query("figures", table) for table in SUMS]
        self._point = Template((SQL / "points.sql").read_text(encoding="utf-8")).substitute(
            bucket_ms=statistics.BUCKET_MS
        )

    def mark_changed(self, starts: Collection[datetime]) -> None:
        """Rows were added to these windows."""
        self._changed.update(starts)
        if self._settled_since and any(start < self._settled_since[0] for start in starts):
            self._settled_since = []

    def forget(self) -> None:
        """All rows are gone, or others than one was told of."""
        self._points.clear()
        self._changed.clear()
        self._settled_since = []

    def trim(self, since: datetime) -> None:
        """Windows before that are gone."""
        self._points = {start: point for start, point in self._points.items() if start >= since}
        self._changed = {start for start in self._changed if start >= since}

    def series(self, now: datetime, closed_until: datetime | None) -> Series:
        """The last hour, the window that it is now included."""
        if self._changed:
            rows = self._connection.execute(self._point, {"starts": list(self._changed)}).fetchall()
            self._points |= {
                start: Point(started, completed, failed, *map(_rounded, percentiles))
                for start, started, completed, failed, *percentiles in rows
            }
            self._changed.clear()
        return series_of(self._points, now, closed_until)

    def windows(self, now: datetime) -> list[SlidingWindow]:
        """Each sliding window as of now, the shortest first."""
        until = window_of(now) + WINDOW
        since = [window_of(now - span) for span in SPANS.values()]
        if since != self._settled_since:
            bounds = {f"since_{n}": moment for n, moment in enumerate(since)}
            for table in SUMS:
                query = f"CREATE OR REPLACE TEMP TABLE settled_{table} AS {_query('settled', table)}"
                self._connection.execute(query, bounds)
            self._settled_since = since
        steps, sagas = (
            self._connection.execute(query, {"since": since[0], "until": until}).fetchall() for query in self._queries
        )
        return [
            sliding_window(
                name,
                since[n],
                now,
                [row[1:] for row in steps if row[0] == n],
                [row[1:] for row in sagas if row[0] == n],
            )
            for n, name in enumerate(SPANS)
        ]


def series_of(points: Mapping[datetime, Point], now: datetime, closed_until: datetime | None) -> Series:
    """The last hour, the window that it is now included, from the points that there are by the start of their windows."""
    last = window_of(now)
    first = last - SPANS["1h"] + WINDOW
    row = [points.get(first + n * WINDOW, Point()) for n in range((last - first) // WINDOW + 1)]
    return Series(
        first=first,
        width_seconds=int(WINDOW.total_seconds()),
        started=[point.started for point in row],
        completed=[point.completed for point in row],
        failed=[point.failed for point in row],
        p50_ms=[point.p50_ms for point in row],
        p95_ms=[point.p95_ms for point in row],
        p99_ms=[point.p99_ms for point in row],
        open_since=None if closed_until is None else min(max(window_of(closed_until), first), last + WINDOW),
    )


def _query(file: str, windows: str) -> str:
    return Template((SQL / f"{file}.sql").read_text(encoding="utf-8")).substitute(
        windows=windows,
        settled=f"settled_{windows}",
        names=", ".join(SUMS[windows]),
        sums=", ".join(f"sum({name}::DOUBLE) AS {name}" for name in SUMS[windows]),
        bucket_ms=statistics.BUCKET_MS,
    )


def sliding_window(name: str, since: datetime, now: datetime, steps: list[Any], sagas: list[Any]) -> SlidingWindow:
    """A sliding window from its rows as `figures.sql` has them, without the span."""
    minutes = (now - since).total_seconds() / 60
    all_steps, known = _split([_step(row, minutes) for row in steps])
    all_sagas, kinds = _split([_saga(row, minutes) for row in sagas])
    shown = sorted(known, key=lambda step: -(step.completed + step.failed))[:MOST_STEPS]
    failing = [step for step in known if step.failed]
    return SlidingWindow(
        name=name,
        since=since,
        until=window_of(now) + WINDOW,
        elapsed_seconds=round(minutes * 60, 3),
        all_sagas=all_sagas or _saga((*[None] * 3, *[0] * 6, *[None] * 3), minutes),
        all_steps=all_steps or _step((*[None] * 3, *[0] * 4, *[None] * 3), minutes),
        sagas=kinds,
        steps=sorted(shown, key=lambda step: (step.saga_name or "", step.step_name or "", step.phase or "")),
        steps_known=len(known),
        slowest=sorted(known, key=lambda step: -(step.p95_ms or 0))[:WORST_STEPS],
        most_failing=sorted(failing, key=lambda step: (-step.failed, -(step.failure_rate or 0)))[:WORST_STEPS],
    )


def _split(rows: list[Figure]) -> tuple[Figure | None, list[Figure]]:
    """The one of all, and the others."""
    return next((row for row in rows if row.saga_name is None), None), [
        row for row in rows if row.saga_name is not None
    ]


def _saga(row: Any, minutes: float) -> SagaFigures:
    saga_name, _, _, started, completed, rolled_back, failed, timed, sum_ms, *percentiles = row
    bad = rolled_back + failed
    return SagaFigures(
        saga_name=saga_name,
        started=int(started),
        completed=int(completed),
        rolled_back=int(rolled_back),
        failed=int(failed),
        started_per_minute=round(started / minutes, 3),
        completed_per_minute=round(completed / minutes, 3),
        failed_per_minute=round(bad / minutes, 3),
        failure_rate=round(bad / (completed + bad), 6) if completed + bad else None,
        **_durations(timed, sum_ms, percentiles),
    )


def _step(row: Any, minutes: float) -> StepFigures:
    saga_name, step_name, phase, completed, failed, timed, sum_ms, *percentiles = row
    return StepFigures(
        saga_name=saga_name,
        step_name=step_name,
        phase=phase,
        completed=int(completed),
        failed=int(failed),
        completed_per_minute=round(completed / minutes, 3),
        failed_per_minute=round(failed / minutes, 3),
        failure_rate=round(failed / (completed + failed), 6) if completed + failed else None,
        **_durations(timed, sum_ms, percentiles),
    )


def _durations(timed: float, sum_ms: float | None, percentiles: list[float | None]) -> dict[str, Any]:
    p50, p95, p99 = map(_rounded, percentiles)
    return {
        "avg_ms": _rounded(sum_ms / timed if timed and sum_ms is not None else None),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
