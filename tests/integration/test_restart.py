"""What becomes of the tables when the job is killed."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from pipelines.analytics_process import AnalyticsProcess
from tests import oracle
from warehouse import history, parity

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker]

KILLS = 3


def test_killed_three_times_under_load_each_event_is_stored_once(settings: Settings, sagas: Callable[..., int]) -> None:
    """`kill -9` of the job's JVM at three random moments, restarted each time: each id once, closed windows right."""
    rng = random.Random(11)
    sent: list[int] = []
    load = threading.Thread(target=lambda: sent.append(sagas(settings, rate=60, seconds=60, scale_time=50)))
    load.start()
    resumed = []
    for _ in range(KILLS):
        job = _start(settings)
        resumed.append(job.status().resumes_from)
        time.sleep(rng.uniform(3, 8))
        _jvm(job).kill()
        _await_end(job)
        assert job.exit_code() == 1, job.failure()
    job = _start(settings)
    resumed.append(job.status().resumes_from)
    load.join()
    _await(lambda: not _left(settings), 60)
    job.stop()
    assert job.exit_code() == 0

    assert any(resumed), "no restart resumed from a checkpoint: nothing was tried"
    topic = oracle.read_topic(settings)
    assert len(topic.events) == sent[0]
    with history.open(settings) as tables:
        [(rows, ids)] = tables.sql("SELECT count(*), count(DISTINCT event_id) FROM events").fetchall()
        assert (rows, ids) == (sent[0], sent[0])
        [(closed,)] = tables.sql("SELECT max(window_end) FROM step_stats").fetchall()
        assert closed is not None
        assert oracle.differences(tables, topic, settings.window_seconds, until=closed) == []


def test_a_second_job_on_the_same_tables_is_refused(settings: Settings) -> None:
    """Two jobs would store every event twice, so the second one ends at once and names the first."""
    first = _start(settings)
    second = AnalyticsProcess(settings)
    second.start()
    _await_end(second)
    assert second.exit_code() == 1
    assert f"another analytics job (pid {first.pid})" in second.failure()
    assert first.exit_code() is None
    first.stop()
    assert first.exit_code() == 0


def test_a_job_whose_parent_is_gone_stops(settings: Settings) -> None:
    """The end of its standard input, which is what a killed parent leaves, stops the job and its JVM."""
    job = _start(settings)
    jvm = _jvm(job)
    assert job._child is not None
    assert job._child.stdin is not None
    job._child.stdin.close()
    _await_end(job)
    assert job.exit_code() == 0
    _await(lambda: not jvm.is_running(), 30)


def _start(settings: Settings) -> AnalyticsProcess:
    job = AnalyticsProcess(settings)
    job.start()
    _await(lambda: job.status().status == "running" or job.exit_code() is not None, 60)
    assert job.exit_code() is None, job.failure()
    return job


def _jvm(job: AnalyticsProcess) -> psutil.Process:
    [jvm] = [child for child in psutil.Process(job.pid).children(recursive=True) if "java" in child.name()]
    return jvm


def _await_end(job: AnalyticsProcess) -> None:
    _await(lambda: job.exit_code() is not None, 30)


def _left(settings: Settings) -> int:
    return sum(account.lag + account.missing for account in parity.balance(settings))


def _await(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
