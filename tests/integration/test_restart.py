"""What becomes of the tables when the job is killed, stopped, damaged, changed, or started twice."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import psutil
import pytest
from kafka import KafkaAdminClient, TopicPartition

from pipelines.analytics_process import AnalyticsProcess
from pipelines.processes import ProcessFailedError
from tests import oracle
from tests.integration.conftest import produce, synthetic
from warehouse import history, parity
from warehouse.catalog import open_catalog
from warehouse.progress import read_progress
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker, pytest.mark.timeout(600)]

KILLS = 3


def test_killed_three_times_under_load_each_event_is_stored_once(
    settings: Settings, sagas: Callable[..., int], request: pytest.FixtureRequest
) -> None:
    """`kill -9` of the job's JVM at three random moments, restarted each time: each id once, closed windows right."""
    rng = random.Random(11)
    sent: list[int] = []
    enough = threading.Event()
    load = threading.Thread(target=lambda: sent.append(sagas(settings, rate=40, enough=enough)))
    load.start()
    request.addfinalizer(enough.set)
    resumed = []
    for _ in range(KILLS):
        job = _start(settings)
        resumed.append(job.status().resumes_from)
        _await_commit(settings)  # it has a checkpoint, and works
        time.sleep(rng.uniform(0, 3))
        _jvm(job).kill()
        _await_end(job)
        assert job.exit_code() == 1, job.failure()
    refused = subprocess.run(
        [sys.executable, "-P", "-m", "jobs.recompute", "--from", f"{datetime.now(UTC):%Y-%m-%dT%H:00Z}"],
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "its last commits may still be to come: start it" in refused.stdout, (
        "a recompute would not know what is stored"
    )
    job = _start(settings)
    resumed.append(job.status().resumes_from)
    enough.set()
    load.join()
    _await(lambda: not _left(settings), 60)
    assert job.stop() == 0

    assert all(resumed[1:]), "a restart resumed from no checkpoint"
    _assert_right(settings, sent[0])


def test_a_second_job_on_the_same_tables_is_refused(settings: Settings) -> None:
    """Two jobs would store every event twice, so the second one ends at once and names the first."""
    first = _start(settings)
    with pytest.raises(ProcessFailedError, match=rf"another analytics job \(pid {first.pid}\)"):
        AnalyticsProcess(settings).start()
    second = subprocess.run(
        [sys.executable, "-m", "jobs.analytics"],
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert f"another analytics job (pid {first.pid})" in second.stdout
    assert first.exit_code() is None
    assert first.status().status == "running"
    assert first.stop() == 0


def test_stopped_with_savepoints_each_event_is_stored_once(
    settings: Settings, sagas: Callable[..., int], request: pytest.FixtureRequest
) -> None:
    """A stop takes a savepoint and drains nothing; the next start resumes from it, and no window is told in halves."""
    sent: list[int] = []
    enough = threading.Event()
    load = threading.Thread(target=lambda: sent.append(sagas(settings, rate=40, enough=enough)))
    load.start()
    request.addfinalizer(enough.set)
    for stops in range(3):
        job = _start(settings)
        if stops:
            assert "savepoint-" in str(job.status().resumes_from)
        _await_commit(settings)
        if stops < 2:
            assert job.stop() == 0
            assert list(settings.checkpoints.glob("savepoint-*/_metadata"))
    enough.set()
    load.join()
    _await(lambda: not _left(settings), 60)
    assert job.stop() == 0
    _assert_right(settings, sent[0])


def _of_metadata(checkpoint: Path) -> None:
    (checkpoint / "_metadata").write_bytes(b"rubbish")


def _of_state(checkpoint: Path) -> None:
    largest = max(
        (file for file in checkpoint.iterdir() if file.name != "_metadata"), key=lambda file: file.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.parametrize(("damage", "count"), [(_of_metadata, 2), (_of_state, 1)])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    settings: Settings, sagas: Callable[..., int], damage: Callable[[Path], None], count: int
) -> None:
    """It is said, what lies between the two is read again, and neither an event nor a window is stored twice."""
    sent = sagas(settings, rate=100, seconds=10)
    job = _start(settings)
    _await(lambda: not _left(settings), 60)
    more = sagas(settings, rate=100, seconds=5)
    _await(lambda: not _left(settings), 60)
    _await(lambda: len(completed(settings)) > count, 30)
    _jvm(job).kill()
    _await_end(job)
    newest = completed(settings)[-count:]
    for checkpoint in newest:
        damage(checkpoint)
    job = _start(settings)
    for checkpoint in newest:
        _await(lambda: f"{checkpoint} can't be restored" in job.log.read_text(), 60)  # noqa: B023 - called at once
    assert "falling back" in job.log.read_text()
    still_more = sagas(settings, rate=100, seconds=3)
    _await(lambda: not _left(settings), 60)
    assert job.stop() == 0
    _assert_right(settings, sent + more + still_more)


def test_a_rebase_goes_on_from_the_tables(settings: Settings, sagas: Callable[..., int]) -> None:
    """Another SQL and lost checkpoints are refused; a rebase reads again what it must, and stores nothing twice."""
    sent = sagas(settings, rate=100, seconds=12)
    job = _start(settings)
    _await(lambda: not _left(settings), 60)
    _await_commit(settings)
    _jvm(job).kill()
    _await_end(job)
    refused = AnalyticsProcess(msgspec.structs.replace(settings, window_seconds=60))
    refused.start()
    _await_end(refused)
    assert refused.exit_code() == 1
    assert "'window_seconds': 10" in refused.failure()
    refused = AnalyticsProcess(msgspec.structs.replace(settings, watermark_delay_ms=6_000))
    refused.start()
    _await_end(refused)
    assert refused.exit_code() == 1
    assert re.search(
        r"'watermark_delay_ms': 5000.*'sql': '\w+'|'sql': '\w+'.*'watermark_delay_ms': 5000", refused.failure()
    )
    assert "--rebase" in refused.failure()
    for run in settings.checkpoints.glob("*/"):
        shutil.rmtree(run)
    refused = AnalyticsProcess(settings)
    refused.start()
    _await_end(refused)
    assert refused.exit_code() == 1
    assert "would store them twice" in refused.failure()

    sent += sagas(settings, rate=100, seconds=3)
    settings = msgspec.structs.replace(settings, watermark_delay_ms=6_000)
    job = AnalyticsProcess(settings, rebase=True)
    _started.append(job)
    job.start()
    sent += sagas(settings, rate=100, seconds=12)
    _await(lambda: not _left(settings), 90)
    _await_commit(settings)
    assert job.stop() == 0
    _assert_right(settings, sent)


def test_a_rebase_to_another_width(settings: Settings) -> None:
    """The hour of the change is told in the new width once it is over, by itself: no window in halves, none twice."""
    rng, start = random.Random(3), 1_780_002_000_000  # a whole hour

    def minutes(first: int, last: int) -> list[tuple[int, bytes]]:
        return [(n % 2, synthetic(n, start + n * 1_000, rng)) for n in range(first * 60, last * 60)]

    produce(settings, minutes(0, 20))
    job = _start(settings)
    _await(lambda: not _left(settings), 60)
    _await(lambda: len(read_progress(settings).closed) == 2, 60)  # no event is one of a saga's own
    assert job.stop() == 0
    settings = msgspec.structs.replace(settings, window_seconds=60)
    job = AnalyticsProcess(settings, rebase=True)
    _started.append(job)
    job.start()
    produce(settings, minutes(20, 70))
    _await(lambda: not _left(settings), 90)
    _await(lambda: '"chore": "recompute", "hours"' in job.log.read_text(), 90)
    assert job.stop() == 0
    topic, closed = oracle.read_topic(settings), read_progress(settings).closed
    assert len(topic.events) == 70 * 60
    with history.open(settings) as tables:
        assert oracle.differences(tables, topic, 60, until=min(closed.values())) == []


def test_records_deleted_before_they_were_read(settings: Settings) -> None:
    """The job does not jump over them in silence: it fails, a rebase names them and goes on, and the rest is stored."""
    rng, start = random.Random(3), 1_780_002_000_000
    records = [(n % 2, synthetic(n, start + n * 100, rng)) for n in range(2_000)]
    produce(settings, records[:1_000])
    job = _start(settings)
    _await(lambda: not _left(settings), 60)
    assert job.stop() == 0
    produce(settings, records[1_000:])
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    admin.delete_records({TopicPartition(settings.topic, 0): 700})
    admin.close()

    failed = AnalyticsProcess(settings)
    _started.append(failed)
    failed.start()
    _await(lambda: failed.exit_code() is not None, 60)
    assert failed.exit_code() == 1
    assert "deleted from the topic before the job has read them" in failed.failure()
    assert "--rebase" in failed.failure()

    job = AnalyticsProcess(settings, rebase=True)
    _started.append(job)
    job.start()
    _await(lambda: not _left(settings), 90)
    assert job.stop() == 0
    assert "the 200 records from 500 on are deleted from the topic and in no table" in job.log.read_text()
    with history.open(settings) as tables:
        counted = tables.sql(
            "SELECT source_partition, count(*), count(DISTINCT event_id) FROM events GROUP BY 1 ORDER BY 1"
        )
        assert counted.fetchall() == [(0, 800, 800), (1, 1_000, 1_000)]


def test_the_jvm_of_a_killed_job_keeps_a_second_one_away(settings: Settings) -> None:
    """Its Python process is gone, the JVM is not: it would go on writing the tables."""
    job = _start(settings)
    jvm = _jvm(job)
    jvm.suspend()
    psutil.Process(job.pid).kill()
    _await_end(job)
    try:
        second = AnalyticsProcess(settings)
        _started.append(second)
        second.start()
        _await_end(second)
        assert second.exit_code() == 1
        assert f"the JVM (pid {jvm.pid}) of an analytics job that was killed" in second.failure()
    finally:
        jvm.resume()
    _await(lambda: not jvm.is_running(), 30)
    assert _start(settings).status().status == "running"


def test_only_this_machine_reaches_the_job(settings: Settings) -> None:
    """Every port that job and JVM listen on is one of the loopback interface."""
    job = _start(settings)
    family = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    listening = [c.laddr for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {address.ip.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}
    job.stop()


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


@pytest.fixture(autouse=True)
def stop_jobs() -> Iterator[None]:
    """No test leaves a JVM to weigh on the next one."""
    yield
    while _started:
        _started.pop().stop()


_started: list[AnalyticsProcess] = []


def _start(settings: Settings) -> AnalyticsProcess:
    job = AnalyticsProcess(settings)
    _started.append(job)
    job.start()
    _await(lambda: job.status().status == "running" or job.exit_code() is not None, 60)
    assert job.exit_code() is None, job.failure()
    return job


def _assert_right(settings: Settings, sent: int) -> None:
    """Each id once, and the windows that are closed equal the oracle's."""
    topic = oracle.read_topic(settings)
    assert len(topic.events) == sent
    closed = read_progress(settings).closed
    with history.open(settings) as tables:
        [(rows, ids)] = tables.sql("SELECT count(*), count(DISTINCT event_id) FROM events").fetchall()
        assert (rows, ids) == (sent, sent)
        assert oracle.differences(tables, topic, settings.window_seconds, until=min(closed.values())) == []


def completed(settings: Settings) -> list[Path]:
    """The checkpoints of the last run, the newest last."""
    found = [file.parent for file in settings.checkpoints.glob("*/chk-*/_metadata")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("chk-")))


def _jvm(job: AnalyticsProcess) -> psutil.Process:
    [jvm] = [child for child in psutil.Process(job.pid).children(recursive=True) if "java" in child.name()]
    return jvm


def _await_end(job: AnalyticsProcess) -> None:
    _await(lambda: job.exit_code() is not None, 30)


def _await_commit(settings: Settings) -> None:
    before = _commits(settings)
    _await(lambda: _commits(settings) > before, 60)


def _commits(settings: Settings) -> int:
    with closing(open_catalog(settings)) as catalog:
        return len(catalog.load_table(EVENTS.identifier).snapshots())


def _left(settings: Settings) -> int:
    return sum(account.lag + account.missing for account in parity.balance(settings))


def _await(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
