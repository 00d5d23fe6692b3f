"""The job's SQL as text, and the plan that Flink makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from jobs.analytics import insert_statements, statements
from jobs.flink import SQL_FOLDER, interval, query, root_cause, statement
from jobs.watching import last_cause
from sagascope.events import SagaEvent
from warehouse.progress import Progress
from warehouse.tables import EVENTS, REJECTED_EVENTS, STATISTICS

if TYPE_CHECKING:
    from warehouse.settings import Settings


@pytest.mark.parametrize(
    ("milliseconds", "literal"),
    [
        (0, "0 00:00:00.000"),
        (5_000, "0 00:00:05.000"),
        (1, "0 00:00:00.001"),
        (90_061_001, "1 01:01:01.001"),
    ],
)
def test_intervals_of_any_length_are_literals(milliseconds: int, literal: str) -> None:
    """Days to milliseconds, each field within its digits."""
    assert interval(milliseconds) == literal


def test_a_quote_in_a_setting_stays_in_its_literal() -> None:
    """A value can't end the string that it stands in."""
    assert "INTERVAL '1'' second' DAY" in statement("saga_stats", {"window": "1' second"})


def test_a_placeholder_without_a_value_is_an_error() -> None:
    """No statement runs with a hole in it."""
    with pytest.raises(KeyError, match="window"):
        statement("saga_stats", {})


def test_every_statement_is_used_and_filled(local: Settings) -> None:
    """Each file of jobs/sql is one statement of the stream or of the recompute, with no placeholder left."""
    rendered = statements(local) + insert_statements(local)
    of_recompute = {"stored_events", "stored_events_once"}
    rendered += [statement(name, {"since": 0, "until": 1}) for name in of_recompute]
    assert len(rendered) == len(list(SQL_FOLDER.glob("*.sql")))
    assert not any("${" in sql for sql in rendered)


def test_the_topic_has_every_field_of_the_event(local: Settings) -> None:
    """No field of SagaEvent is forgotten in the DDL, nor one that it lacks; beside them stands where the record was."""
    columns = re.findall(r"^    `?(\w+)`? [A-Z_]+(?:<[A-Z, ]+>|\(3\))?,", statements(local)[0], re.MULTILINE)
    of_record = ["source_topic", "source_partition", "source_offset", "record_time", "value", "reason", "stored"]
    fields = [name.replace("event_time", "timestamp") for name in columns[: -len(of_record)]]
    assert columns[-len(of_record) :] == of_record
    assert sorted(fields) == sorted(SagaEvent.__struct_fields__)


def test_selects_name_the_columns_of_their_table(local: Settings) -> None:
    """Flink fills columns by position: each query selects exactly the table's columns, in their order."""
    for table in (EVENTS, REJECTED_EVENTS, *STATISTICS):
        select = query(local, table).split("SELECT", 1)[1].split("\nFROM", 1)[0]
        names = [line.strip().rstrip(",").split(" AS ")[-1].strip("`") for line in select.strip().splitlines()]
        assert names == [column.name for column in table.columns]


def test_what_is_stored_is_not_written_again(local: Settings) -> None:
    """The offsets and the windows that the tables hold stand in the statements."""
    closed = datetime(2026, 11, 23, 10, tzinfo=UTC)
    progress = Progress(events={0: 7, 1: 9}, rejected={1: 3}, closed={"step_stats": closed})
    ddl = statements(local, starts={0: 4, 1: 5}, progress=progress)[0]
    for option in ("'start.offsets' = '0:4,1:5'", "'stored.events' = '0:7,1:9'", "'stored.rejected' = '1:3'"):
        assert option in ddl
    of_steps, of_sagas = insert_statements(local, progress)[2:4]
    assert f"WHERE window_end > TO_TIMESTAMP_LTZ({closed.timestamp() * 1000:.0f}, 3)" in of_steps
    assert "WHERE window_end > TO_TIMESTAMP_LTZ(0, 3)" in of_sagas


def test_the_root_cause_is_the_innermost() -> None:
    """Of a Java stack trace one line is worth showing."""
    trace = "x.Outer: a\n\tat y\nCaused by: x.Middle: b\n\tat z\nCaused by: x.Inner: no such topic\n\tat q\n"
    assert root_cause(trace) == "x.Inner: no such topic"
    assert root_cause("x.Alone: a\n\tat y\n") == "x.Alone: a"
    assert root_cause("") == "unknown"


def test_the_last_cause_is_one_of_this_run(tmp_path: Path) -> None:
    """Of a log: the innermost cause of its last exception; none where it has none, or only an earlier run had one."""
    log = tmp_path / "log"
    of_before = "noise\n" * 50_000 + "2026 WARN x: y failed\nx.OuterException: a\n\tat y\nCaused by: x.InnerError: b\n"
    log.write_text(of_before)
    assert last_cause(log, begin=0) == "x.InnerError: b"
    with log.open("a") as file:
        file.write("2026 INFO x: Completed\n")
    assert last_cause(log, begin=len(of_before)) == ""
    with log.open("a") as file:
        file.write("x.y.LaterException: c\n\tat z\n2026 INFO x: Restarting\n")
    assert last_cause(log, begin=len(of_before)) == "x.y.LaterException: c"


PLAN = Path(__file__).with_name("analytics_plan.txt")


@pytest.mark.flink
def test_the_plan(local: Settings, tmp_path: Path) -> None:
    """EXPLAIN, as it was looked at: one source with its watermark, one Deduplicate, one branch a table, no Python."""
    settings = msgspec.structs.replace(local, bootstrap_servers="127.0.0.1:9")
    script = """
import json, os
from pyflink.table import ExplainDetail
from jobs.analytics import pipeline
from jobs.flink import prepare_jvm
from warehouse.catalog import open_catalog
from warehouse.settings import Settings

settings = Settings.from_environment(os.environ)
open_catalog(settings)
prepare_jvm(settings)
explained = pipeline(settings).explain(ExplainDetail.JSON_EXECUTION_PLAN)
optimized, physical = explained.split("== Optimized Execution Plan ==")[1].split("== Physical Execution Plan ==")
print(optimized.strip())
print()
print("Operators:")
for node in json.loads(physical)["nodes"]:
    print(node["type"].split("[")[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    plan = done.stdout
    (tmp_path / "plan.txt").write_text(plan)
    assert plan.count("\nDeduplicate") == plan.count("\nSource: ") == 1
    assert plan == PLAN.read_text(), f"the plan is another one: look at it, then cp {tmp_path / 'plan.txt'} {PLAN}"
