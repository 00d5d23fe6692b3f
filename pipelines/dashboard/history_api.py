"""The routes of what has been: runs, reports; and how the parts of Sagascope are."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path as File
from typing import Annotated

import anyio
import msgspec
from fastapi import APIRouter, Path, Query
from kafka.errors import KafkaError

from pipelines import stack
from pipelines.dashboard.answers import (
    PartitionLag,
    ReportAbout,
    ReportAnswer,
    Rows,
    System,
    TableState,
    WholeSaga,
)
from pipelines.dashboard.api import Json
from pipelines.dashboard.documents import answered
from pipelines.dashboard.feed import Feed, NotReadyError
from pipelines.dashboard.problems import NotFoundError
from pipelines.dashboard.questions import Questions
from pipelines.history_commands import Order, Status, check_moment, entries_of, outcomes, targets_for
from pipelines.moments import parse_moment, parse_since
from warehouse import claims, parity, reports, whole_runs
from warehouse.history import History
from warehouse.reports import Report
from warehouse.settings import Settings

MOST_SAGAS = 1_000
SHORT_SECONDS = 0.5
"""A broker on which nobody listens is known by then."""
LAG_KEPT_SECONDS = 5.0

Since = Annotated[str | None, Query(description="Only from here: 2026-11-23T10:00 (UTC), or 7d ago.")]
Until = Annotated[str | None, Query(description="Only before this moment; the same ways of writing.")]
Saga = Annotated[str, Query(description="Only kinds of saga of such a name: order*.")]
Attributes = Annotated[list[str] | None, Query(description="Only runs with this attribute, key=value; repeatable.")]


def routes(settings: Settings, feed: Feed, questions: Questions) -> APIRouter:
    """The routes over the history."""
    router = APIRouter(default_response_class=Json)
    lags = _Lags(settings, feed)

    @router.get("/api/v1/sagas", tags=["history"], responses=answered(Rows, "Runs, a row each"))
    async def sagas(
        *,
        status: Annotated[
            list[Status] | None, Query(description="Only these; failed: all that ended otherwise.")
        ] = None,
        saga: Saga = "*",
        since: Since = None,
        until: Until = None,
        attribute: Attributes = None,
        order: Annotated[Order, Query(description="What comes first.")] = Order.STARTED,
        limit: Annotated[int, Query(ge=1, le=MOST_SAGAS)] = 50,
    ) -> Json:
        """Runs that ended since then, and open ones of which something was heard since then."""
        query, parameters = reports.ask_runs(outcomes(status), order.value, limit, saga, entries_of(attribute))
        question = ("sagas", tuple(status or ()), saga, since, until, tuple(attribute or ()), order, limit)
        answer = await questions.ask(question, lambda tables: _rows(tables, query, parameters), *_span(since, until))
        return Json(answer)

    @router.get("/api/v1/sagas/{identity:path}", tags=["history"], responses=answered(WholeSaga, "A run, whole"))
    async def saga_of(
        identity: Annotated[str, Path(description="A saga's id, or a run's.")], since: Since = None, until: Until = None
    ) -> Json:
        """A run with its steps and compensations, its residual effects and its events. Of a saga that ran again, the newest run."""

        def whole(tables: History) -> WholeSaga:
            found = whole_runs.find(tables, identity)
            if found is None:
                raise NotFoundError("event of a saga or a run", identity, "look for it in /api/v1/sagas")
            return WholeSaga(
                run=found.run,
                steps=found.steps,
                events=whole_runs.events_of(tables, found.run["run_id"]),
                earlier_runs=found.earlier,
            )

        return Json(await questions.ask(("saga", identity, since, until), whole, *_span(since, until)))

    @router.get("/api/v1/reports", tags=["history"], responses=answered(list[ReportAbout], "The reports"))
    async def reports_list() -> Json:
        """Which reports there are."""
        return Json(msgspec.json.encode([_about(reports.load(name)) for name in reports.NAMES]))

    @router.get("/api/v1/reports/{name}", tags=["history"], responses=answered(ReportAnswer, "The report's rows"))
    async def report(
        name: Annotated[str, Path()],
        *,
        since: Since = None,
        until: Until = None,
        saga: Saga = "*",
        attribute: Attributes = None,
        at: Annotated[str | None, Query(description="before_after: the moment, e.g. of a deployment.")] = None,
    ) -> Json:
        """A report, by default over the span that is usual for it. `sla_compliance` takes its targets from SAGASCOPE_TARGETS_FILE."""
        asked = reports.load(name)
        begin, end = _span(since, until)
        begin = begin or (end or datetime.now(UTC)) - asked.span
        moment = parse_moment(at) if at else None
        check_moment(asked, begin, moment, end)
        file = File(settings.targets_file) if settings.targets_file and asked.takes == "targets" else None
        targets = targets_for(asked, file, settings)
        query, parameters = reports.ask(name, saga, entries_of(attribute), moment=moment, targets=targets)

        def answer(tables: History) -> ReportAnswer:
            found = _rows(tables, query, parameters)
            return ReportAnswer(report=_about(asked), since=begin, until=end, columns=found.columns, rows=found.rows)

        question = ("report", name, since, until, saga, tuple(attribute or ()), at)
        return Json(await questions.ask(question, answer, begin, end))

    @router.get("/api/v1/system", tags=["health"], responses=answered(System, "How the parts are"))
    async def system() -> Json:
        """The tables' newest snapshots, commits, the job, and how far the tables are behind the topic, where that is known."""
        return Json(msgspec.json.encode(await _system(settings, feed, questions, lags)))

    return router


def _span(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Raises typer.BadParameter or FutureMomentError where one is no such moment."""
    return parse_since(since) if since else None, parse_moment(until) if until else None


def _rows(tables: History, query: str, parameters: dict[str, object]) -> Rows:
    answer = tables.sql(query, parameters)
    return Rows(columns=answer.columns, rows=[list(row) for row in answer.fetchall()])


def _about(report: Report) -> ReportAbout:
    return ReportAbout(
        name=report.name,
        title=report.title,
        doc=report.doc,
        span_seconds=report.span.total_seconds(),
        takes=report.takes,
    )


async def _system(settings: Settings, feed: Feed, questions: Questions, lags: _Lags) -> System:
    now = datetime.now(UTC)
    query = "SELECT table_name, snapshot_id::VARCHAR AS snapshot_id, committed_at FROM snapshots ORDER BY table_name"
    try:
        # Of no time at all: which snapshot is the newest does not depend on it, and no file has to be looked at.
        found = await questions.ask(("snapshots",), lambda tables: _rows(tables, query, {}), now, now)
        tables = [
            TableState(table_name=name, snapshot_id=snapshot_id, committed_at=committed_at)
            for name, snapshot_id, committed_at in msgspec.json.decode(found, type=Rows).rows
        ]
    except NotReadyError:
        tables = []
    lag, unknown = await anyio.to_thread.run_sync(lags.look)
    return System(
        home=str(settings.root),
        job_pid=claims.job_pid(settings),
        viewers=feed.viewers,
        frames=feed.newest.number,
        refresh_ms=feed.refresh_ms,
        commits_last_minute=feed.commits_since(now - timedelta(minutes=1)),
        tables=tables,
        topic=settings.topic,
        lag=lag,
        lag_unknown=unknown,
    )


class _Lags:
    """How far the tables are behind the topic; asked for once in five seconds, however many want to know."""

    def __init__(self, settings: Settings, feed: Feed) -> None:
        self._settings, self._feed = settings, feed
        self._looked_at = float("-inf")
        self._found: tuple[list[PartitionLag], str | None] = [], None

    def look(self) -> tuple[list[PartitionLag], str | None]:
        """By partition; or why it is not known. Two that ask at once may both look."""
        if time.monotonic() - self._looked_at > LAG_KEPT_SECONDS:
            try:
                self._found = self._lags(), None
            except (stack.StackError, KafkaError, OSError, ValueError, NotReadyError) as error:
                self._found = [], str(error).partition("\n")[0]
            self._looked_at = time.monotonic()
        return self._found

    def _lags(self) -> list[PartitionLag]:
        settings = self._settings
        servers = stack.bootstrap_servers(settings)
        host, _, port = servers.partition(",")[0].rpartition(":")
        try:
            socket.create_connection((host, int(port)), SHORT_SECONDS).close()
        except OSError as error:
            msg = f"nobody answers at {servers} ({error.strerror or error}): `sagascope status` says more"
            raise OSError(msg) from error
        stored = self._feed.live.offsets()
        ends = parity.read_ends(msgspec.structs.replace(settings, bootstrap_servers=servers))
        return [_lag(number, end, stored.get((settings.topic, number))) for number, end in sorted(ends.items())]


def _lag(partition: int, end: int, stored: int | None) -> PartitionLag:
    return PartitionLag(
        partition=partition, end=end, stored=stored, lag=max(end - 1 - (-1 if stored is None else stored), 0)
    )
