"""What the dashboard shows, each panel once: the pages and the Grafana dashboard are both made of these.

Where a value is in a frame is said by its name there, as `browser/frame.js` gives it; where in Prometheus, by a query.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Unit(StrEnum):
    """What a number counts: how it is written, on a page and in Grafana."""

    COUNT = "count"
    PER_MINUTE = "per_minute"
    RATIO = "ratio"
    MILLISECONDS = "milliseconds"


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A value of a tile."""

    name: str
    """In the frame."""
    label: str = ""
    """Where a tile has several."""


class Query(msgspec.Struct, frozen=True):
    """The same value in Prometheus."""

    expression: str
    legend: str = ""


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """A key figure."""

    name: str
    title: str
    help: str
    unit: Unit
    fields: tuple[Field, ...]
    tone: str = "plain"
    """A colour of the style sheet: `--<tone>`."""
    spark: str = ""
    """Of which series the small line is drawn."""
    note: str = ""
    """What is said in place of a comparison."""
    compared: str = ""
    """Which value is compared with the window before."""
    better: str = ""
    """`less` or `more`, where one of them is good news."""
    queries: tuple[Query, ...] = ()
    thresholds: tuple[float, ...] = ()
    """From where on a value is a warning, then a fault."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One series of a chart. Lines are told apart by shape and dashes, too, for those who see no colours."""

    field: str
    label: str
    color: str
    help: str = ""
    shape: str = "line"
    """`line` or `bar`; bars are stacked."""
    dash: tuple[int, ...] | None = None
    width: float = 1.5
    queries: tuple[Query, ...] = ()


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """Series of the last hour."""

    name: str
    title: str
    measure: str
    """What is counted, and per what: beside the title."""
    help: str
    unit: Unit
    lines: tuple[Line, ...]
    empty: str
    """What is said where there is nothing to draw."""
    width_ms: int = 10_000
    """Of a window."""


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """Steps in order of a value."""

    name: str
    title: str
    measure: str
    help: str
    unit: Unit
    fields: tuple[Field, ...]
    tone: str
    empty: str
    queries: tuple[Query, ...] = ()


_WINDOW = 'window="$window"'
_SAGAS = f'{{{_WINDOW}, saga="$saga"}}'
STARTED, COMPLETED, FAILED = (
    Query(f"sagascope_live_sagas_{name}_per_minute{_SAGAS}", name) for name in ("started", "completed", "failed")
)
P50, P95, P99 = (
    Query(f'sagascope_live_step_duration_seconds{{{_WINDOW}, step="", quantile="{quantile}"}}', name)
    for name, quantile in (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99"))
)
"""Of all steps: those of one kind of saga alone have no percentiles of their own."""

TILES = (
    Tile(
        name="active",
        title="Active sagas",
        help="Sagas that started and have not ended",
        unit=Unit.COUNT,
        fields=(Field("active"),),
        spark="active",
        queries=(Query('sum(sagascope_live_sagas_active{saga=~"${saga:regex}.*"})'),),
    ),
    Tile(
        name="started",
        title="Started",
        help="Sagas that started within the window, per minute",
        unit=Unit.PER_MINUTE,
        fields=(Field("started_per_minute"),),
        tone="started",
        spark="started",
        compared="started_per_minute",
        queries=(STARTED,),
    ),
    Tile(
        name="completed",
        title="Completed",
        help="Sagas that ended well within the window, per minute",
        unit=Unit.PER_MINUTE,
        fields=(Field("completed_per_minute"),),
        tone="completed",
        spark="completed",
        compared="completed_per_minute",
        queries=(COMPLETED,),
    ),
    Tile(
        name="failed",
        title="Failed",
        help="Sagas that ended in failure within the window, rolled back or not, per minute",
        unit=Unit.PER_MINUTE,
        fields=(Field("failed_per_minute"),),
        tone="failed",
        spark="failed",
        compared="failed_per_minute",
        queries=(FAILED,),
        better="less",
    ),
    Tile(
        name="failure_rate",
        title="Failure rate",
        help="Sagas that ended in failure, of all that ended within the window",
        unit=Unit.RATIO,
        fields=(Field("failure_rate"),),
        tone="failed",
        spark="failure_rate",
        compared="failure_rate",
        better="less",
        queries=(Query(f"sagascope_live_saga_failure_ratio{_SAGAS}", "failure rate"),),
        thresholds=(0.05, 0.2),
    ),
    Tile(
        name="step_durations",
        title="Step duration",
        help="Steps and compensations that ended within the window, completed or failed: nearest rank, at most 1 % off",
        unit=Unit.MILLISECONDS,
        fields=(Field("p50_ms", "p50"), Field("p95_ms", "p95"), Field("p99_ms", "p99")),
        tone="p95",
        spark="p95_ms",
        note="line: p95 of the last hour",
        queries=(P50, P95, P99),
    ),
)

ENDED = Chart(
    name="ended",
    title="Sagas",
    measure="per 10 s",
    help="What started and what ended in each window of the last hour",
    unit=Unit.COUNT,
    lines=(
        # At the bottom, where they stand on one line and can be compared.
        Line(
            field="failed",
            label="failed",
            color="failed",
            shape="bar",
            help="Ended in failure, rolled back or not",
            queries=(FAILED,),
        ),
        Line(field="completed", label="completed", color="completed-soft", shape="bar", queries=(COMPLETED,)),
        Line(field="started", label="started", color="started", width=1.25, queries=(STARTED,)),
    ),
    empty="No saga started or ended within the last hour",
)

DURATIONS = Chart(
    name="durations",
    title="Step duration",
    measure="per 10 s window",
    help="Percentiles of steps and compensations that ended in each window of the last hour",
    unit=Unit.MILLISECONDS,
    lines=(
        Line(field="p99_ms", label="p99", color="p99", dash=(2, 2), queries=(P99,)),
        Line(field="p95_ms", label="p95", color="p95", width=2, queries=(P95,)),
        Line(field="p50_ms", label="p50", color="p50", dash=(6, 3), queries=(P50,)),
    ),
    empty="No step ended within the last hour",
)

SLOWEST = Ranking(
    name="slowest",
    title="Slowest steps",
    measure="p95",
    help="The steps with the largest 95th percentile",
    unit=Unit.MILLISECONDS,
    fields=(Field("p95_ms"),),
    tone="p95",
    empty="No step ended within this window",
    queries=(
        Query(
            f'topk(5, sagascope_live_step_duration_seconds{{{_WINDOW}, step!="", quantile="0.95"}})',
            "{{saga}} · {{step}} ({{phase}})",
        ),
    ),
)

MOST_FAILING = Ranking(
    name="most_failing",
    title="Most failing steps",
    measure="failure rate",
    help="The steps that failed most often",
    unit=Unit.RATIO,
    fields=(Field("failure_rate"),),
    tone="failed",
    empty="No step failed within this window",
    queries=(
        Query(f'topk(5, sagascope_live_step_failure_ratio{{{_WINDOW}, step!=""}})', "{{saga}} · {{step}} ({{phase}})"),
    ),
)
