"""`sagascope doctor` beside the real job: it sees the job run, and judges its checkpoints as the job itself does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from jobs.resume import completed_checkpoints
from pipelines.analytics_process import AnalyticsProcess
from pipelines.doctor import examine
from pipelines.doctor.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker]

SECONDS = 120.0


def of(area: str, findings: list[Finding]) -> str:
    """What was found there."""
    return " ".join(one.what for one in findings if one.area == area)


def test_it_judges_as_the_job_does(settings: Settings, sagas: Callable[..., int]) -> None:
    """While the job runs and after it all is well; with another window the doctor foretells what the job then says."""
    sagas(settings, rate=50, seconds=2)
    job = AnalyticsProcess(settings)
    try:
        job.start()
        deadline = time.monotonic() + SECONDS
        while not completed_checkpoints(settings.checkpoints) and time.monotonic() < deadline:
            assert job.exit_code() is None, job.failure()
            time.sleep(0.1)
        while_running = examine(settings)
    finally:
        job.stop()
    after = examine(settings)
    for findings in (while_running, after):
        assert [one for one in findings if one.level is Level.FAULT] == []
        assert "made for this very job" in of("fingerprint", findings)
    assert f"the analytics job runs (pid {job.pid}, its JVM " in of("job", while_running)
    assert "no analytics job runs" in of("job", after)

    wider = msgspec.structs.replace(settings, window_seconds=20)
    [foretold] = [one for one in examine(wider) if one.area == "fingerprint"]
    assert foretold.level is Level.FAULT
    assert "window_seconds was 10, is 20" in foretold.what
    refused = AnalyticsProcess(wider)
    try:
        refused.start()
        while refused.exit_code() is None:
            time.sleep(0.1)
        assert "window_seconds" in (refused.status().reason or "")
    finally:
        refused.stop()
