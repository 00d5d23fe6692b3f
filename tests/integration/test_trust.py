"""Numbers one can trust: duplicates, rejects, late events, and what mends the statistics, on a real broker and a real job."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pytest
from pyiceberg.expressions import AlwaysTrue

from sagascope import EventType, InvalidEventError, SagaEvent, decode, encode
from sagascope.events import new_id
from tests import oracle
from tests.event_vectors import VECTORS
from tests.integration.conftest import produce
from warehouse import history, parity, windows
from warehouse.catalog import open_catalog
from warehouse.statistics import window_seconds
from warehouse.tables import EVENTS, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker, pytest.mark.timeout(600)]

START = 1_780_002_000_000  # a whole hour: 2026-05-28T21:00Z
HOUR_MS = 3_600_000
WRONG = [vector.value for vector in VECTORS if vector.wrong not in (None, "timestamp")]


def runs(rng: random.Random, count: int, spacing_ms: int) -> list[tuple[int, list[SagaEvent]]]:
    """The events of `count` saga runs, each with the moment of its start; every fourth one fails and is undone."""
    found = []
    for number in range(count):
        begin, saga_id, run_id = START + number * spacing_ms, f"saga-{number}", new_id()
        name = f"kind-{number % 3}"
        plan: list[tuple[EventType, str | None, int | None]] = [(EventType.SAGA_STARTED, None, None)]
        fails = number % 4 == 0
        for step in ("reserve", "pay", "ship"):
            failed = fails and step == "pay"
            plan.append((EventType.STEP_STARTED, step, None))
            ended = EventType.STEP_FAILED if failed else EventType.STEP_COMPLETED
            plan.append((ended, step, int(rng.lognormvariate(4, 1))))
            if failed:
                plan += [
                    (EventType.COMPENSATION_STARTED, "reserve", None),
                    (EventType.COMPENSATION_COMPLETED, "reserve", int(rng.lognormvariate(3, 1))),
                ]
                break
        plan.append((EventType.SAGA_ROLLED_BACK if fails else EventType.SAGA_COMPLETED, None, None))
        events = []
        moment = begin
        for sequence, (event_type, step_name, duration) in enumerate(plan):
            moment += duration or 1
            events.append(
                SagaEvent(
                    event_id=new_id(),
                    event_type=event_type,
                    saga_id=saga_id,
                    saga_name=name,
                    run_id=run_id,
                    sequence=sequence,
                    timestamp=moment,
                    step_name=step_name,
                    duration_ms=duration,
                    total_duration_ms=moment - begin if sequence == len(plan) - 1 else None,
                    error_type="Planned" if event_type == EventType.STEP_FAILED else None,
                )
            )
        found.append((begin, events))
    return found


def disordered(seed: int, count: int = 1_500, spacing_ms: int = 400) -> list[tuple[int, bytes]]:
    """Records as a bad day brings them, each with its partition.

    5 % of the events come up to a minute late, so out of order within their run too; every tenth one comes twice; and
    1 % of the records are no event.
    """
    rng = random.Random(seed)
    arriving = []
    for partition, (_, events) in enumerate(runs(rng, count, spacing_ms)):
        for event in events:
            late = rng.randrange(60_000) if rng.random() < 0.05 else 0
            arriving.append((event.timestamp + late, partition % 2, encode(event)))
            if rng.random() < 0.1:
                arriving.append((event.timestamp + late + rng.randrange(5_000), partition % 2, encode(event)))
    wrong = rng.sample(WRONG, len(WRONG))  # in a long load each one once, before any comes again
    arriving += [
        (START + rng.randrange(count * spacing_ms), rng.randrange(2), wrong[number % len(wrong)])
        for number in range(len(arriving) // 100)
    ]
    arriving.sort(key=lambda record: record[0])
    return [(partition, value) for _, partition, value in arriving]


def differences(settings: Settings, topic: oracle.Topic) -> list[str]:
    """How the tables differ from the oracle's."""
    with history.open(settings) as tables:
        return oracle.differences(tables, topic, settings.window_seconds)


def test_with_the_delay_at_a_minute_all_is_equal(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """Twice, malformed, late by up to a minute, out of order: all tables equal the oracle, and the balance holds."""
    settings = msgspec.structs.replace(settings, watermark_delay_ms=60_000)
    produce(settings, disordered(seed=3))
    drain(settings)
    topic = oracle.read_topic(settings)
    assert topic.duplicates > 800
    assert len(topic.rejected) > 80
    assert differences(settings, topic) == []
    account = parity.audit(settings)
    assert sum(balance.duplicates for balance in account.partitions) == topic.duplicates
    assert sum(balance.rejected for balance in account.partitions) == len(topic.rejected)
    assert [b.missing + b.doubled + b.altered + b.lag for b in account.partitions] == [0, 0]
    for balance in account.partitions:
        assert balance.end - balance.begin == balance.stored + balance.duplicates + balance.rejected


def windows_with_late_events(settings: Settings, records: list[tuple[int, bytes]]) -> set[tuple[str, datetime]]:
    """The windows of each table that may miss an event: one that is further behind its partition's newest than the delay."""
    found, newest = set(), {0: 0, 1: 0}
    for partition, value in records:
        with suppress(InvalidEventError):
            moment = decode(value).timestamp
            newest[partition] = max(newest[partition], moment)
            if moment < newest[partition] - settings.watermark_delay_ms:
                for table in STATISTICS:
                    width = window_seconds(settings, table) * 1000
                    found.add((table.name, datetime.fromtimestamp(moment // width * width / 1000, UTC)))
    return found


def _window(difference: str) -> tuple[str, datetime]:
    """Table and start of the window that the oracle names."""
    name, start = re.findall(r"^(\w+) \(datetime\.datetime\(([\d, ]+)", difference)[0]
    year, month, day, hour, minute, second = (*map(int, start.strip(", ").split(", ")), 0)[:6]
    return name, datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def test_late_events_are_listed_and_mended(
    settings: Settings, drain: Callable[[Settings], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 5 s the windows without late events are equal; the others are just those that parity lists, and --mend mends."""
    records = disordered(seed=4)
    produce(settings, records)
    drain(settings)
    topic = oracle.read_topic(settings)
    found = differences(settings, topic)
    assert found, "no event was late: nothing was tried"
    assert all(line.startswith(("step_stats", "saga_stats", "step_durations")) for line in found)
    listed = windows.compare(settings)
    assert sum(table.differing for table in listed.tables) == len(found)
    differing = {_window(line) for line in found}
    monkeypatch.setattr(windows, "SHOWN", len(found))
    shown = [(table.table, one.window_start) for table in windows.compare(settings).tables for one in table.shown]
    assert set(shown) == differing
    assert differing <= windows_with_late_events(settings, records)

    said = _sagascope(settings, "parity")
    assert said.returncode == 1, said.stdout
    mended = _sagascope(settings, "parity", "--mend")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert differences(settings, topic) == []
    assert _sagascope(settings, "parity").returncode == 0


def test_an_id_that_comes_again_beyond_the_horizon(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """It is stored twice; parity names it, a recompute counts it once, and maintain dedup keeps one row of it."""
    settings = msgspec.structs.replace(settings, dedup_horizon_seconds=60)
    rng = random.Random(8)
    saga_runs = runs(rng, 1_500, 400)
    again = [event for _, events in saga_runs[:20] for event in events]
    records = [(0, encode(event)) for _, events in saga_runs for event in events]
    produce(settings, records + [(0, encode(event)) for event in again])
    drain(settings)
    topic = oracle.read_topic(settings)
    assert topic.duplicates == len(again)
    account = parity.audit(settings)
    assert account.repeated_ids == len(again)
    assert {repeated.event_id for repeated in account.repeated} <= {event.event_id for event in again}

    with closing(open_catalog(settings)) as catalog:  # so that there is something to recompute
        for table in STATISTICS:
            catalog.load_table(table.identifier).delete("saga_name = 'kind-0'")
    hour = datetime.fromtimestamp(START / 1000, UTC)
    assert _recompute(settings, hour, None)["status"] == "finished"
    found = differences(settings, topic)
    assert len(found) == len(again)
    assert all(line.startswith("1 too many: SagaEvent") for line in found), "the statistics count them twice"
    assert _sagascope(settings, "maintain", "dedup").returncode == 0
    assert differences(settings, topic) == []


def test_recompute_clears_an_hour_that_became_empty_and_leaves_the_others(
    settings: Settings, drain: Callable[[Settings], None]
) -> None:
    """Exactly those partitions: what is wrong in another hour stays wrong; `events` is read only."""
    rng = random.Random(5)
    records = [(n % 2, encode(event)) for n, (_, events) in enumerate(runs(rng, 300, 60_000)) for event in events]
    produce(settings, records)
    drain(settings)
    topic = oracle.read_topic(settings)
    with closing(open_catalog(settings)) as catalog:
        events = catalog.load_table(EVENTS.identifier)
        for table in STATISTICS:  # each row moved to the hour before: one hour too many, the last one missing
            stored = catalog.load_table(table.identifier)
            rows = stored.scan().to_arrow().to_pandas()
            rows[["window_start", "window_end"]] -= timedelta(hours=1)
            stored.overwrite(
                pa.Table.from_pandas(rows, stored.scan().to_arrow().schema, preserve_index=False), AlwaysTrue()
            )
        before = events.refresh().metadata.current_snapshot_id
    first = datetime.fromtimestamp(START / 1000, UTC)
    assert _recompute(settings, first - timedelta(hours=1), first)["status"] == "finished"
    with history.open(settings) as tables:
        for table in STATISTICS:
            starts = f"SELECT min(window_start), count(*) FROM stored_{table.name}"
            [(earliest, count)] = tables.sql(starts).fetchall()
            assert earliest == first
            assert count > 0
    with closing(open_catalog(settings)) as catalog:
        assert catalog.load_table(EVENTS.identifier).metadata.current_snapshot_id == before
    assert differences(settings, topic)
    refused = _recompute(settings, first, first + timedelta(hours=9))
    assert refused["status"] == "refused"
    assert (first + timedelta(hours=8)).isoformat() in str(refused["reason"])


def test_recompute_beside_the_stream_and_beside_itself(settings: Settings, drain: Callable[[Settings], None]) -> None:
    """Two recomputes of one hour while a stream appends to later ones: no row of any is lost or doubled."""
    produce(settings, disordered(seed=6))
    drain(settings)
    hour = datetime.fromtimestamp(START / 1000, UTC)
    done: list[dict[str, object]] = []
    _append_later(settings, 10)  # with it the hour is behind the watermark
    both = [
        threading.Thread(target=lambda: done.append(_recompute(settings, hour, hour + timedelta(hours=1))))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    appended = 1
    while any(thread.is_alive() for thread in both):
        _append_later(settings, 10 + appended)
        appended += 1
        time.sleep(0.3)
    assert [outcome["status"] for outcome in done] == ["finished", "finished"]
    topic = oracle.read_topic(settings)
    found = differences(settings, topic)
    assert len(found) == appended, found


def _append_later(settings: Settings, hours: int) -> None:
    """What the stream does: append to a later window."""
    with closing(open_catalog(settings)) as catalog:
        stored = catalog.load_table(STATISTICS[0].identifier)
        first = stored.scan(limit=1).to_arrow()
        [row] = first.to_pylist()
        start = datetime.fromtimestamp(START / 1000, UTC) + timedelta(hours=hours)
        row |= {"window_start": start, "window_end": start + timedelta(seconds=settings.window_seconds)}
        stored.append(pa.Table.from_pylist([row], first.schema))


def _sagascope(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(settings, "pipelines", *arguments)


def _recompute(settings: Settings, since: datetime, until: datetime | None) -> dict[str, object]:
    """What it said last."""
    bounds = ["--from", since.isoformat(), *(["--to", until.isoformat()] if until else [])]
    done = _run(settings, "jobs.recompute", *bounds)
    assert done.stdout, done.stderr
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


def _run(settings: Settings, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
