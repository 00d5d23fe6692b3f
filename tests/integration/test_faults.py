"""What is under the job breaks: the broker is killed, the catalog stays locked, the disk is full. The whole series is `bench/faults.py`."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from bench.fault_stage import Stage, Verdict
from bench.faults import try_kind
from jobs.watching import STALL_SECONDS
from pipelines import stack
from tests.conftest import home_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker, pytest.mark.timeout(600)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A broker of its own, which may be killed, and a job under a load with twins and malformed records."""
    broker = home_settings(tmp_path / "kafka")
    stack.up(broker)
    try:
        with closing(Stage(broker, tmp_path / "home", "faults", seed=7, rate=100, changes={})) as stage:
            stage.begin()
            yield stage
    finally:
        stack.down(broker)


def test_the_broker_killed_and_started_again(stage: Stage) -> None:
    """`kill -9` of the broker: it is said, nothing that it had acknowledged is lost, nothing is stored twice."""
    stage.moment(2.0)
    broker = stack.status(stage.broker)
    assert broker
    assert broker.process
    broker.process.kill()
    time.sleep(3.0)
    stack.up(stage.broker)
    stage.recover(time.monotonic())
    assert "waiting" in stage.job.log.read_text(), "the job has not said that it waits for Kafka"
    _assert_right(stage)


def test_the_catalog_locked_for_longer_than_a_commit_waits(stage: Stage) -> None:
    """The job says what holds it up, and does not end: afterwards nothing is lost or stored twice."""
    job = stage.job
    with closing(sqlite3.connect(stage.settings.catalog_file, timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        rows = stage.rows()
        time.sleep(STALL_SECONDS + 6)  # its commit gives up after 30 s, and is tried again
        assert stage.rows() == rows, "it has committed in spite of the lock: nothing was tried"
    stage.recover(time.monotonic())
    assert stage.job is job
    _assert_right(stage)
    stalls = [what for what in stage.said if what.startswith("stalled")]
    assert stalls, stage.said
    assert f"the catalog {stage.settings.catalog_file} can't be written" in stalls[0]


def test_the_disk_full(stage: Stage) -> None:
    """No file can be written for a while: the job says why it stalls, and afterwards nothing is lost or stored twice.

    A limit of no bytes for what the processes write to a file takes the same way as a full disk, a write that fails, and
    needs neither root nor a file system of its own.
    """
    writing = [stage.jvm(), psutil.Process(stage.job.pid)]
    limits = {process: process.rlimit(psutil.RLIMIT_FSIZE) for process in writing}
    for process, (_, hard) in limits.items():
        process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    time.sleep(5 * stage.settings.checkpoint_interval_ms / 1000)
    rows = stage.rows()
    time.sleep(2 * stage.settings.checkpoint_interval_ms / 1000)
    assert stage.rows() == rows, "it has committed in spite of the limit: nothing was tried"
    for process, limit in limits.items():
        with suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, limit)
    stage.recover(time.monotonic())
    _assert_right(stage)
    assert stage.said, "the job has said nothing of it"


@pytest.mark.parametrize(("name", "tries"), [("kill", 2), ("outage", 1), ("recomputes", 1), ("ahead", 2), ("drain", 2)])
def test_the_series_in_small(broker_home: Settings, tmp_path: Path, name: str, tries: int) -> None:
    """JVM and Python killed, an outage beyond the horizon, recomputes beside the stream, a year ahead, bounded drains."""
    row = try_kind(name, tries, broker_home, tmp_path, seed=7, rate=100)
    assert row.failure == ""
    assert row.verdict.events > 500
    assert row.is_right, row.verdict


def _assert_right(stage: Stage) -> None:
    verdict = stage.settle()
    assert verdict.events > 500
    assert verdict == Verdict(events=verdict.events), verdict
