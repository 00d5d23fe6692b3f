"""Imports as Dagster runs them: a range of days in one run, each day reported by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import msgspec
import pytest

from dagster_project.imports import IMPORTS
from dagster_project.lake import LakeResource
from dagster_project.partitions import START
from sagascope.events import encode
from tests.warehouse.imports.outboxes import add_rows, saga_rows
from tests.warehouse.imports.test_files import event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.dagster_project.conftest import Lake

OUTBOX, FILES = IMPORTS
DAYS = ("2026-11-20", "2026-11-22")
RANGE = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[1]}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster that remembers in memory."""
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def run(
    instance: dg.DagsterInstance, asset: dg.AssetsDefinition, lake: Lake, **settings: str
) -> dg.ExecuteInProcessResult:
    """One run over the range, as a backfill starts it."""
    environment = msgspec.structs.replace(lake.settings, **settings).environment()
    resources = {"lake": LakeResource(environment=environment)}
    defs = dg.Definitions(assets=[asset], resources=resources)
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, tags=RANGE, raise_on_error=False)


def reported(instance: dg.DagsterInstance, asset: dg.AssetsDefinition) -> list[tuple[Any, ...]]:
    """Day and counts of each report, oldest first."""
    records = instance.fetch_materializations(asset.key, limit=100, ascending=True).records
    names = ("imported", "already_there", "known_live", "unclassified", "invalid")
    found = [(record.partition_key, record.asset_materialization) for record in records]
    return [(day, *(one.metadata[name].value for name in names)) for day, one in found if one]


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the run says of why it failed."""
    assert not result.success
    [event] = [each for each in result.all_events if each.event_type is dg.DagsterEventType.STEP_FAILURE]
    data: Any = event.event_specific_data
    return f"{data.error.message} {data.user_failure_data.description}"


def test_a_range_is_one_run_and_a_report_a_day(instance: dg.DagsterInstance, lake: Lake, tmp_path: Path) -> None:
    """Each day once with its counts, a day without rows too; a rerun reports that all is there."""
    file = tmp_path / "outbox.db"
    for day in (*DAYS, "2026-11-19"):
        add_rows(file, saga_rows(1, day))
    assert run(instance, OUTBOX, lake, import_url=str(file)).success
    first = [("2026-11-20", 3, 0, 0, 0, 0), ("2026-11-21", 0, 0, 0, 0, 0), ("2026-11-22", 3, 0, 0, 0, 0)]
    assert reported(instance, OUTBOX) == first
    assert run(instance, OUTBOX, lake, import_url=str(file)).success
    assert reported(instance, OUTBOX)[3:] == [
        ("2026-11-20", 0, 3, 0, 0, 0),
        ("2026-11-21", 0, 0, 0, 0, 0),
        ("2026-11-22", 0, 3, 0, 0, 0),
    ]


def test_a_damaged_file_fails_the_run_and_the_days_are_reported(
    instance: dg.DagsterInstance, lake: Lake, tmp_path: Path
) -> None:
    """The other files are imported; the run says which one is damaged."""
    (tmp_path / "bad.parquet").write_bytes(b"nothing of the kind")
    (tmp_path / "good.jsonl").write_bytes(encode(event(1)) + b"\nnonsense\n")
    result = run(instance, FILES, lake, import_files=f"{tmp_path}/*.parquet:{tmp_path}/*.jsonl")
    assert f"damaged are: {tmp_path / 'bad.parquet'}: Parquet magic bytes" in failure(result)
    assert [count for _, count, *_ in reported(instance, FILES)] == [1, 0, 0]


@pytest.mark.parametrize(("asset", "variable"), [(OUTBOX, "SAGASCOPE_IMPORT_URL"), (FILES, "SAGASCOPE_IMPORT_FILES")])
def test_without_a_source_a_run_says_what_to_set(
    instance: dg.DagsterInstance, lake: Lake, asset: dg.AssetsDefinition, variable: str
) -> None:
    """The variable by name; no day is reported."""
    assert f"nothing to import from: set {variable} to " in failure(run(instance, asset, lake))
    assert reported(instance, asset) == []


def test_a_source_that_can_not_be_read_is_named(instance: dg.DagsterInstance, lake: Lake) -> None:
    """The reason, without a password."""
    result = run(instance, OUTBOX, lake, import_url="postgresql://u:hunter2@127.0.0.1:1/orders")
    assert "PostgreSQL at 127.0.0.1:1/orders lets nobody in" in failure(result)
    assert "hunter2" not in failure(result)


def test_days_without_a_partition_are_told_of(
    instance: dg.DagsterInstance, lake: Lake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Days before the first partition are left out, and the log says what to move."""
    file = tmp_path / "outbox.db"
    add_rows(file, [row for day in ("2025-12-31", DAYS[0]) for row in saga_rows(1, day)])
    assert run(instance, OUTBOX, lake, import_url=str(file)).success
    assert f"Days before {START} have no partition: to import them move START back" in capfd.readouterr().err
