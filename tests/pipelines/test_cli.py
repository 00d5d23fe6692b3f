"""The command line as scripts use it: output formats, one-line errors, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from warehouse.settings import Settings


@pytest.fixture
def sagascope(local: Settings) -> Runner:
    """Run `sagascope …` in a home of its own."""
    return Runner(local)


class Runner:
    """The command, with the test's settings in its environment."""

    def __init__(self, settings: Settings) -> None:
        self._environment = os.environ | {"SAGASCOPE_HOME": settings.home}

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments],
            env=self._environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def test_help_names_every_command(sagascope: Runner) -> None:
    """`--help` needs nothing else, and each command's own help says what it does."""
    done = sagascope("--help")
    assert done.returncode == 0
    for command in (
        "demo",
        "up",
        "down",
        "status",
        "workload",
        "analyze",
        "sql",
        "parity",
        "quality",
        "maintain",
        "doctor",
        "report",
        "sagas",
        "dashboard",
    ):
        assert command in done.stdout
        assert sagascope(command, "-h").returncode == 0


def test_formats_hold_the_same_rows(sagascope: Runner) -> None:
    """Table for people, csv and json (one object a line) for programs."""
    query = "SELECT 1 AS n, 'a,\"b' AS s, NULL AS nothing, TIMESTAMPTZ '2026-11-20 10:00:00+00' AS t, 0.5 AS x"
    table = sagascope("sql", query)
    assert table.returncode == 0
    assert "NULL" in table.stdout
    [row] = csv.DictReader(io.StringIO(sagascope("sql", query, "--format", "csv").stdout))
    assert (row["n"], row["s"], row["nothing"]) == ("1", 'a,"b', "")
    assert json.loads(sagascope("sql", query, "--format", "json").stdout) == {
        "n": 1,
        "s": 'a,"b',
        "nothing": None,
        "t": "2026-11-20T10:00:00+00:00",
        "x": 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["sql", "SELECT nope FROM events"], 1, 'column "nope" not found'),
        (["sql", "DROP VIEW events"], 1, "read-only: got DROP"),
        (["sql", "SELEC 1"], 1, "syntax error"),
        (["sql", "SELECT 1", "--since", "yesterday"], 2, "neither a moment"),
        (["sql", "SELECT 1", "--since", "2026-11-21", "--until", "2026-11-20"], 1, "is after until"),
        (["workload", "--for", "soon"], 2, "no duration: 'soon'"),
        (["workload", "--rate", "0"], 2, "--rate"),
        (["workload", "--for", "1s"], 1, "no Kafka: start the local one with `sagascope up`"),
        (["analyze"], 1, "no Kafka: start the local one with `sagascope up`"),
        (["status"], 1, "no Kafka: start the local one with `sagascope up`"),
        (["vanish"], 2, "No such command"),
    ],
)
def test_errors_are_told_and_have_their_exit_code(
    sagascope: Runner, arguments: list[str], code: int, said: str
) -> None:
    """1 for what failed, 2 for a wrong call; what is wrong and the cure, never a traceback."""
    done = sagascope(*arguments)
    assert done.returncode == code, done.stderr
    flat = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert said in flat
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_one_line(sagascope: Runner) -> None:
    """A variable that is no setting is refused by every command."""
    done = sagascope("status", SAGASCOPE_WINDOW="60")
    assert done.returncode == 1
    assert "SAGASCOPE_WINDOW is no setting" in done.stderr


def test_describe_needs_no_kafka(sagascope: Runner) -> None:
    """What is true of the load is known without running it."""
    done = sagascope("workload", "--describe")
    assert done.returncode == 0
    assert "push_firmware" in done.stdout


def test_down_where_nothing_runs_is_no_error(sagascope: Runner) -> None:
    """A script may always say `down`."""
    done = sagascope("down")
    assert done.returncode == 0
    assert "was not running" in done.stdout
