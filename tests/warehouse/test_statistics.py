"""The statistics as DuckDB computes them: against the oracle, against exact numbers, and each id once."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from itertools import count
from typing import TYPE_CHECKING, Any

import duckdb
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from pyiceberg.io.pyarrow import schema_to_pyarrow

from sagascope.events import EventType, SagaEvent
from tests import oracle
from warehouse import history, reports, statistics
from warehouse.named_views import NamedViews
from warehouse.settings import Settings
from warehouse.tables import EVENTS, SAGA_STATS, STATISTICS, STEP_DURATIONS, STEP_STATS, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

SETTINGS = Settings(window_seconds=10)
MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
START_MS = round(MIDNIGHT.timestamp() * 1000)
LONGEST_MS = 10**9
SCHEMA = schema_to_pyarrow(EVENTS.schema, include_field_ids=False)


def event(number: int, event_type: EventType = EventType.STEP_COMPLETED, **fields: Any) -> SagaEvent:
    """An event at midnight; of step `reserve` where it is about a step."""
    about_step = not event_type.startswith("saga_")
    values: dict[str, Any] = {
        "event_id": f"e{number}",
        "saga_id": f"s{number}",
        "saga_name": "order",
        "run_id": f"r{number}",
        "sequence": 0,
        "timestamp": START_MS,
        "step_name": "reserve" if about_step else None,
    }
    return SagaEvent(event_type=event_type, **values | fields)


def rows_of(events: Iterable[SagaEvent], partitions: Iterable[int] | None = None) -> pa.Table:
    """The events as rows of `events`, records of ascending offsets of the partitions (else of 0)."""
    rows = []
    for offset, (one, partition) in enumerate(zip(events, partitions or iter(int, 1), strict=False)):
        moment = MIDNIGHT + timedelta(milliseconds=one.timestamp - START_MS)
        source = {"source_topic": "t", "source_partition": partition, "source_offset": offset}
        rows.append(msgspec.structs.asdict(one) | {"timestamp": moment, "event_type": str(one.event_type)} | source)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def opened(events: pa.Table) -> duckdb.DuckDBPyConnection:
    """DuckDB with those rows as `events`, and the statistics over them as views of the tables' names."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("events", events)
    for table in STATISTICS:
        connection.execute(f'CREATE VIEW "{table.name}" AS {statistics.query(SETTINGS, table)}')
    return connection


def percentiles(duck: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    """Saga, step, phase, how many, p50, p95 and p99 over the whole span, as reports tell them."""
    duck.execute("CREATE MACRO as_of() AS now()")
    NamedViews(duck, reports.macros(SETTINGS)).create("asked_step_percentiles")
    query = """
        SELECT * EXCLUDE "hour" FROM asked_step_percentiles('*', MAP {}::MAP(VARCHAR, VARCHAR), NULL::INTERVAL, FALSE)
        ORDER BY ALL
    """
    return duck.sql(query).fetchall()


def test_statistics_equal_the_oracle() -> None:
    """Every row and figure of all three, for steps and compensations, durations known, unknown and zero."""
    rng = random.Random(7)
    events = [
        event(
            number,
            rng.choice(list(EventType)),
            saga_name=rng.choice(["order", "refund"]),
            step_name=rng.choice(["reserve", "charge"]),
            timestamp=START_MS + rng.randrange(180_000),
            duration_ms=rng.choice([None, 0, rng.randrange(1_000)]),
            total_duration_ms=rng.choice([None, rng.randrange(10_000)]),
        )
        for number in range(3_000)
    ]
    expected = {
        "step_stats": oracle.step_stats(events, SETTINGS.window_seconds),
        "saga_stats": oracle.saga_stats(events, SETTINGS.window_seconds),
        "step_durations": oracle.step_durations(events),
    }
    with opened(rows_of(events)) as duck:
        for name, rows in expected.items():
            duck.execute(f"CREATE VIEW stored_{name} AS FROM {name}")
            assert oracle.differing_windows(history.History(duck, NamedViews(duck, {})), name, rows) == []
            assert len(rows) > 30


def test_saga_statistics() -> None:
    """Starts and ends by the window of each; a rate only where something ended; a failed saga has a duration, too."""
    events = [
        event(0, EventType.SAGA_STARTED),
        event(1, EventType.SAGA_STARTED, timestamp=START_MS + 9_999),
        event(2, EventType.SAGA_COMPLETED, timestamp=START_MS + 10_000, total_duration_ms=10_000),
        event(3, EventType.SAGA_ROLLED_BACK, timestamp=START_MS + 19_999, total_duration_ms=10_000),
        event(4, EventType.SAGA_FAILED, timestamp=START_MS + 19_999, total_duration_ms=4_000),
        event(5, EventType.STEP_COMPLETED),
    ]
    with opened(rows_of(events)) as duck:
        rows = duck.sql("SELECT * FROM saga_stats ORDER BY window_start").fetchall()
    ten, twenty = (MIDNIGHT + timedelta(seconds=seconds) for seconds in (10, 20))
    assert rows[0] == (MIDNIGHT, ten, "order", 2, 0, 0, 0, *[None] * 7)
    assert rows[1][:7] == (ten, twenty, "order", 0, 1, 1, 1)
    assert rows[1][7:] == pytest.approx((2 / 3, 8_000, 4_000, 10_000, 10_000, 10_000, 10_000))


@pytest.mark.parametrize("table", STATISTICS, ids=lambda table: str(table.name))
def test_columns_are_those_of_the_table(table: Table) -> None:
    """Names, order and types: what is computed can stand beside what is stored."""
    stored = duckdb.from_arrow(schema_to_pyarrow(table.schema).empty_table())
    with opened(rows_of([event(0, duration_ms=1)])) as duck:
        computed = duck.sql(f"SELECT * FROM {table.name}")
        assert dict(zip(computed.columns, computed.types, strict=True)) == dict(
            zip(stored.columns, stored.types, strict=True)
        )
        assert computed.columns == [column.name for column in table.columns]


def test_what_is_no_statistic_has_no_query() -> None:
    """`events` is not computed from anything."""
    with pytest.raises(FileNotFoundError):
        statistics.query(SETTINGS, EVENTS)


def test_an_id_counts_once_and_the_first_record_wins() -> None:
    """The lowest partition, then the lowest offset, whatever the order of the rows; other ids are left as they are."""
    events = [
        event(1, duration_ms=100),
        event(1, duration_ms=7),
        event(1, duration_ms=200),
        event(2, duration_ms=50),
        event(3, EventType.SAGA_STARTED),
        event(3, EventType.SAGA_STARTED),
    ]
    rows = rows_of(events, partitions=[1, 0, 0, 1, 0, 1])
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        with opened(rows.take(order)) as duck:
            assert duck.sql("SELECT completed, min_ms, max_ms FROM step_stats").fetchall() == [(2, 7, 50)]
            assert duck.sql('SELECT sum("count") FROM step_durations').fetchall() == [(2,)]
            assert duck.sql("SELECT started FROM saga_stats").fetchall() == [(1,)]


def thresholds() -> list[int]:
    """The smallest whole milliseconds of bucket 1, 2, … up to the longest duration: 101^k / 99^k, rounded up."""
    found: list[int] = []
    for k in count():
        smallest = -(-(101**k) // 99**k)
        if smallest > LONGEST_MS:
            return found
        found.append(smallest)
    raise AssertionError


def test_buckets_are_exact_at_every_boundary() -> None:
    """The logarithm of a double puts each duration beside a boundary where whole numbers of any length put it."""
    smallest = thresholds()
    durations = sorted({0, LONGEST_MS, *smallest, *(number - 1 for number in smallest)})
    events = [event(n, step_name=str(duration), duration_ms=duration) for n, duration in enumerate(durations)]
    with opened(rows_of(events)) as duck:
        rows = duck.sql("SELECT step_name::BIGINT, bucket FROM step_durations ORDER BY 1").fetchall()
    assert rows == [(duration, bisect_right(smallest, duration)) for duration in durations]
    assert bisect_right(smallest, 0) == 0  # 0 ms has a bucket of its own
    for duration in durations[1:]:
        bucket = 1 + math.floor(math.log(duration) / math.log(1.01 / 0.99))
        assert bucket == bisect_right(smallest, duration)


def test_no_boundary_is_near_enough_for_two_languages_to_disagree() -> None:
    """Even where each logarithm is a unit in the last place off, as Java's may be, no duration changes its bucket."""
    with localcontext() as context:
        context.prec = 60
        ratio, as_double = Decimal(101) / Decimal(99), Decimal(1.01 / 0.99)
        for k, smallest in enumerate(thresholds()):
            inexact_ratio = k * abs(as_double.ln() - ratio.ln()) / ratio.ln()
            inexact_logarithms = 3 * k * Decimal(2) ** -52
            for duration in {max(smallest - 1, 1), smallest} - {1}:  # the logarithm of 1 is 0 everywhere
                away = abs(Decimal(duration).ln() / ratio.ln() - k)
                assert away > 2 * (inexact_ratio + inexact_logarithms), duration


@tried(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 300), st.integers(0, LONGEST_MS), st.sampled_from(thresholds())),
            st.integers(0, 300),
        ),
        min_size=1,
        max_size=250,
    )
)
def test_percentiles_of_merged_buckets_are_at_most_one_percent_off(durations: list[tuple[int, int]]) -> None:
    """Over any minutes, the report's p50, p95 and p99 are those of nearest rank within 1 %; 0 ms is 0."""
    events = [
        event(number, duration_ms=duration, timestamp=START_MS + second * 1000)
        for number, (duration, second) in enumerate(durations)
    ]
    with opened(rows_of(events)) as duck:
        [(saga, step, phase, timed, *got)] = percentiles(duck)
    assert (saga, step, phase, timed) == ("order", "reserve", "step", len(durations))
    ordered = sorted(duration for duration, _ in durations)
    for value, percent in zip(got, (50, 95, 99), strict=True):
        exact = ordered[-(-len(ordered) * percent // 100) - 1]
        assert abs(value - exact) <= exact * (0.01 + 1e-9), (percent, value, exact)


def test_percentiles_keep_steps_and_phases_apart() -> None:
    """A step's compensation is another thing than the step, and so is the same step of another saga."""
    events = [
        event(0, duration_ms=10),
        event(1, EventType.COMPENSATION_FAILED, duration_ms=1_000),
        event(2, duration_ms=0, saga_name="refund"),
        event(3, duration_ms=None, saga_name="silent"),
    ]
    with opened(rows_of(events)) as duck:
        rows = percentiles(duck)
    assert [row[:4] for row in rows] == [
        ("order", "reserve", "compensation", 1),
        ("order", "reserve", "step", 1),
        ("refund", "reserve", "step", 1),
    ]
    assert [row[6] for row in rows] == pytest.approx([1_000, 10, 0], rel=0.01)


def test_windows_have_the_width_of_the_settings_but_those_of_durations() -> None:
    """Buckets are counted by the minute, so that they stay few."""
    assert {table.name: statistics.window_seconds(SETTINGS, table) for table in STATISTICS} == {
        STEP_STATS.name: 10,
        SAGA_STATS.name: 10,
        STEP_DURATIONS.name: 60,
    }
