"""`sagascope doctor`: what it prints, its exit code, what it looks at, and what it makes of settings that are wrong."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipelines import doctor
from pipelines.cli import app
from pipelines.doctor import job
from pipelines.doctor.findings import Finding, Level
from tests.pipelines.doctor.conftest import event, faults, found, look, make_tables, send
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from warehouse.settings import Settings

pytestmark = pytest.mark.broker


def test_nothing_set_up_is_no_fault_and_stays_so(local: Settings) -> None:
    """Before the first start all is said to be missing so far, and nothing is made by looking."""
    code, findings = look(local)
    assert (code, faults(findings)) == (0, [])
    said = " ".join(one.what + one.cure for one in findings)
    for part in (
        "is not made yet",
        "no broker was started here yet",
        "`sagascope up` starts one",
        "no analytics job runs",
    ):
        assert part in said
    assert not local.root.exists()


def test_a_sound_set_up_has_no_fault(settings: Settings) -> None:
    """Broker, topic and tables as Sagascope makes them: exit code 0, and every area was looked at."""
    make_tables(settings)
    send(settings, event(0, "orders"))
    code, findings = look(settings)
    assert (code, faults(findings)) == (0, [])
    assert {one.area for one in findings} >= {
        *("settings", "python", "java", "jars", "home", "ports", "catalog", "tables"),
        *("job", "kafka", "topic", "fingerprint", "clock"),
    }
    assert all(one.cure for one in findings if one.level is not Level.OK)
    assert sum(one.area == "tables" for one in findings) == len(TABLES)
    assert any("1 records to do" in one.what for one in findings)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_it_is_read_in_a_terminal(local: Settings, width: int) -> None:
    """A table of at most 100 columns, no text cut, the cure below; and a last line that says how much is wrong."""
    printed = Console(width=width, file=io.StringIO(), record=True)
    code = doctor.run(local.environment() | {"SAGASCOPE_WINDOW_SECONDS": "soon"}, printed)
    lines = printed.export_text().splitlines()
    assert code == 1
    assert max(map(len, lines)) <= min(width, 100)
    text = " ".join(" ".join(lines).split())
    assert "SAGASCOPE_WINDOW_SECONDS='soon'" in text
    assert "→ set it to what is allowed, or unset it" in text
    assert "…" not in text
    assert re.match(r"1 fault, \d+ warnings?", lines[-1])


def test_formats_hold_the_same_findings(local: Settings) -> None:
    """Json (one object a line) and csv for programs, all texts whole."""
    _, findings = look(local)
    done = CliRunner().invoke(app, ["doctor", "--format", "csv"], env=local.environment())
    assert done.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row for row in rows if row["area"] != "home"] == [
        msgspec.to_builtins(one)
        for one in findings
        if one.area != "home"  # the room on the disk changes
    ]


def test_a_wrong_setting(local: Settings) -> None:
    """Named with its value; what needs no settings is looked at all the same."""
    what = r"SAGASCOPE_WINDOW_SECONDS='soon'.*int"
    found(local, "settings", Level.FAULT, what, "set it to what is allowed", SAGASCOPE_WINDOW_SECONDS="soon")
    _, findings = look(local, SAGASCOPE_WINDOW="10")
    assert "SAGASCOPE_WINDOW is no setting" in findings[0].what
    assert {"python", "java", "ports", "clock"} <= {one.area for one in findings}


def test_a_home_that_is_a_file(local: Settings) -> None:
    """One fault; what would be in the home is not looked at."""
    local.root.write_text("")
    one = found(local, "home", Level.FAULT, f"{local.root} is a file", "move it away, or set SAGASCOPE_HOME")
    assert faults(look(local)[1]) == [one]


def test_one_check_that_fails_stops_no_other(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is a finding as well."""

    def breaks(_: Settings) -> list[Finding]:
        msg = "who would have thought"
        raise RuntimeError(msg)

    monkeypatch.setattr(job, "running", breaks)
    one = found(local, "job", Level.FAULT, "could not be looked at: RuntimeError: who would", "report it")
    _, findings = look(local)
    assert findings.index(one) < [other.area for other in findings].index("kafka")
