"""The tables against the oracle, on a real broker, a real job, real sagas."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pytest

from pipelines.workload import Truth
from tests import oracle
from tests.integration.conftest import produce, synthetic
from warehouse import history, parity
from warehouse.catalog import open_catalog
from warehouse.tables import EVENTS, STEP_STATS, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker]

VALID = (
    b'{"event_id":"x","event_type":"step_failed","saga_id":"s","saga_name":"n","run_id":"r","sequence":0,'
    b'"timestamp":1780000000000,"step_name":"p","attempt":1,"duration_ms":5,"schema_version":1}'
)
MALFORMED = [
    b"",
    b"not json",
    b"\xff\xfe",
    b"{}",
    b"{",
    VALID.replace(b"step_failed", b"step_vanished"),
    VALID.replace(b'"step_name":"p",', b""),
    VALID.replace(b'"saga_id":"s"', b'"saga_id":""'),
    VALID.replace(b'"sequence":0', b'"sequence":-1'),
    VALID.replace(b'"attempt":1', b'"attempt":0'),
    VALID.replace(b'"duration_ms":5', b'"duration_ms":-5'),
    VALID.replace(b"1780000000000", b"-1"),
    VALID.replace(b"1780000000000", b"9780000000000"),
]
YEAR_MS = 365 * 24 * 3600 * 1000
HOUR_MS = 3600 * 1000


def differences(settings: Settings, topic: oracle.Topic) -> list[str]:
    """How the tables differ from the oracle's."""
    with history.open(settings) as tables:
        return oracle.differences(tables, topic, settings.window_seconds)


def test_tables_equal_the_oracle_and_a_planted_fault_is_seen(
    settings: Settings, sagas: Callable[..., int], drain: Callable[[Settings], None]
) -> None:
    """Every window equals plain Python over the topic, malformed records among them; one row removed or doubled is seen."""
    sent = sagas(settings, rate=120, seconds=12)
    produce(settings, [(number % 2, value) for number, value in enumerate(MALFORMED)])
    drain(settings)

    topic = oracle.read_topic(settings)
    assert (len(topic.events), topic.malformed) == (sent, len(MALFORMED))
    assert differences(settings, topic) == []
    accounts = parity.balance(settings)
    assert sum(account.stored for account in accounts) == sent
    assert sum(account.malformed for account in accounts) == len(MALFORMED)
    assert [account.missing + account.lag + account.doubled for account in accounts] == [0, 0]

    # The statement of the README finds what the workload is known to hide.
    with history.open(settings) as tables:
        found = {row[-1]: row[:2] for row in tables.sql(history.report("slowest_and_flakiest")).fetchall() if row[-1]}
    truth = Truth()
    assert found == {
        "slowest": (truth.slow.saga_name, truth.slow.step_name),
        "flakiest": (truth.flaky.saga_name, truth.flaky.step_name),
    }

    for table in (EVENTS, STEP_STATS):
        whole = _rows(settings, table)
        _replace(settings, table, whole.slice(1))
        assert len(differences(settings, topic)) == 1, f"a row removed from {table.name} was not seen"
        _replace(settings, table, pa.concat_tables([whole, whole.slice(0, 1)]))
        assert len(differences(settings, topic)) == 1, f"a row doubled in {table.name} was not seen"
        _replace(settings, table, whole)
        assert differences(settings, oracle.read_topic(settings)) == []


def test_a_partition_read_far_ahead_loses_nothing(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """One reader has one partition's two hours in hand while the other's have hardly begun: no event misses its window."""
    settings = msgspec.structs.replace(settings, parallelism=1)
    rng = random.Random(7)
    start = 1_780_000_000_000
    light = [(0, synthetic(n, start + n * 360, rng)) for n in range(20_000)]
    heavy = [(1, synthetic(n, start + n * 1_800, rng, padding=20_000)) for n in range(4_000)]
    produce(settings, light + heavy)
    drain(settings)
    assert _largest_lead(settings) > HOUR_MS, "both partitions were read alike: nothing was tried"
    assert differences(settings, oracle.read_topic(settings)) == []


def test_a_timestamp_far_ahead_closes_no_window(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """An event years ahead is stored nowhere, counted as malformed, and moves no watermark: honest events still count."""
    rng = random.Random(7)
    start = 1_780_000_000_000
    before = [(n % 2, synthetic(n, start + n * 100, rng)) for n in range(500)]
    ahead = [(n, synthetic(n, 1_795_000_000_000 + 10 * YEAR_MS, rng)) for n in range(2)]
    after = [(n % 2, synthetic(n, start + 50_000 + n * 100, rng)) for n in range(500)]
    produce(settings, before + ahead + after)
    drain(settings)
    topic = oracle.read_topic(settings)
    assert (len(topic.events), topic.malformed) == (1_000, 2)
    assert differences(settings, topic) == []
    accounts = parity.balance(settings)
    assert [(a.stored, a.malformed, a.missing, a.lag) for a in accounts] == [(500, 1, 0, 0), (500, 1, 0, 0)]


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
