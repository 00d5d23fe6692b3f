"""The HTTP API: what it answers is what the tables hold, and what it can't answer is told with the cure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.dashboard.answers import Flow, Problem, ReportAbout, ReportAnswer, Rows, System, WholeSaga
from tests.warehouse.live_oracle import SCRIPT
from warehouse import history, reports
from warehouse.live_frame import Frame
from warehouse.live_running import RunningPage

if TYPE_CHECKING:
    from tests.pipelines.dashboard.conftest import Served
    from warehouse.settings import Settings

T = TypeVar("T")


def answer(served: Served, path: str, kind: type[T]) -> T:
    """The answer, which has to be of that kind."""
    got = served.get(path)
    assert (got.status_code, got.headers["content-type"]) == (200, "application/json"), got.text
    assert got.headers["x-content-type-options"] == "nosniff"
    return msgspec.json.decode(got.content, type=kind)


def test_the_newest_frame_is_that_of_the_tables(served: Served, planted: Settings) -> None:
    """Counts of the last hour, active sagas, the snapshot's id."""
    frame = answer(served, "/api/v1/live", Frame)
    hour = frame.windows[-1]
    assert (hour.all_sagas.started, hour.all_sagas.completed, hour.all_sagas.rolled_back) == (5, 1, 2)
    assert [(kind.saga_name, kind.active) for kind in frame.active_sagas] == [(SCRIPT, 1), ("order", 1)]
    with history.open(planted) as tables:
        [(snapshot,)] = tables.sql("SELECT snapshot_id::VARCHAR FROM snapshots WHERE table_name = 'events'").fetchall()
    assert frame.snapshot_id == snapshot
    assert frame.freshness.stale is None


def test_running_sagas(served: Served) -> None:
    """Searched by text that is data; a name with markup comes back as it is."""
    page = answer(served, "/api/v1/running?search=%3Cscript&limit=10", RunningPage)
    assert (page.matching, [saga.saga_name for saga in page.sagas]) == (1, [SCRIPT])
    page = answer(served, "/api/v1/running?sort=silent&descending=false&limit=1", RunningPage)
    assert (page.matching, page.sagas[0].run_id) == (2, "r5")
    assert page.sagas[0].steps_remaining == 1


def test_sagas_are_listed_and_shown_whole(served: Served) -> None:
    """By status and kind; one with its steps, compensations and events, and what it left behind."""
    rows = answer(served, "/api/v1/sagas?status=failed&order=ended", Rows)
    assert [dict(zip(rows.columns, row, strict=True))["saga_id"] for row in rows.rows] == ["s4", "s2"]
    assert len(answer(served, "/api/v1/sagas?since=1h&saga=ord*&status=open&status=completed", Rows).rows) == 2
    whole = answer(served, "/api/v1/sagas/s4", WholeSaga)
    assert (whole.run["saga_name"], whole.run["outcome"]) == (SCRIPT, "rolled_back")
    assert [(step["step_name"], step["phase"], step["status"]) for step in whole.steps] == [
        ("pay", "step", "completed"),
        ("ship", "step", "failed"),
        ("pay", "compensation", "completed"),
    ]
    assert [event["sequence"] for event in whole.events] == list(range(8))
    assert answer(served, "/api/v1/sagas/r4", WholeSaga) == whole
    assert answer(served, "/api/v1/sagas/s3", WholeSaga).run["outcome"] is None


def test_reports_answer_as_the_history_does(served: Served, planted: Settings) -> None:
    """Each that takes nothing more; the list names all."""
    listed = answer(served, "/api/v1/reports", list[ReportAbout])
    assert [report.name for report in listed] == list(reports.NAMES)
    for name in ("step_statistics", "most_failing_steps", "running_sagas", "slowest_sagas"):
        got = answer(served, f"/api/v1/reports/{name}?since=1h&saga=order", ReportAnswer)
        with history.open(planted, got.since) as tables:
            told = tables.sql(*reports.ask(name, "order"))
            assert got.columns == told.columns
            assert len(got.rows) == len(told.fetchall()) >= 1


def test_a_flow_is_its_definition_with_figures(served: Served) -> None:
    """Steps with what they wait for; without a definition the steps that ended."""
    flow = answer(served, "/api/v1/flows/order?window=1h", Flow)
    assert [(step.step_name, step.depends_on, step.compensable, step.pivot) for step in flow.steps] == [
        ("pay", [], True, False),
        ("ship", ["pay"], False, True),
    ]
    pay, ship = flow.steps
    assert pay.step
    assert (pay.step.completed, pay.step.failed, pay.compensation, ship.step) == (2, 1, None, None)
    undefined = answer(served, f"/api/v1/flows/{quote(SCRIPT)}", Flow)
    assert (undefined.saga_name, undefined.definition_id) == (SCRIPT, None)
    assert [step.step_name for step in undefined.steps] == ["pay", "ship"]


def test_the_system_page(served: Served) -> None:
    """Snapshots of all tables; no lag without a broker, and why."""
    system = answer(served, "/api/v1/system", System)
    assert {table.table_name for table in system.tables} >= {"events", "step_stats", "saga_definitions"}
    assert (system.lag, system.commits_last_minute, system.job_pid) == ([], 1, None)
    assert system.lag_unknown
    assert "sagascope up" in system.lag_unknown


def test_metrics_are_those_of_the_frame(served: Served) -> None:
    """Prometheus reads them; each has a text, seconds and ratios are named so, and labels are data."""
    text = served.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(family.documentation for family in families.values())
    active = {sample.labels["saga"]: sample.value for sample in families["sagascope_live_sagas_active"].samples}
    assert active == {"order": 1, SCRIPT: 1}
    frame = answer(served, "/api/v1/live", Frame)
    [p95] = [
        sample.value
        for sample in families["sagascope_live_step_duration_seconds"].samples
        if sample.labels == {"window": "1h", "saga": "", "step": "", "phase": "", "quantile": "0.95"}
    ]
    assert frame.windows[-1].all_steps.p95_ms
    assert p95 == pytest.approx(frame.windows[-1].all_steps.p95_ms / 1000)
    [rate] = [
        sample.value
        for sample in families["sagascope_live_saga_failure_ratio"].samples
        if sample.labels == {"window": "1h", "saga": ""}
    ]
    assert rate == pytest.approx(2 / 3, abs=1e-6)


def test_health(served: Served) -> None:
    """The server is there, and has numbers."""
    assert served.get("/healthz").json() == {"ok": True}
    assert served.get("/readyz").json() == {"ok": True}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/running?sort=x", (422, "no sort 'x'", "x", "sort is one of age, silent")),
        ("/api/v1/running?limit=0", (422, "limit: Input should be greater than or equal to 1", "0", "/docs")),
        ("/api/v1/running?limit=many", (422, "limit: Input should be a valid integer", "many", "/docs")),
        ("/api/v1/sagas?status=lost", (422, "status", "lost", "/docs")),
        ("/api/v1/sagas?attribute=acme", (422, "'acme' is no attribute; write key=value", None, "/docs")),
        ("/api/v1/sagas?since=yesterdayish", (422, "'yesterdayish' is neither a moment", None, "/docs")),
        ("/api/v1/sagas?since=2999-01-01", (422, "is in the future", None, "/docs")),
        ("/api/v1/sagas?since=1h&until=2h", (422, "is after until", None, "/docs")),
        ("/api/v1/sagas/nobody", (404, "no event of a saga or a run 'nobody'", "nobody", "/api/v1/sagas")),
        ("/api/v1/reports/nothing", (404, "no report 'nothing'; there are running_sagas", None, "/docs")),
        ("/api/v1/reports/before_after", (422, "needs the moment", None, "/docs")),
        ("/api/v1/reports/sla_compliance", (422, "needs a YAML file of targets", None, "/docs")),
        ("/api/v1/flows/nothing", (404, "no kind of saga 'nothing'", "nothing", "/api/v1/live")),
        ("/api/v1/flows/order?window=2h", (422, "no window '2h'", "2h", "1m, 5m, 15m, 1h")),
        ("/nowhere", (404, "Not Found", "/nowhere", "/docs")),
    ],
)
def test_what_cant_be_answered_is_told(served: Served, path: str, expected: tuple[int, str, str | None, str]) -> None:
    """As JSON that names the value and the cure."""
    status, error, value, cure = expected
    got = served.get(path)
    problem = msgspec.json.decode(got.content, type=Problem)
    assert got.status_code == status
    assert error in problem.error
    assert problem.value == value
    assert problem.cure
    assert cure in problem.cure


def references(node: Any) -> set[str]:
    """All that a document refers to."""
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_the_api_is_described(served: Served) -> None:
    """Each route with its answer's schema and a text; what is referred to is there; the page of it loads nothing."""
    document = served.get("/openapi.json").json()
    for reference in references(document):
        place = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    for path, operations in document["paths"].items():
        assert operations["get"]["description"], path
        if path not in {"/metrics", "/api/v1/stream"}:
            assert operations["get"]["responses"]["200"]["content"]["application/json"]["schema"], path
    assert document["components"]["schemas"]["Frame"]["properties"]["windows"]["description"]
    page = served.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"https?://|<script|@import", page.text)
    assert all(path in page.text for path in document["paths"])
    assert served.get("/", follow_redirects=True).text == page.text
