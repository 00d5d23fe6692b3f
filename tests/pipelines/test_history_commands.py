"""`sagascope report` and `sagascope sagas`, as a user runs them, over a small lake."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet
from pyiceberg.io.pyarrow import schema_to_pyarrow

from pipelines.history_commands import Status, outcomes
from tests.warehouse.test_saga_runs import START_MS, told
from warehouse.catalog import open_catalog
from warehouse.saga_runs import OUTCOMES
from warehouse.settings import Settings
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime.now(UTC).replace(microsecond=0)
ENDED = ["> ", "( reserve", "+ reserve", "( charge", "! charge", "[ reserve", "- reserve", "= rolled_back"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose tables hold four runs: three that ended two days ago, one that has been open for an hour."""
    folder: Path = tmp_path_factory.mktemp("history") / "home"
    settings = Settings(home=str(folder))
    stories = [
        (told(*ENDED, run="a", attributes={"tenant": "acme"}), timedelta(days=2)),
        (told("> ", "( reserve", "+ reserve", "= completed", run="b", saga_id="s-a"), timedelta(days=3)),
        (told("> ", "( pay", "+ pay", "= completed", run="c", saga_name="refund"), timedelta(days=2)),
        (told("> ", "( pay", run="d", saga_name="refund"), timedelta(hours=1)),
    ]
    rows: list[dict[str, Any]] = []
    for events, age in stories:
        for one in events:
            moment = NOW - age + timedelta(milliseconds=one.timestamp - START_MS)
            source = {"source_topic": "t", "source_partition": 0, "source_offset": len(rows)}
            rows.append(msgspec.structs.asdict(one) | {"timestamp": moment, "event_type": str(one.event_type)} | source)
    table = open_catalog(settings).load_table(EVENTS.identifier)
    table.append(pa.Table.from_pylist(rows, schema=schema_to_pyarrow(table.schema(), include_field_ids=False)))
    return folder


@pytest.fixture
def sagascope(home: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run `sagascope …` there."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments],
            env=os.environ | {"SAGASCOPE_HOME": str(home)} | variables,
            capture_output=True,
            check=False,
            timeout=60,
        )

    return run


def test_a_report_has_the_same_rows_in_each_format(sagascope: Callable[..., Any]) -> None:
    """Table, CSV, JSON lines and Parquet; Parquet keeps types, lists in CSV are JSON."""
    ask = ("report", "failure_patterns", "--since", "7d", "--format")
    [row] = map(json.loads, sagascope(*ask, "json").stdout.splitlines())
    assert (row["error_type"], row["sagas"], row["saga_names"]) == ("Oops", 1, ["order"])
    [line] = csv.DictReader(io.StringIO(sagascope(*ask, "csv").stdout.decode()))
    assert (line["pattern"], line["sagas"], json.loads(line["saga_names"])) == ("charge broke", "1", ["order"])
    written = parquet.read_table(pa.BufferReader(sagascope(*ask, "parquet").stdout))
    assert written.to_pylist()[0]["saga_names"] == ["order"]
    assert written.schema.field("sagas").type == pa.int64()
    table = sagascope(*ask, "table").stdout.decode()
    assert "Oops" in table
    assert "[" not in table


def test_a_report_goes_into_a_file(sagascope: Callable[..., Any], tmp_path: Path) -> None:
    """In each format what standard output would have had; a page has the rows and its chart in it."""
    ask = ("report", "failure_patterns", "--since", "7d", "--format")
    for output in ("table", "csv", "json", "parquet"):
        file = tmp_path / f"report.{output}"
        done = sagascope(*ask, output, "--to", str(file))
        assert (done.returncode, done.stdout) == (0, b"")
        assert file.read_bytes() == sagascope(*ask, output).stdout
    sagascope(*ask, "html", "--saga", "ord*", "--attribute", "tenant=acme", "--to", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("<h1>failure patterns</h1>", "charge broke", "<dt>tenant</dt><dd>acme</dd>", "ord*", "Plotly.newPlot"):
        assert part in page


def test_a_report_by_targets_and_one_by_a_moment(sagascope: Callable[..., Any], tmp_path: Path) -> None:
    """Targets come from a file or from the setting; a moment lies within the span."""
    file = tmp_path / "targets.yaml"
    file.write_text("- {saga: refund, max_failure_rate: 0.5}\n", encoding="utf-8")
    ask = ("report", "sla_compliance", "--format", "json")
    row = json.loads(sagascope(*ask, "--targets", str(file)).stdout)
    assert (row["saga_name"], row["ended"], row["is_met"]) == ("refund", 1, True)
    assert json.loads(sagascope(*ask, SAGASCOPE_TARGETS_FILE=str(file)).stdout) == row
    done = sagascope("report", "before_after", "--at", "60h", "--format", "json", "--saga", "order")
    row = json.loads(done.stdout)
    assert (row["sagas_before"], row["sagas_after"], row["failure_rate_after"]) == (1, 1, 1.0)


def test_a_report_looks_back_as_far_as_is_usual_for_it(sagascope: Callable[..., Any]) -> None:
    """Five minutes for the failure rate, unless told; and no further than --until."""
    assert sagascope("report", "failure_rate", "--format", "json").stdout == b""
    row = json.loads(sagascope("report", "failure_rate", "--since", "60h", "--saga", "ord*", "--format", "json").stdout)
    assert (row["saga_name"], row["ended"], row["failure_rate"]) == ("order", 1, 1.0)
    until = (NOW - timedelta(hours=60)).isoformat()
    row = json.loads(sagascope("report", "daily_trend", "--until", until, "--format", "json").stdout)
    assert (row["day"], row["ended"], row["failed"]) == ((NOW - timedelta(days=3)).date().isoformat(), 1, 0)


def test_a_report_is_sliced_by_attribute(sagascope: Callable[..., Any]) -> None:
    """Only runs with that very value count."""
    ask = ("report", "variants", "--format", "json", "--attribute")
    row = json.loads(sagascope(*ask, "tenant=acme").stdout)
    assert row["variant"] == "reserve > !charge > -reserve"
    assert sagascope(*ask, "tenant=other").stdout == b""


def test_without_a_name_the_reports_are_listed(sagascope: Callable[..., Any]) -> None:
    """Who does not know what there is, asks."""
    listed = sagascope("report").stdout.decode()
    assert "most_failing_steps" in listed
    assert "Which steps fail most" in listed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["report", "nope"], 2, "no report 'nope'"),
        (["report", "variants", "--attribute", "acme"], 2, "key=value, like"),
        (["report", "variants", "--since", "soon"], 2, "neither a moment"),
        (["report", "variants", "--since", "2026-11-21", "--until", "2026-11-20"], 1, "is after until"),
        (["report", "variants", "--at", "1h"], 2, "variants takes no moment"),
        (["report", "variants", "--targets", "t.yaml"], 2, "variants takes no targets"),
        (["report", "before_after"], 2, "needs the moment"),
        (["report", "before_after", "--at", "9d"], 2, "is not between --since"),
        (["report", "sla_compliance"], 2, "SAGASCOPE_TARGETS_FILE"),
        (["report", "sla_compliance", "--targets", "/nope.yaml"], 1, "/nope.yaml: the targets can't be read"),
        (["report", "variants", "--to", "/nope/r.csv", "--format", "csv"], 1, "No such file or directory"),
        (["sagas", "list", "--status", "lost"], 2, "partially_committed"),
        (["sagas", "list", "--limit", "0"], 2, "--limit"),
        (["sagas", "show", "nope"], 1, "no event of a saga or a run 'nope'"),
    ],
)
def test_what_cannot_be_is_said(sagascope: Callable[..., Any], arguments: list[str], code: int, said: str) -> None:
    """The value and what is allowed, and an exit code that is not 0; no traceback."""
    done = sagascope(*arguments)
    told = " ".join((done.stdout + done.stderr).decode().replace("│", " ").split())
    assert done.returncode == code
    assert said in told
    assert "Traceback" not in told


def test_runs_are_found(sagascope: Callable[..., Any]) -> None:
    """By status, name and time, the longest first if asked; counted by kind and status."""

    def listed(*arguments: str) -> list[str]:
        return [
            json.loads(line)["run_id"]
            for line in sagascope("sagas", "list", "--format", "json", *arguments).stdout.splitlines()
        ]

    assert listed() == ["d", "a", "c", "b"]
    assert listed("--order", "duration") == ["d", "a", "b", "c"]
    assert listed("--order", "ended", "--limit", "2") == ["d", "a"]
    assert listed("--status", "failed") == ["a"]
    assert listed("--status", "open", "--status", "rolled_back") == ["d", "a"]
    assert listed("--saga", "ref*", "--since", "2h") == ["d"]
    assert listed("--attribute", "tenant=acme") == ["a"]
    counted = [json.loads(line) for line in sagascope("sagas", "count", "--format", "json").stdout.splitlines()]
    assert [tuple(row.values()) for row in counted] == [
        ("order", "completed", 1),
        ("order", "rolled_back", 1),
        ("refund", "completed", 1),
        ("refund", "open", 1),
    ]


def test_a_run_is_drawn(sagascope: Callable[..., Any]) -> None:
    """Its outcome, its error and a bar for each execution, where it was; the newest run of a saga that ran twice."""
    drawn = sagascope("sagas", "show", "s-a").stdout.decode()
    lines = drawn.splitlines()
    assert lines[0].rstrip() == "order s-a  rolled_back in 7,000 ms"
    assert "charge failed: Oops charge broke" in drawn
    assert "wasted: 200 ms" in drawn
    assert "tenant=acme" in drawn
    assert "earlier runs of this saga: b" in drawn
    bars = {line[:13].strip(): line for line in lines if "ms  " in line and "+" in line}
    assert list(bars) == ["reserve", "charge", "undo reserve"]
    places = [(line.index(mark), line.rindex(mark)) for line, mark in zip(bars.values(), "█▓█", strict=True)]
    assert places == sorted(places)
    assert "failed: Oops" in bars["charge"]


def test_an_open_run_is_drawn(sagascope: Callable[..., Any]) -> None:
    """By its run id; a step that has not ended has no duration."""
    drawn = sagascope("sagas", "show", "d").stdout.decode()
    assert drawn.startswith("refund s-d  open")
    [bar] = [line for line in drawn.splitlines() if line.startswith("pay")]
    assert "░" in bar
    assert bar.split()[-1] == "started"


def test_statuses_are_theoutcomes() -> None:
    """Each outcome can be asked for, and `failed` means each of them but completed."""
    assert set(outcomes(None)) == {*OUTCOMES, "open"}
    assert set(outcomes([Status.FAILED])) == set(OUTCOMES) - {"completed"}
