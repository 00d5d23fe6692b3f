"""The job's SQL as text, and the plan that Flink makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from jobs.analytics import insert_statements, last_cause, root_cause, statements
from jobs.flink import SQL_FOLDER, interval, statement
from sagascope.events import EventType, SagaEvent
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from pathlib import Path

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
    ddl = statement(
        "saga_events",
        {"topic": "a'b", "bootstrap_servers": "h:1", "bounded_mode": "unbounded", "watermark_delay": interval(0)},
    )
    assert "'topic' = 'a''b'" in ddl


def test_a_placeholder_without_a_value_is_an_error() -> None:
    """No statement runs with a hole in it."""
    with pytest.raises(KeyError, match=r"bounded_mode|topic|watermark_delay|bootstrap_servers"):
        statement("saga_events", {})


def test_every_statement_is_used_and_filled(local: Settings) -> None:
    """Each file of jobs/sql is one statement of the job, with no placeholder left."""
    rendered = statements(local) + insert_statements(local)
    assert len(rendered) == len(list(SQL_FOLDER.glob("*.sql")))
    assert not any("${" in sql for sql in rendered)


def test_the_topic_has_every_field_of_the_event(local: Settings) -> None:
    """No field of SagaEvent is forgotten in the DDL, nor one that it lacks."""
    ddl = statements(local)[0]
    physical = re.findall(
        r"^    `?(\w+)`? (?:STRING|BIGINT|INT|BOOLEAN|ARRAY<STRING>|MAP<STRING, STRING>),", ddl, re.MULTILINE
    )
    assert sorted(physical) == sorted(SagaEvent.__struct_fields__)


def test_the_job_knows_every_event_type(local: Settings) -> None:
    """An event type that is valid in Python is valid in SQL, and the other way round."""
    view = statements(local)[1]
    named = set(re.findall(r"'((?:saga|step|compensation)_\w+)'", view))
    assert named == set(EventType)


def test_inserts_name_the_columns_of_their_table(local: Settings) -> None:
    """Flink fills columns by position: each INSERT selects exactly the table's columns, in their order."""
    for sql, table in zip(insert_statements(local), TABLES, strict=True):
        assert f"INSERT INTO lake.saga.{table.name}\n" in sql
        select = sql.split("SELECT", 1)[1].split("\nFROM", 1)[0]
        names = [line.strip().rstrip(",").split(" AS ")[-1].strip("`") for line in select.strip().splitlines()]
        assert names == [column.name for column in table.columns]


def test_the_root_cause_is_the_innermost(tmp_path: Path) -> None:
    """Of a Java stack trace one line is worth showing."""
    trace = "x.Outer: a\n\tat y\nCaused by: x.Middle: b\n\tat z\nCaused by: x.Inner: no such topic\n\tat q\n"
    assert root_cause(trace) == "x.Inner: no such topic"
    assert root_cause("x.Alone: a\n\tat y\n") == "x.Alone: a"
    assert root_cause("") == "unknown"
    (tmp_path / "log").write_text("noise\n" * 50_000 + trace)
    assert last_cause(tmp_path / "log") == "x.Inner: no such topic"


@pytest.mark.flink
def test_the_topic_is_read_once(local: Settings) -> None:
    """One source in the plan feeds all tables, and its watermark is kept per partition, in the source."""
    settings = msgspec.structs.replace(local, bootstrap_servers="127.0.0.1:9")
    script = """
import os
from jobs.analytics import pipeline
from jobs.flink import prepare_jvm
from warehouse.catalog import open_catalog
from warehouse.settings import Settings

settings = Settings.from_environment(os.environ)
open_catalog(settings)
prepare_jvm(settings)
print(pipeline(settings).explain().split("== Optimized Execution Plan ==")[1])
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
    assert plan.count("TableSourceScan") == 1
    assert plan.count("Sink(table=[lake.saga.") == len(TABLES)
    assert re.search(r"TableSourceScan\(.*watermark=\[", plan)
    assert "Python" not in plan
