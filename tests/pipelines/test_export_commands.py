"""`sagascope export`, and what a history that can't be asked says: one line each, as a user sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from tests.warehouse.planted import DAY, append, events_of, fill, paths
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NEXT_DAY = DAY + timedelta(days=1)
DAY_AFTER = DAY + timedelta(days=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with sagas of a day and of the day after the next; a file of the second day is damaged."""
    folder: Path = tmp_path_factory.mktemp("exports") / "home"
    settings = Settings(home=str(folder))
    open_catalog(settings).close()
    fill(settings)
    append(settings, EVENTS, events_of(5, datetime(DAY_AFTER.year, DAY_AFTER.month, DAY_AFTER.day, 12, tzinfo=UTC)))
    [file] = [path for path in paths(settings, EVENTS) if f"={DAY_AFTER}" in str(path)]
    file.write_bytes(file.read_bytes()[:-9])
    return folder


@pytest.fixture
def sagascope(home: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `sagascope …` there, in a folder of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments],
            env=os.environ | {"SAGASCOPE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def test_the_three_exports(sagascope: Callable[..., Any], tmp_path: Path) -> None:
    """Each says what it wrote, and what is in it is what it says."""
    until = ("--until", str(NEXT_DAY))
    done = sagascope("export", "duckdb", "x.duckdb", *until)
    assert (done.returncode, done.stderr) == (0, "")
    assert "events: 12 rows\nsaga_runs: 3 rows\n" in done.stdout
    with closing(duckdb.connect(str(tmp_path / "x.duckdb"), read_only=True)) as connection:
        assert connection.execute("SELECT count(*), any_value(until)::DATE::VARCHAR FROM about").fetchall() == [
            (7, str(NEXT_DAY))
        ]
    done = sagascope("export", "ocel", "x.jsonocel", *until)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("12 events of 9 objects\nx.jsonocel: ")
    assert len(json.loads((tmp_path / "x.jsonocel").read_bytes())["events"]) == 12
    done = sagascope("export", "cloudevents", "x.jsonl", *until)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("12 events\n")
    assert len((tmp_path / "x.jsonl").read_bytes().splitlines()) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.duckdb", "x.jsonl", "x.jsonocel"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "ocel", "kept", "--since", str(NEXT_DAY), "--until", str(DAY_AFTER)], "no event in that span"),
        (["export", "duckdb", "kept", "--since", str(NEXT_DAY), "--until", str(DAY_AFTER)], "no event in that span"),
        (["export", "cloudevents", "new", "--until", "2001-01-01"], "no event in that span"),
        (["export", "cloudevents", "kept", "--until", str(NEXT_DAY)], "kept is there and is no such export"),
        (["export", "duckdb", "no/x.duckdb", "--until", str(NEXT_DAY)], "there is no folder no; make it first"),
        (["export", "ocel", "kept", "--force"], f"events of {DAY_AFTER} can't be read"),
        (["export", "duckdb", "new", "--since", "2199-01-01"], "--since 2199-01-01 is in the future: it is "),
        (["export", "duckdb", "new", "--since", str(NEXT_DAY), "--until", str(DAY)], "is after until="),
        (["sql", "FROM events", "--since", "2199-01-01"], "no event is of a later time"),
        (["sql", "FROM events"], f"--until {DAY_AFTER} or --since {DAY_AFTER + timedelta(days=1)}"),
        (["sagas", "list", "--since", "2199-01-01"], "is in the future"),
        (["report", "variants", "--since", str(DAY)], f"sagascope quality --day {DAY_AFTER}"),
        (
            ["sql", "WITH x AS (COPY events TO 'x.csv') SELECT 1"],
            "the history is read-only: got COPY; allowed: one SELECT",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    sagascope: Callable[..., Any], tmp_path: Path, arguments: list[str], said: str
) -> None:
    """The value, the reason, the cure; exit code 1, and the file that was there still is."""
    (tmp_path / "kept").write_text("mine")
    done = sagascope(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("sagascope: ")
    assert said in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "mine")]


def test_quality_flags_the_damaged_day_and_judges_the_others(sagascope: Callable[..., Any]) -> None:
    """One finding names the file; every other rule of every other day is judged as ever."""
    done = sagascope("quality", "--table", "events", "--since", str(DAY), "--format", "json")
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    broken = [(one["day"], one["rule"]) for one in findings if not one["passed"]]
    assert broken == [(str(DAY_AFTER), "files_readable")]
    assert {one["day"]: one["rows"] for one in findings} == {str(DAY): 12, str(DAY_AFTER): 0}
    assert done.returncode == 1
