"""The tables against the oracle, on a real broker, a real job, real sagas."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pytest

from pipelines.analytics_process import AnalyticsProcess
from pipelines.workload import Truth
from tests import oracle
from tests.event_vectors import VECTORS
from tests.integration.conftest import JOB_SECONDS, produce, synthetic
from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.progress import read_progress
from warehouse.tables import EVENTS, REJECTED_EVENTS, STATISTICS, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker]

YEAR_MS = 365 * 24 * 3600 * 1000


def differences(settings: Settings, topic: oracle.Topic) -> list[str]:
    """How the tables differ from the oracle's."""
    with history.open(settings) as tables:
        return oracle.differences(tables, topic, settings.window_seconds)


def test_tables_equal_the_oracle_and_a_planted_fault_is_seen(
    settings: Settings, sagas: Callable[..., int], drain: Callable[[Settings], None]
) -> None:
    """Every window equals plain Python over the topic, rejected records among them; one row removed or doubled is seen."""
    sent = sagas(settings, rate=120, seconds=12)
    wrong = [vector.value for vector in VECTORS if vector.wrong not in (None, "timestamp")]
    produce(settings, [(number % 2, value) for number, value in enumerate(wrong)])
    drain(settings)

    topic = oracle.read_topic(settings)
    assert (len(topic.events), len(topic.rejected)) == (sent, len(wrong))
    assert differences(settings, topic) == []

    # The statement of the README finds what the workload is known to hide.
    with history.open(settings) as tables:
        found = {
            row[-1]: row[:2]
            for row in tables.sql("FROM step_statistics(span := NULL) WHERE phase = 'step'").fetchall()
            if row[-1]
        }
    truth = Truth()
    assert found == {
        "slowest": (truth.slow.saga_name, truth.slow.step_name),
        "flakiest": (truth.flaky.saga_name, truth.flaky.step_name),
    }

    for table in (EVENTS, REJECTED_EVENTS, *STATISTICS):
        whole = _rows(settings, table)
        _replace(settings, table, whole.slice(1))
        assert len(differences(settings, topic)) == 1, f"a row removed from {table.name} was not seen"
        _replace(settings, table, pa.concat_tables([whole, whole.slice(0, 1)]))
        assert len(differences(settings, topic)) == 1, f"a row doubled in {table.name} was not seen"
        _replace(settings, table, whole)
        assert differences(settings, oracle.read_topic(settings)) == []


def test_a_partition_read_far_ahead_loses_nothing(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """One reader has one partition's two hours in hand while the other's have hardly begun: no event misses its window."""
    settings = msgspec.structs.replace(settings, parallelism=1, checkpoint_interval_ms=200)
    rng = random.Random(7)
    start = 1_780_000_000_000
    light = [(0, synthetic(n, start + n * 360, rng)) for n in range(20_000)]
    heavy = [(1, synthetic(n, start + n * 1_800, rng, padding=20_000)) for n in range(4_000)]
    produce(settings, light + heavy)
    drain(settings)
    far = 20 * settings.watermark_delay_ms  # the lead is seen at commits only, wherever these fall
    assert _largest_lead(settings) > far, "both partitions were read alike: nothing was tried"
    assert differences(settings, oracle.read_topic(settings)) == []


def test_a_timestamp_far_ahead_closes_no_window(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """An event years ahead is rejected, and moves no watermark: honest events still count."""
    rng = random.Random(7)
    start = 1_780_000_000_000
    before = [(n % 2, synthetic(n, start + n * 100, rng)) for n in range(500)]
    ahead = [(n, synthetic(n, 1_795_000_000_000 + 10 * YEAR_MS, rng)) for n in range(2)]
    after = [(n % 2, synthetic(n, start + 50_000 + n * 100, rng)) for n in range(500)]
    produce(settings, before + ahead + after)
    drain(settings)
    topic = oracle.read_topic(settings)
    assert (len(topic.events), len(topic.rejected)) == (1_000, 2)
    assert differences(settings, topic) == []


def test_a_partition_of_rejects_holds_no_window_open(settings: Settings) -> None:
    """What is no event has no time: a partition in which nothing else comes is as idle as a silent one."""
    settings = msgspec.structs.replace(settings, idle_timeout_ms=2_000)
    rng = random.Random(7)
    produce(settings, [(0, synthetic(n, 1_780_000_000_000 + n * 1_000, rng)) for n in range(300)])
    job = AnalyticsProcess(settings)
    try:
        job.start()
        deadline = time.monotonic() + JOB_SECONDS
        while not read_progress(settings).closed:
            assert time.monotonic() < deadline, f"no window was closed: {job.failure()}"
            produce(settings, [(1, b"no event")] * 3)
            time.sleep(0.3)
    finally:
        job.stop()


def test_each_vector_is_stored_as_decode_has_it(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """Field by field, cut and filled in alike: what Python's decode makes of a record is what the job stores of it."""
    valid = [vector for vector in VECTORS if vector.wrong is None]
    own_ids = [vector.value.replace(b'"x"', b'"x%d"' % number, 1) for number, vector in enumerate(valid)]
    produce(settings, [(0, value) for value in own_ids])
    drain(settings)
    topic = oracle.read_topic(settings)
    assert (len(topic.events), topic.rejected) == (len(valid), [])
    with history.open(settings) as tables:
        assert [found for found in oracle.differences(tables, topic, settings.window_seconds) if "few" in found] == []


def test_duplicates_count_once_within_the_horizon(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """The same id again, in the other partition too, is one event."""
    rng = random.Random(7)
    start = 1_780_000_000_000
    first = [synthetic(n, start + n * 100, rng) for n in range(1_000)]
    again = [(rng.randrange(2), value) for value in first[::10]]
    later = [(n % 2, synthetic(n, start + 1_200_000 + n * 100, rng)) for n in range(1_000)]
    produce(settings, [(n % 2, value) for n, value in enumerate(first)] + again + later)
    drain(settings)
    topic = oracle.read_topic(settings)
    assert (len(topic.events), topic.duplicates) == (2_000, 100)
    assert differences(settings, topic) == []


def _largest_lead(settings: Settings) -> float:
    """By how much, in event time, partition 0 was ahead of partition 1 at most, at a commit."""
    table = open_catalog(settings).load_table(EVENTS.identifier)
    leads: list[float] = []
    for snapshot in table.snapshots():
        rows = table.scan(
            selected_fields=("timestamp", "source_partition"), snapshot_id=snapshot.snapshot_id
        ).to_arrow()
        newest = dict(
            rows.group_by("source_partition").aggregate([("timestamp", "max")]).to_pandas().to_numpy().tolist()
        )
        if len(newest) == 2:
            leads.append((newest[0] - newest[1]).total_seconds() * 1000)
    return max(leads)


def _rows(settings: Settings, table: Table) -> pa.Table:
    return open_catalog(settings).load_table(table.identifier).scan().to_arrow()


def _replace(settings: Settings, table: Table, rows: pa.Table) -> None:
    open_catalog(settings).load_table(table.identifier).overwrite(rows)
