"""What Dagster loads."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from dagster_project.assets import WATCHED, asset_of
from dagster_project.definitions import defs
from dagster_project.imports import IMPORTS
from dagster_project.partitions import DAYS, START
from warehouse.settings import CHECKOUT
from warehouse.tables import COMPUTED, EVENTS, STATISTICS, TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.tables import Table


def test_definitions_load() -> None:
    """Everything that the definitions name can be resolved."""
    dg.Definitions.validate_loadable(defs)


def test_names() -> None:
    """Whoever renames an asset, a job or a sensor, and so loses its history, sees it here."""
    assert sorted(spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()) == [
        "events",
        "imported_files",
        "imported_sagaz_outbox",
        "rejected_events",
        "saga_definitions",
        "saga_runs",
        "saga_stats",
        "step_durations",
        "step_stats",
        "upkeep",
    ]
    assert [job.name for job in defs.jobs or ()] == ["observe_tables", "recompute_days", "tidy_tables", "judge_quality"]
    assert [schedule.name for schedule in defs.schedules or ()] == [
        "nightly_recompute",
        "hourly_upkeep",
        "daily_quality",
    ]
    assert [sensor.name for sensor in defs.sensors or ()] == ["new_rows", "mend", "failed_runs"]
    assert sorted(defs.resources or ()) == ["lake"]


def test_each_table_is_an_asset() -> None:
    """What is computed from events can be computed again; the rest is watched."""
    assert {spec.key.to_user_string() for spec in WATCHED} | {table.name for table in COMPUTED} == {
        table.name for table in TABLES
    }
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.executable_asset_keys} == {
        *(table.name for table in COMPUTED),
        "upkeep",
        *(asset.key.to_user_string() for asset in IMPORTS),
    }


@pytest.mark.parametrize("table", TABLES)
def test_an_asset_says_what_its_table_says(table: Table) -> None:
    """An asset has its table's name, words and columns with types and constraints, and days that are UTC's."""
    spec = asset_of(table)
    schema = spec.metadata["dagster/column_schema"]
    assert (spec.key.path, spec.description, spec.partitions_def) == ([table.name], table.doc, DAYS)
    assert [(column.name, column.type, column.description) for column in schema.columns] == [
        (column.name, str(column.type), column.doc) for column in table.columns
    ]
    assert [column.constraints.nullable for column in schema.columns] == [
        not column.required for column in table.columns
    ]
    assert (spec.freshness_policy is None) == (table not in (EVENTS, *STATISTICS))


def test_statistics_come_from_events() -> None:
    """The lineage is that of a recompute: it reads events."""
    graph = defs.resolve_asset_graph()
    for table in STATISTICS:
        assert graph.get(dg.AssetKey(table.name)).parent_keys == {dg.AssetKey(EVENTS.name)}


def test_today_is_a_partition_and_tomorrow_is_none() -> None:
    """Days go from the start to today, in UTC."""
    keys = DAYS.get_partition_keys(current_time=datetime(2026, 3, 1, 0, 1, tzinfo=UTC))
    assert (keys[0], keys[-1]) == (START, "2026-03-01")


def test_import_does_no_work(tmp_path: Path) -> None:
    """Importing the definitions reads no settings and makes no file, so that a wrong setting shows where it is used."""
    environment = os.environ | {"SAGASCOPE_HOME": str(tmp_path / "home"), "SAGASCOPE_NO_SUCH": "1"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", "import dagster_project.definitions"],
        cwd=CHECKOUT,
        env=environment,
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
