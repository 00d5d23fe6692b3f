"""What the HTTP API answers, beside the live frame."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from warehouse.live_figures import StepFigures


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer."""

    error: str
    value: Annotated[str | None, Meta(description="What was given that can't be used.")] = None
    cure: Annotated[str | None, Meta(description="What to do.")] = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server is there, or has numbers to show."""

    ok: bool


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a query. Moments are ISO 8601, UTC."""

    columns: list[str]
    rows: list[list[Any]]


class ReportAbout(msgspec.Struct, frozen=True, kw_only=True):
    """A named report."""

    name: str
    title: str
    doc: Annotated[str, Meta(description="What it tells.")]
    span_seconds: Annotated[float, Meta(description="How far back it looks unless told.")]
    takes: Annotated[str | None, Meta(description="What must be given beside the usual: moment, or targets.")]


class ReportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A report's rows, and over what."""

    report: ReportAbout
    since: datetime
    until: datetime | None
    columns: list[str]
    rows: list[list[Any]]


class WholeSaga(msgspec.Struct, frozen=True, kw_only=True):
    """A run with all that is known of it."""

    run: Annotated[
        dict[str, Any],
        Meta(
            description="A row of the view `runs`: outcome (null: open), started_at, ended_at, total_ms, residual_effects …"
        ),
    ]
    steps: Annotated[
        list[dict[str, Any]],
        Meta(
            description="Rows of `step_runs`: each execution of a step or compensation, with phase, attempt, status, start, end."
        ),
    ]
    events: Annotated[
        list[dict[str, Any]], Meta(description="Rows of `events`, each id once, in the order of the run.")
    ]
    earlier_runs: Annotated[list[str], Meta(description="Run ids of the same saga, the newest first.")]


class FlowStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a saga's definition, and how it goes."""

    step_name: str
    depends_on: list[str]
    compensable: bool
    pivot: Annotated[bool, Meta(description="Once it completed there is no way back.")]
    timeout_seconds: float | None
    step: Annotated[StepFigures | None, Meta(description="Null: it did not end within the window.")]
    compensation: StepFigures | None


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of saga as a graph."""

    saga_name: str
    definition_id: Annotated[
        str | None, Meta(description="Null: no definition is known; the steps are those that ended.")
    ]
    window: Annotated[str, Meta(description="The sliding window that the figures are of.")]
    steps: list[FlowStep]


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    """A table's newest snapshot."""

    table_name: str
    snapshot_id: Annotated[str | None, Meta(description="As text: it has more digits than a number in JavaScript.")]
    committed_at: datetime | None


class PartitionLag(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition of the topic holds that is not stored yet."""

    partition: int
    end: Annotated[int, Meta(description="The offset that the next record gets.")]
    stored: Annotated[
        int | None, Meta(description="The last offset of which a row is known; null: none within the days looked at.")
    ]
    lag: int


class System(msgspec.Struct, frozen=True, kw_only=True):
    """How the parts of Sagascope are."""

    home: str
    job_pid: Annotated[str | None, Meta(description="Of the analytics job on this machine; null: none runs.")]
    viewers: Annotated[int, Meta(description="Open streams.")]
    frames: Annotated[int, Meta(description="Made since the start.")]
    refresh_ms: Annotated[float, Meta(description="How long the newest look at the tables took.")]
    commits_last_minute: int
    tables: list[TableState]
    topic: str
    lag: list[PartitionLag]
    lag_unknown: Annotated[str | None, Meta(description="Why no lag is told; null: it is.")]
