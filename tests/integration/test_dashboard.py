"""The live numbers beside a real job, from real sagas through a real broker."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pipelines.analytics_process import AnalyticsProcess
from pipelines.dashboard.answers import System
from tests import oracle
from tests.integration.conftest import JOB_SECONDS
from tests.pipelines.dashboard.conftest import serving
from tests.warehouse.live_oracle import assert_equals_oracle
from warehouse.live_frame import Frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker]

TOLD_SECONDS = 10.0


def test_live_numbers_follow_the_job_and_equal_the_oracle(settings: Settings, sagas: Callable[..., int]) -> None:
    """From before there are tables to after the job has ended, which is told within ten seconds."""
    job = AnalyticsProcess(settings)
    with serving(settings) as served:
        try:
            job.start()
            sent = sagas(settings, rate=60, seconds=12)
            feed = served.dashboard.feed

            def stored(_: Any) -> bool:
                assert job.exit_code() is None, job.failure()
                return feed.is_ready and sum(last + 1 for last in feed.live.offsets().values()) == sent

            deadline = time.monotonic() + JOB_SECONDS
            while not stored(None):
                assert time.monotonic() < deadline
                time.sleep(0.25)
            number = feed.newest.number
            served.await_frame(lambda _: feed.newest.number > number + 1)
            frame = msgspec.json.decode(served.get("/api/v1/live").content, type=Frame)
            rows = [
                msgspec.structs.asdict(event)
                | {
                    "event_type": str(event.event_type),
                    "timestamp": datetime.fromtimestamp(event.timestamp / 1000, UTC),
                }
                for event in oracle.read_topic(settings).events
            ]
            assert_equals_oracle(frame, rows)
            assert frame.windows[-1].all_sagas.started > 0
            system = msgspec.json.decode(served.get("/api/v1/system").content, type=System)
            assert (system.lag_unknown, [partition.lag for partition in system.lag]) == (None, [0, 0])
            assert system.job_pid == str(job.pid)
            assert frame.freshness.stale is None
        finally:
            job.stop()
        began = time.monotonic()
        served.await_frame(lambda frame: "the analytics job has ended" in (frame["freshness"]["stale"] or ""))
        assert time.monotonic() - began < TOLD_SECONDS
