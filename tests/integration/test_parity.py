"""Parity on a real topic: tables written from it by plain Python are whole, and every fault planted in them is found."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import schema_to_pyarrow
from typer.testing import CliRunner

from pipelines import cli, upkeep_commands
from sagascope.events import EventType, InvalidEventError, SagaEvent, decode, encode, new_id
from tests import oracle
from warehouse import parity, windows
from warehouse.catalog import open_catalog
from warehouse.replace import replace_rows
from warehouse.tables import EVENTS, REJECTED_EVENTS, SAGA_STATS, STEP_DURATIONS, STEP_STATS, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from warehouse.settings import Settings

pytestmark = pytest.mark.broker

START = datetime(2026, 11, 20, 10, 59, 58, tzinfo=UTC)
INVALID = [b"", b"not json", b"\xff\xfe", None, b'{"event_id":"x"}']
SAGAS = 60
Rows = list[dict[str, Any]]


def saga(number: int) -> list[SagaEvent]:
    """A saga of two steps, of which every third fails and is undone; the sagas begin a second apart."""
    start = START + timedelta(seconds=number)
    run, fails = new_id(), number % 3 == 0
    turns: list[tuple[EventType, dict[str, Any]]] = [
        (EventType.SAGA_STARTED, {"context_keys": ("order", "user"), "attributes": {"z": "1", "a": "2"}}),
        (EventType.STEP_COMPLETED, {"step_name": "reserve", "duration_ms": number * 7, "compensable": True}),
    ]
    if fails:
        error = {"error_type": "Declined", "error_message": "no " * (1 if number % 2 else 5_000)}
        turns += [
            (EventType.STEP_FAILED, {"step_name": "pay", "duration_ms": 30, "pivot": True, **error}),
            (EventType.COMPENSATION_COMPLETED, {"step_name": "reserve", "duration_ms": 0}),
            (EventType.SAGA_ROLLED_BACK, {"total_duration_ms": 900 + number}),
        ]
    else:
        turns.append((EventType.SAGA_COMPLETED, {"total_duration_ms": 100 + number}))
    return [
        SagaEvent(
            event_id=new_id(),
            event_type=kind,
            saga_id=f"s{number}",
            saga_name="order" if number % 2 else "refund",
            run_id=run,
            sequence=sequence,
            timestamp=round((start + timedelta(milliseconds=200 * sequence)).timestamp() * 1000),
            **fields,
        )
        for sequence, (kind, fields) in enumerate(turns)
    ]


def fill_topic(settings: Settings) -> None:
    """Sagas, every tenth event twice, records that are no events in between."""
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    number = 0
    for saga_number in range(SAGAS):
        for event in saga(saga_number):
            number += 1
            for _ in range(2 if number % 10 == 0 else 1):
                producer.send(settings.topic, encode(event), partition=saga_number % 2)
        if saga_number % 12 == 5:
            producer.send(settings.topic, INVALID[saga_number // 12], key=b"k", partition=saga_number % 2)
    producer.flush()
    producer.close()


def right_rows(settings: Settings, *, keep_duplicates: bool = False) -> dict[Table, Rows]:
    """What the tables are to hold, by plain Python over the topic."""
    consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False)
    partitions = [TopicPartition(settings.topic, number) for number in range(settings.partitions)]
    ends = consumer.end_offsets(partitions)
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    events: dict[str, SagaEvent] = {}
    rows: dict[Table, Rows] = {EVENTS: [], REJECTED_EVENTS: []}
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for record in [one for records in consumer.poll(timeout_ms=500).values() for one in records]:
            source = {
                "source_topic": record.topic,
                "source_partition": record.partition,
                "source_offset": record.offset,
            }
            try:
                event = decode(record.value or b"", record.timestamp)
            except InvalidEventError as error:
                record_time = datetime.fromtimestamp(record.timestamp / 1000, UTC)
                rejected = {"record_time": record_time, "value": record.value, "reason": str(error)}
                rows[REJECTED_EVENTS].append(source | rejected)
                continue
            if keep_duplicates or event.event_id not in events:
                raw = msgspec.json.decode(record.value)
                fields = {column.name: raw.get(column.name) for column in EVENTS.columns} | source
                fields |= {"attempt": event.attempt, "duration_derived": event.duration_derived}
                fields["timestamp"] = datetime.fromtimestamp(event.timestamp / 1000, UTC)
                rows[EVENTS].append(fields)
            events.setdefault(event.event_id, event)
    consumer.close()
    for table, statistics in (
        (STEP_STATS, oracle.step_stats(events.values(), settings.window_seconds)),
        (SAGA_STATS, oracle.saga_stats(events.values(), settings.window_seconds)),
        (STEP_DURATIONS, oracle.step_durations(events.values())),
    ):
        names = [column.name for column in table.columns]
        rows[table] = [dict(zip(names, (*key, *figures), strict=True)) for key, figures in statistics.items()]
    return rows


def store(settings: Settings, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    """Make the table hold these rows."""
    schema = schema_to_pyarrow(table.schema, include_field_ids=False)
    values = pa.Table.from_pylist(list(rows), schema=schema)
    replace_rows(settings, open_catalog(settings), table, values, AlwaysTrue())


@pytest.fixture
def filled(settings: Settings) -> tuple[Settings, dict[Table, Rows]]:
    """A topic, and tables that hold what they are to hold."""
    fill_topic(settings)
    rows = right_rows(settings)
    for table, right in rows.items():
        store(settings, table, right)
    return settings, rows


def run_parity(settings: Settings, *arguments: str) -> tuple[int, str]:
    """The command's exit code and what it prints."""
    result = CliRunner().invoke(cli.app, ["parity", *arguments], env=settings.environment())
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def changed(**values: Any) -> Callable[[Rows], Rows]:
    """Alter the third row."""
    return lambda rows: [*rows[:2], rows[2] | values, *rows[3:]]


def removed(rows: Rows) -> Rows:
    """Without the third."""
    return [*rows[:2], *rows[3:]]


def last_removed(rows: Rows) -> Rows:
    """Without what is of the last window."""
    newest = max(row["window_start"] for row in rows)
    return [row for row in rows if row["window_start"] < newest]


def doubled(rows: Rows) -> Rows:
    """The third twice."""
    return [*rows, rows[2]]


MINUTE = timedelta(minutes=1)
FAULTS: list[tuple[Table, Callable[[Rows], Rows], str]] = [
    (EVENTS, removed, "a valid event in neither table"),
    (EVENTS, doubled, "2 rows"),
    (EVENTS, changed(saga_name="other"), "not what its record says"),
    (EVENTS, changed(event_id="other"), "not what its record says"),
    (EVENTS, changed(timestamp=START), "not what its record says"),
    (EVENTS, changed(timestamp=START + timedelta(microseconds=1)), "not what its record says"),
    (EVENTS, changed(attempt=2), "not what its record says"),
    (EVENTS, changed(context_keys=["order"]), "not what its record says"),
    (EVENTS, changed(attributes=[("z", "1")]), "not what its record says"),
    (EVENTS, changed(error_type="E", error_message=""), "not what its record says"),
    (EVENTS, changed(source_offset=100_000), "names no offset of the topic"),
    (EVENTS, changed(source_offset=None), "names no offset of the topic"),
    (EVENTS, changed(source_partition=9), "names no offset of the topic"),
    (EVENTS, changed(source_topic="other"), "a valid event in neither table"),
    (REJECTED_EVENTS, removed, "no valid event, and not in rejected_events"),
    (REJECTED_EVENTS, doubled, "2 rows"),
    (REJECTED_EVENTS, changed(value=b"else"), "is not its record"),
    (REJECTED_EVENTS, changed(value=None), "is not its record"),
    (REJECTED_EVENTS, changed(record_time=START), "is not its record"),
    (REJECTED_EVENTS, changed(source_offset=0), "no valid event, and not in rejected_events"),
    (STEP_STATS, removed, "no row"),
    (STEP_STATS, last_removed, "no row"),
    (STEP_STATS, doubled, "2 rows"),
    (STEP_STATS, changed(p95_ms=1.5), "differs in p95_ms"),
    (STEP_STATS, changed(completed=77), "differs in completed"),
    (STEP_STATS, changed(window_end=START + 40 * MINUTE), "differs in window_end"),
    (STEP_STATS, changed(step_name="other"), "a row, and no such events"),
    (SAGA_STATS, removed, "no row"),
    (SAGA_STATS, last_removed, "no row"),
    (SAGA_STATS, doubled, "2 rows"),
    (SAGA_STATS, changed(failure_rate=None), "differs in failure_rate"),
    (STEP_DURATIONS, removed, "no row"),
    (STEP_DURATIONS, last_removed, "no row"),
    (STEP_DURATIONS, doubled, "2 rows"),
    (STEP_DURATIONS, changed(count=5), "differs in count"),
]


def test_every_planted_fault_is_found(filled: tuple[Settings, dict[Table, Rows]]) -> None:
    """A row removed, doubled or altered in any table: exit code 1, and the place is named. Whole tables: exit code 0."""
    settings, rows = filled
    code, said = run_parity(settings)
    assert code == 0, said
    assert "WHOLE" in said
    for table, fault, what in FAULTS:
        store(settings, table, fault(rows[table]))
        code, said = run_parity(settings)
        assert code == 1, f"{table.name} {what}: {said}"
        assert what in " ".join(said.split()), f"{table.name}: {said}"
        assert "DIFFERENT" in said, said
        store(settings, table, rows[table])
    code, said = run_parity(settings)
    assert code == 0, said


def test_the_account_is_exact(filled: tuple[Settings, dict[Table, Rows]]) -> None:
    """Each offset is one of stored, duplicates, rejected, missing, lag; both ways to count agree."""
    settings, rows = filled
    account = parity.audit(settings)
    assert parity.balance(settings) == account.partitions
    for one in account.partitions:
        assert one.stored + one.duplicates + one.rejected + one.missing + one.lag == one.end - one.begin
        assert one.stored == sum(row["source_partition"] == one.partition for row in rows[EVENTS])
        assert one.rejected == sum(row["source_partition"] == one.partition for row in rows[REJECTED_EVENTS])
    assert sum(one.duplicates for one in account.partitions) > 10
    assert account.is_whole
    assert not account.repeated_ids


def test_what_the_job_has_still_to_do_is_lag(filled: tuple[Settings, dict[Table, Rows]]) -> None:
    """Records after the last one that has a row are no difference; a record in front of it is lost."""
    settings, rows = filled
    store(settings, EVENTS, [row for row in rows[EVENTS] if row["source_offset"] < 40])
    store(settings, REJECTED_EVENTS, [row for row in rows[REJECTED_EVENTS] if row["source_offset"] < 40])
    account = parity.audit(settings)
    assert account.is_whole
    assert sum(one.lag for one in account.partitions) > 50
    assert parity.balance(settings) == account.partitions
    later = parity.audit(settings, lasts=dict.fromkeys(account.lasts, 60))
    assert not later.is_whole


def test_a_record_rejected_though_valid_and_one_stored_though_invalid(
    filled: tuple[Settings, dict[Table, Rows]],
) -> None:
    """What the two tables hold is held against what the record is."""
    settings, rows = filled
    taken, invalid = rows[EVENTS][7], rows[REJECTED_EVENTS][0]
    source = {name: taken[name] for name in ("source_topic", "source_partition", "source_offset")}
    refused = source | {"record_time": START, "value": b"x", "reason": "none"}
    store(settings, EVENTS, [*rows[EVENTS][:7], *rows[EVENTS][8:]])
    store(settings, REJECTED_EVENTS, [*rows[REJECTED_EVENTS], refused])
    account = parity.audit(settings)
    assert [finding.what for finding in account.findings] == ["a valid event in rejected_events"]
    assert sum(one.missing for one in account.partitions) == 1

    store(settings, EVENTS, [*rows[EVENTS], taken | {name: invalid[name] for name in source} | {"event_id": "new"}])
    store(settings, REJECTED_EVENTS, rows[REJECTED_EVENTS])
    whats = sorted(finding.what for finding in parity.audit(settings).findings)
    assert whats == ["2 rows", "a row in events whose record is no valid event"]


def test_rows_that_retention_has_left_without_a_record_are_not_compared(
    filled: tuple[Settings, dict[Table, Rows]],
) -> None:
    """The account begins where the topic, or whoever asks, begins."""
    settings, _ = filled
    account = parity.audit(settings, begins={0: 30, 1: 40})
    assert [one.begin for one in account.partitions] == [30, 40]
    assert all(20 < one.before <= one.begin for one in account.partitions)
    assert account.is_whole


def test_ids_stored_twice_are_named_and_removed(settings: Settings) -> None:
    """Beyond the horizon the job stores an id again: named with its offsets, no difference, and `dedup` mends it."""
    fill_topic(settings)
    rows = right_rows(settings, keep_duplicates=True)
    for table, right in rows.items():
        store(settings, table, right)
    account = parity.audit(settings)
    again = account.repeated_ids
    assert again > 10
    assert account.is_whole
    first, second = (int(at.split(":")[1]) for at in account.repeated[0].offsets.split())
    assert second == first + 1
    assert len(account.repeated) == min(again, parity.SHOWN)
    assert windows.compare(settings).is_whole, "an id counts once, whatever events hold"

    environment = settings.environment()
    said = CliRunner().invoke(cli.app, ["maintain", "dedup", "--dry-run"], env=environment).output
    assert f"{again} rows would be removed from events" in said
    said = CliRunner().invoke(cli.app, ["maintain", "dedup"], env=environment).output
    assert f"{again} rows removed from events" in said
    account = parity.audit(settings)
    assert (account.repeated_ids, account.is_whole) == (0, True)
    assert sum(one.duplicates for one in account.partitions) == again
    assert run_parity(settings)[0] == 0


def test_events_that_came_late_are_listed_with_their_windows(filled: tuple[Settings, dict[Table, Rows]]) -> None:
    """Those that a stored window does not count; hours that differ are those to recompute, neighbours in one range."""
    settings, rows = filled
    late = {"completed": 0, "avg_ms": None}
    hours = sorted({row["window_start"].replace(minute=0, second=0) for row in rows[STEP_STATS]})
    assert len(hours) == 2
    store(settings, STEP_STATS, [row | late if row["completed"] else row for row in rows[STEP_STATS]])
    found = windows.compare(settings)
    [steps] = [table for table in found.tables if table.differing]
    expected = [row for row in rows[STEP_STATS] if row["completed"]]
    assert steps.table == "step_stats"
    assert steps.differing == len(expected) > len(steps.shown) == windows.SHOWN
    assert steps.late == sum(row["completed"] for row in expected)
    assert all(window.counted < window.events for window in steps.shown)
    assert found.hours == hours
    until = windows.compare(settings, until=hours[1])
    assert until.hours == hours[:1]
    assert windows.compare(settings, since=hours[1]).hours == hours[1:]


def test_hours_to_recompute_are_joined_to_ranges() -> None:
    """Neighbours in one; without an end where the hour is not over."""
    hour = timedelta(hours=1)
    ten = START.replace(hour=10, minute=0, second=0)
    hours = [ten - 5 * hour, ten - hour, ten, ten + hour]
    closed = [(ten - 5 * hour, ten - 4 * hour), (ten - hour, ten + 2 * hour)]
    assert upkeep_commands.hour_ranges(hours, ten + 2 * hour) == closed
    assert upkeep_commands.hour_ranges(hours, ten + hour + MINUTE) == [closed[0], (ten - hour, None)]
    assert upkeep_commands.hour_ranges([], None) == []


@pytest.mark.flink
def test_mend_recomputes_the_hours_that_differ(filled: tuple[Settings, dict[Table, Rows]]) -> None:
    """Whole afterwards, exit code 0; what no recompute can bring back stays a difference, with its cure."""
    settings, rows = filled
    for table, fault in (
        (STEP_STATS, changed(completed=77)),
        (SAGA_STATS, removed),
        (STEP_DURATIONS, doubled),
    ):
        store(settings, table, fault(rows[table]))
    code, said = run_parity(settings, "--mend")
    assert code == 0, said
    assert "done" in said
    assert "WHOLE" in said
    store(settings, EVENTS, removed(rows[EVENTS]))
    code, said = run_parity(settings, "--mend")
    assert code == 1, said
    assert "no recompute brings back" in said


def test_since_reads_only_what_came_since(filled: tuple[Settings, dict[Table, Rows]]) -> None:
    """By the record's own time; windows by theirs."""
    settings, _ = filled
    code, said = run_parity(settings, "--since", (datetime.now(UTC) + timedelta(minutes=10)).isoformat())
    assert code == 0, said
    assert parity.audit(settings, {0: 10**6, 1: 10**6}).partitions[0].stored == 0


def test_a_difference_while_the_job_runs_is_looked_at_again(filled: tuple[Settings, dict[Table, Rows]]) -> None:
    """The job commits to one table after the other: what comes within two commits is no difference."""
    import fcntl
    import threading

    settings, rows = filled
    settings.checkpoints.mkdir(parents=True)
    store(settings, EVENTS, removed(rows[EVENTS]))
    with (settings.checkpoints / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        timer = threading.Timer(0.1, store, (settings, EVENTS, rows[EVENTS]))
        original = parity.audit(settings)
        assert not original.is_whole
        timer.start()
        code, said = run_parity(settings)
        timer.join()
    assert code == 0, said
    assert time.monotonic() - began > 0.1
