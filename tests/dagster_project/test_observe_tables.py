"""What the job and the sensor report, on real Iceberg tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from dagster_project.lake import LakeResource, NoTablesError
from dagster_project.observe_tables import gather_news, new_rows, observe_tables
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import EVENTS, STEP_STATS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.dagster_project.conftest import Lake

NOW = datetime(2026, 3, 5, tzinfo=UTC)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster that remembers in memory."""
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def run(instance: dg.DagsterInstance, lake: LakeResource) -> dg.ExecuteInProcessResult:
    """One run of the job."""
    return observe_tables.execute_in_process(instance=instance, resources={"lake": lake}, raise_on_error=False)


def tick(instance: dg.DagsterInstance, lake: LakeResource) -> dg.SensorResult:
    """One evaluation of the sensor, its events kept as the daemon keeps them."""
    result = new_rows(dg.build_sensor_context(instance=instance, resources={"lake": lake}))
    assert isinstance(result, dg.SensorResult)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return result


def reports(instance: dg.DagsterInstance) -> list[tuple[str, str, object]]:
    """Asset, day and rows of all reports, oldest first."""
    return [
        (
            record.asset_key.to_user_string(),
            str(record.partition_key),
            record.asset_materialization.metadata["dagster/partition_row_count"].value,
        )
        for name in (EVENTS.name, STEP_STATS.name)
        for record in instance.fetch_materializations(dg.AssetKey(name), limit=100, ascending=True).records
        if record.asset_key and record.asset_materialization
    ]


def test_the_job_reports_each_day_of_each_table(instance: dg.DagsterInstance, lake: Lake) -> None:
    """Over three days, every day with rows is reported with its rows, and hours count for their day."""
    lake.add(EVENTS, "2026-03-01T01:00", "2026-03-01T02:00", "2026-03-02T01:00", "2026-03-03T01:00")
    lake.add(STEP_STATS, "2026-03-01T01:00", "2026-03-01T02:00", "2026-03-03T23:00")
    assert run(instance, lake.resource).success
    assert reports(instance) == [
        ("events", "2026-03-01", 2),
        ("events", "2026-03-02", 1),
        ("events", "2026-03-03", 1),
        ("step_stats", "2026-03-01", 2),
        ("step_stats", "2026-03-03", 1),
    ]
    assert instance.get_materialized_partitions(dg.AssetKey("step_stats")) == {"2026-03-01", "2026-03-03"}


def test_a_report_names_the_snapshot_and_how_fresh_it_is(instance: dg.DagsterInstance, lake: Lake) -> None:
    """A report's metadata are those of the day in Iceberg, and the rows of the whole table."""
    lake.add(EVENTS, "2026-03-02T01:00")
    snapshot = lake.add(EVENTS, "2026-03-01T01:00", "2026-03-01T02:00")
    committed = lake.stored(EVENTS).metadata.snapshots[-1].timestamp_ms / 1000
    news = gather_news(instance, lake.resource, datetime.fromtimestamp(committed, UTC) + timedelta(seconds=7))
    metadata = {key: entry.value for key, entry in news.reports[0].metadata.items()}
    assert metadata == {
        "dagster/partition_row_count": 2,
        "dagster/row_count": 3,
        "files": 1,
        "bytes": lake.stored(EVENTS).inspect.files().column("file_size_in_bytes")[0].as_py(),
        "snapshot_id": str(snapshot),
        "committed_at": committed,
        "commit_age_seconds": 7.0,
        "newest_timestamp": datetime(2026, 3, 1, 2, tzinfo=UTC).timestamp(),
        "location": lake.stored(EVENTS).location(),
    }


def test_what_did_not_change_is_not_reported_again(instance: dg.DagsterInstance, lake: Lake) -> None:
    """Job and sensor share what was reported: after one of them neither reports a day again until it changes."""
    lake.add(EVENTS, "2026-03-01T01:00", "2026-03-02T01:00")
    run(instance, lake.resource)
    before = reports(instance)
    assert (tick(instance, lake.resource).asset_events, run(instance, lake.resource).success) == ([], True)
    assert reports(instance) == before
    lake.add(EVENTS, "2026-03-02T02:00")
    assert str(tick(instance, lake.resource).skip_reason) != "nothing new"
    run(instance, lake.resource)
    assert reports(instance) == [*before, ("events", "2026-03-02", 2)]


def test_a_day_that_became_empty_is_reported_once(instance: dg.DagsterInstance, lake: Lake) -> None:
    """A day that lost its rows is reported with none, once, and again when it has rows again."""
    lake.add(EVENTS, "2026-03-01T01:00", "2026-03-02T01:00")
    tick(instance, lake.resource)
    lake.stored(EVENTS).delete("timestamp < '2026-03-02T00:00:00+00:00'")
    for _ in range(2):
        tick(instance, lake.resource)
    lake.add(EVENTS, "2026-03-01T03:00")
    tick(instance, lake.resource)
    assert [rows for _, day, rows in reports(instance) if day == "2026-03-01"] == [1, 0, 1]


def test_empty_tables_are_nothing_new(instance: dg.DagsterInstance, lake: Lake) -> None:
    """Empty tables are no error and no report."""
    result = tick(instance, lake.resource)
    assert (result.asset_events, result.skip_reason) == ([], dg.SkipReason("nothing new"))
    assert run(instance, lake.resource).success
    assert reports(instance) == []


def test_days_without_a_partition_are_named(instance: dg.DagsterInstance, lake: Lake) -> None:
    """Rows before the start or after today are left out of the reports, and said to be."""
    lake.add(EVENTS, "1970-01-01T00:00", "2026-03-01T01:00", "2999-01-01T00:00")
    news = gather_news(instance, lake.resource, NOW)
    assert [report.partition for report in news.reports] == ["2026-03-01"]
    assert str(news) == (
        "1 day(s) of events reported; left out, being before 2026-01-01 or after today: "
        "1970-01-01 of events, 2999-01-01 of events"
    )


def test_without_a_catalog_it_says_what_to_run(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Before the first run of the demo the sensor skips and the job fails with the command to run; nothing is made."""
    lake = LakeResource(environment=Settings(home=str(tmp_path / "none")).environment())
    assert "run `make demo` or `sagascope seed` first" in str(tick(instance, lake).skip_reason)
    result = run(instance, lake)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert not result.success
    assert "run `make demo` or `sagascope seed` first" in str(failure.step_failure_data.user_failure_data)
    assert list(tmp_path.iterdir()) == []


def test_the_lake_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without variables of its own the resource reads those of the process, at the time it is opened."""
    lake = LakeResource()
    monkeypatch.setenv("SAGASCOPE_HOME", str(tmp_path / "here"))
    with pytest.raises(NoTablesError, match=str(tmp_path / "here")), lake.open():
        pass
    monkeypatch.setenv("SAGASCOPE_PARTITIONS", "many")
    with pytest.raises(InvalidSettingError, match="SAGASCOPE_PARTITIONS"), lake.open():
        pass
