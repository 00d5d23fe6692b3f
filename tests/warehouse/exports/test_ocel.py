"""The object-centric event log: PM4Py finds in it what was told."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.servers.pm4py import read
from tests.warehouse.exports.conftest import HARD
from warehouse import history
from warehouse.exports import ocel
from warehouse.exports.whole_file import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.events import SagaEvent
    from warehouse.settings import Settings


def test_pm4py_finds_the_events_and_their_objects(
    lake: Settings, exported_events: list[SagaEvent], tmp_path: Path, pm4py_python: Path
) -> None:
    """Counts, kinds, relations and types; a saga's id means one saga within its kind only."""
    file = tmp_path / "log.jsonocel"
    with history.open(lake) as tables:
        written = ocel.write(tables, file)
    found = read(pm4py_python, file)
    assert found["events"] == written.events == len(exported_events)
    assert found["activities"] == Counter(str(one.event_type) for one in exported_events)
    assert found["objects"] == {"order": 1, "refund": 1, "saga run": 2, "run": 4, "step": 4, "service": 1}
    assert sum(found["objects"].values()) == written.objects
    with_step = sum(one.step_name is not None for one in exported_events)
    reported = sum(one.service is not None for one in exported_events)
    assert found["relations"] == {
        "of saga": len(exported_events),
        "in run": len(exported_events),
        "of step": with_step,
        "reported by": reported,
    }
    assert found["between_objects"] == {"of saga": 4, "in run": 4, "started by": 1}
    times = sorted(round(datetime.fromisoformat(row["ocel:timestamp"]).timestamp() * 1000) for row in found["rows"])
    assert times == [one.timestamp for one in exported_events]
    assert {row["duration_ms"] for row in found["rows"]} == {100, None}
    assert {row[f"attributes.{HARD}"] for row in found["rows"]} == {HARD, None}
    assert {row["outcome"] for row in found["things"] if row["ocel:type"] == "run"} == {
        "completed",
        "failed_nothing_to_undo",
        None,
    }
    assert {row["step_name"] for row in found["things"] if row["ocel:type"] == "step"} == {"pay", HARD, "b/c"}


def test_what_is_named_is_there_and_declared(lake: Settings, exported_events: list[SagaEvent], tmp_path: Path) -> None:
    """By the specification: ids are unique, no relation points nowhere, each type and attribute is declared."""
    file = tmp_path / "log.jsonocel"
    with history.open(lake) as tables:
        ocel.write(tables, file)
    log = json.loads(file.read_bytes())
    assert set(log) == {"objectTypes", "eventTypes", "objects", "events"}
    for kind in ("object", "event"):
        declared = {one["name"]: {a["name"] for a in one["attributes"]} for one in log[f"{kind}Types"]}
        assert len(declared) == len(log[f"{kind}Types"])
        ids = [one["id"] for one in log[f"{kind}s"]]
        assert len(ids) == len(set(ids))
        for one in log[f"{kind}s"]:
            assert {a["name"] for a in one["attributes"]} <= declared[one["type"]]
            assert all(isinstance(a["value"], str) for a in one["attributes"])
    there = {one["id"] for one in log["objects"]}
    assert {r["objectId"] for one in log["events"] + log["objects"] for r in one["relationships"]} <= there


def test_an_empty_span_is_no_log(lake: Settings, exported_events: list[SagaEvent], tmp_path: Path) -> None:
    """Nothing is written."""
    file = tmp_path / "log.jsonocel"
    with (
        history.open(lake, until=datetime(2020, 1, 1, tzinfo=UTC)) as tables,
        pytest.raises(ExportError, match="no event"),
    ):
        ocel.write(tables, file)
    assert [*tmp_path.glob("log*")] == []
