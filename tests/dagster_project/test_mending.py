"""Which hours the sensor has computed again, and that a run of it does just those."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from dagster_project.alerts import failed_runs
from dagster_project.definitions import defs
from dagster_project.lake import LakeResource
from dagster_project.mending import LATE_EVENTS, hours_to_mend, mend, spans
from dagster_project.schedules import PARTITION, daily_quality, nightly_recompute
from pipelines.seed import seed
from warehouse import windows
from warehouse.settings import Settings
from warehouse.windows import Comparison, HourDifferences, TableDifferences

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.webhook_receiver import Receiver

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def compared(**hours: HourDifferences) -> Comparison:
    """One table's hours, named h12 and so on."""
    found = {NOON.replace(hour=int(name[1:])): one for name, one in hours.items()}
    return Comparison(NOON, [TableDifferences("step_stats", 9, len(found), [], 0, found)])


def tick(instance: dg.DagsterInstance, lake: LakeResource) -> list[dg.RunRequest | dg.SkipReason]:
    """One evaluation of the sensor."""
    told = mend(dg.build_sensor_context(instance=instance, resources={"lake": lake}))
    assert isinstance(told, Iterator)
    return [one for one in told if isinstance(one, dg.RunRequest | dg.SkipReason)]


def test_which_hours() -> None:
    """An hour with a wrong window is mended at once, one that lacks events when they are many."""
    hours = compared(
        h8=HourDifferences(LATE_EVENTS - 1, 0), h9=HourDifferences(LATE_EVENTS, 0), h10=HourDifferences(0, 1)
    )
    assert hours_to_mend(hours) == [NOON.replace(hour=9), NOON.replace(hour=10)]


def test_spans_of_neighbours_end_at_midnight() -> None:
    """Neighbouring hours are one span, but of one day: a run is one of a partition."""
    hours = [NOON, NOON + HOUR, NOON + 3 * HOUR, NOON + 11 * HOUR, NOON + 12 * HOUR]
    assert spans(hours) == [
        (NOON, NOON + 2 * HOUR),
        (NOON + 3 * HOUR, NOON + 4 * HOUR),
        (NOON + 11 * HOUR, NOON + 12 * HOUR),
        (NOON + 12 * HOUR, NOON + 13 * HOUR),
    ]
    assert spans([]) == []


def test_late_hours_are_mended_and_no_others(tmp_path: Path) -> None:
    """The sensor asks for the hours that lack late events; that very run makes these right, and then nothing is left."""
    settings = Settings(home=str(tmp_path))
    # As of tomorrow: the late day is then yesterday, and the sensor looks two days back.
    seeded = seed(settings, datetime.now(UTC) + timedelta(days=1), days=5, sagas_a_day=400)
    late = [hour for hour in windows.compare(settings).hours if hour.date() == seeded.late_day]
    lake = LakeResource(environment=settings.environment())
    with dg.DagsterInstance.ephemeral() as instance:
        requests = [one for one in tick(instance, lake) if isinstance(one, dg.RunRequest)]
        assert [request.partition_key for request in requests] == [f"{seeded.late_day}"] * len(spans(late))
        job = defs.resolve_job_def("recompute_days")
        for request in requests:
            done = job.execute_in_process(
                partition_key=request.partition_key,
                run_config=request.run_config,
                resources={"lake": lake},
                instance=instance,
            )
            assert done.success
        assert [type(one) for one in tick(instance, lake)] == [dg.SkipReason]
    assert {hour.date() for hour in windows.compare(settings).hours} == {seeded.wrong_day}


def test_schedules_name_closed_days() -> None:
    """The night computes the two days before, quality is judged of yesterday."""
    at = datetime(2026, 3, 5, 2, 15, tzinfo=UTC)
    context = dg.build_schedule_context(scheduled_execution_time=at)
    [night] = nightly_recompute.evaluate_tick(context).run_requests or []
    assert [value for key, value in night.tags.items() if "range" in key] == ["2026-03-03", "2026-03-04"]
    [quality] = daily_quality.evaluate_tick(context).run_requests or []
    assert quality.tags[PARTITION] == "2026-03-04"


@pytest.mark.parametrize("is_told", [True, False])
def test_a_failed_run_is_told(monkeypatch: pytest.MonkeyPatch, receiver: Receiver, *, is_told: bool) -> None:
    """The alert names the run and why it failed, in the step's own words; without a URL nobody is told."""
    if is_told:
        monkeypatch.setenv("SAGASCOPE_ALERT_URL", f"http://127.0.0.1:{receiver.port}/alerts")

    @dg.op
    def fail() -> None:
        msg = "the 24th is damaged: bring its file back"
        raise dg.Failure(msg)

    @dg.job
    def failing() -> None:
        fail()

    with dg.DagsterInstance.ephemeral() as instance:
        run = failing.execute_in_process(instance=instance, raise_on_error=False)
        failed_runs(
            dg.build_run_status_sensor_context(
                sensor_name="failed_runs",
                dagster_event=run.get_run_failure_event(),
                dagster_instance=instance,
                dagster_run=run.dagster_run,
            ).for_run_failure()
        )
    told = [(alert.content["run_id"], alert.content["reasons"]) for alert in receiver.received]
    assert told == [(run.dagster_run.run_id, ["the 24th is damaged: bring its file back"])] * is_told
