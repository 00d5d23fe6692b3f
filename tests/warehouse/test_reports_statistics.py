"""The reports that are told from the statistics: each row against plain Python over the same events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from statistics import mean
from typing import TYPE_CHECKING

import msgspec
import pytest

from sagascope.definitions import SagaDefinition, StepDefinition
from tests.warehouse.planted import NOON, append, event, fill, tamper
from tests.warehouse.test_reports import (
    DEFINITIONS,
    EVENTS,
    NOW,
    by,
    grouped,
    nearest_rank,
    quantile,
    reporting,
    rows_of,
    runs,
    share_failed,
    steps,
)
from tests.warehouse.test_reports import duck as duck  # noqa: PLC0414 - a fixture
from tests.warehouse.test_saga_runs import START_MS, opened, told
from warehouse import history, reports
from warehouse.tables import EVENTS as EVENTS_TABLE
from warehouse.tables import SAGA_STATS

if TYPE_CHECKING:
    import duckdb

    from warehouse.settings import Settings

HOSTILE = "o'rder\"; DROP TABLE events; --"


def test_weekly_trend(duck: duckdb.DuckDBPyConnection) -> None:
    """By the Monday, UTC, of the end; the change is against the week before."""
    got = by(rows_of(duck, "weekly_trend"), "week", "saga_name")

    def monday(moment: datetime) -> object:
        day = moment.astimezone(UTC).date()
        return day - timedelta(days=day.weekday())

    expected = grouped(runs(), lambda run: (monday(run["last_at"]), run["saga_name"]))
    assert got.keys() == expected.keys()
    for key, its in expected.items():
        assert (got[key]["ended"], got[key]["failure_rate"]) == (len(its), pytest.approx(share_failed(its)))
        assert got[key]["change"] is None  # 20 November 2026 is a Friday: all is in one week


def test_a_week_is_compared_with_the_one_before() -> None:
    """Sunday's last second belongs to the old week."""
    sunday_ms = START_MS + 3 * 86_400_000 - 1_000  # Friday's midnight and three days
    events = [
        *told("> ", "+ pay", "= completed", run="a", timestamp=sunday_ms, total_duration_ms=5),
        *told("> ", "+ pay", "= failed", run="b", timestamp=sunday_ms + 1_000, total_duration_ms=7),
    ]
    with opened(events, until=NOW + timedelta(days=9)) as connection:
        rows = rows_of(reporting(connection), "weekly_trend")
    assert [(str(row["week"]), row["ended"], row["failed"], row["change"], row["avg_ms"]) for row in rows] == [
        ("2026-11-16", 1, 0, None, 5.0),
        ("2026-11-23", 1, 1, 1.0, 7.0),
    ]


def test_step_statistics(duck: duckdb.DuckDBPyConnection) -> None:
    """Each step and undoing, its failures, percentiles within 1 %, the slowest and the flakiest of each phase named."""
    got = by(rows_of(duck, "step_statistics"), "phase", "saga_name", "step_name")
    for phase in ("step", "compensation"):
        expected = grouped(steps(phase), lambda one: (phase, one.saga_name, one.step_name))  # noqa: B023
        assert {key for key in got if key[0] == phase} == expected.keys()
        for key, its in expected.items():
            failed = sum(str(one.event_type).endswith("_failed") for one in its)
            assert (got[key]["executions"], got[key]["failure_rate"]) == (len(its), pytest.approx(failed / len(its)))
            assert got[key]["p95_ms"] == pytest.approx(nearest_rank(its, 95), rel=0.0101)
        medians = {key: got[key]["p50_ms"] for key in expected}
        assert got[max(medians, key=lambda key: medians[key])]["finding"] == "slowest"
        rates = {key: got[key]["failure_rate"] for key in expected}
        assert {key for key in expected if got[key]["finding"] == "flakiest"} <= {
            key for key in expected if rates[key] == max(rates.values())
        }


def test_recent_steps() -> None:
    """Counts and mean of the last minute, percentiles of the newest window; a slice of it likewise."""
    events = [
        one
        for number, (second, tenant) in enumerate([(0, "a"), (30, "a"), (65, "b"), (66, "a"), (67, "a")])
        for one in told("+ pay", run=f"r{number}", timestamp=START_MS + second * 1_000, attributes={"tenant": tenant})
    ]
    events = [msgspec.structs.replace(one, duration_ms=100 * (at + 1)) for at, one in enumerate(events)]
    with opened(events) as connection:
        duck = reporting(connection)
        [row] = rows_of(duck, "recent_steps")
        [slice_row] = rows_of(duck, "recent_steps", tenant="a")
    newest = [300, 400, 500]
    assert (row["ended"], row["failure_rate"], row["avg_ms"]) == (4, 0.0, mean([200, *newest]))
    assert [row["p50_ms"], row["p95_ms"]] == [quantile(newest, 0.5), pytest.approx(quantile(newest, 0.95))]
    assert (slice_row["ended"], slice_row["p50_ms"]) == (3, 450.0)


def test_unexercised_compensations(duck: duckdb.DuckDBPyConnection) -> None:
    """What can be undone by the newest definition, and never was, though it ran or its saga was seen."""
    got = by(rows_of(duck, "unexercised_compensations"), "saga_name", "step_name")
    ran = grouped(
        (one for one in steps("step") if one.event_type == "step_completed"), lambda one: (one.saga_name, one.step_name)
    )
    kinds = {definition.saga_name for definition in DEFINITIONS}
    assert {key: row["ran"] for key, row in got.items()} == {
        (kind, step): len(ran.get((kind, step), [])) for kind in kinds for step in ("charge", "ship")
    }
    older = SagaDefinition(saga_name="order", steps=(StepDefinition(step_name="gone", compensable=True),))
    fixed = SagaDefinition(saga_name="quiet", steps=(StepDefinition(step_name="pay", compensable=True),))
    plain = SagaDefinition(saga_name="refund", steps=(StepDefinition(step_name="reserve"),))
    with opened(EVENTS, plain, fixed, until=NOW) as connection:
        assert rows_of(reporting(connection), "unexercised_compensations") == []
    with opened(EVENTS, older, until=NOW) as connection:
        [row] = rows_of(reporting(connection), "unexercised_compensations")
        assert (row["step_name"], row["ran"], row["last_ran_at"]) == ("gone", 0, None)


@pytest.mark.parametrize("name", reports.NAMES)
def test_nothing_told_of_nothing(name: str) -> None:
    """Without an event a report has no row and no error, but for the targets, which are told as unknown."""
    with opened([], until=NOW) as connection:
        rows = rows_of(reporting(connection), name)
    assert [row["is_met"] for row in rows] == ([None, None] if name == "sla_compliance" else [])


@pytest.mark.parametrize("name", reports.NAMES)
def test_hostile_names_are_names(name: str) -> None:
    """A saga, step or attribute of any name is told and sliced by as any other."""
    renamed = [
        msgspec.structs.replace(
            one,
            saga_name=HOSTILE,
            step_name=one.step_name and HOSTILE + one.step_name,
            error_message=one.error_message and HOSTILE,
            attributes={HOSTILE: HOSTILE},
        )
        for one in EVENTS
        if one.saga_name == "order"
    ]
    with opened(renamed, until=NOW) as connection:
        duck = reporting(connection)
        rows = rows_of(duck, name)
        assert rows_of(duck, name, "o'rder*", **{HOSTILE: HOSTILE}) == rows or name == "sla_compliance"
        assert [row for row in rows_of(duck, name, "other") if row.get("ended", 1)] == []
        assert rows or name == "unexercised_compensations"


def test_stored_windows_are_what_is_told(lake: Settings) -> None:
    """Of a closed window the stored row, of an open one the events: a stored fault shows, an open window counts."""
    fill(lake)
    with history.open(lake) as tables:
        assert tables.sql("SELECT ended, failed FROM failure_rate(span := NULL)").fetchall() == [(3, 1)]
    tamper(lake, SAGA_STATS, lambda rows: [row.update(completed=11) for row in rows if row["completed"]])
    late = NOON + timedelta(hours=5)
    append(lake, EVENTS_TABLE, [event(9, 0, "saga_failed", late, total_duration_ms=1, attributes=[("t", "x")])])
    with history.open(lake) as tables:
        [(ended, failed)] = tables.sql("SELECT ended, failed FROM failure_rate(span := NULL)").fetchall()
        assert ended > 4
        assert failed == 2
        sliced = "SELECT ended, failed FROM failure_rate(span := NULL, attribute := MAP {'t': 'x'})"
        assert tables.sql(sliced).fetchall() == [(1, 1)]


def test_an_event_that_came_twice_counts_once(lake: Settings) -> None:
    """Also where a report reads the events themselves."""
    undone = event(4, 1, "compensation_completed", NOON, step_name="pay", duration_ms=5)
    append(lake, EVENTS_TABLE, [undone, undone | {"source_offset": 999}])
    with history.open(lake) as tables:
        assert tables.sql("SELECT step_name, completed, begun FROM compensations(span := NULL)").fetchall() == [
            ("pay", 1, 1)
        ]


def test_a_window_that_began_before_is_not_told_in_part(lake: Settings) -> None:
    """Of statistics and of a slice alike: windows belong to the span by their start."""
    moments = [NOON + timedelta(seconds=second) for second in (4, 6, 12)]
    append(
        lake,
        EVENTS_TABLE,
        [
            event(n, 0, "saga_completed", at, total_duration_ms=1, attributes=[("t", "x")])
            for n, at in enumerate(moments)
        ],
    )
    with history.open(lake, since=NOON + timedelta(seconds=5)) as tables:
        whole = tables.sql("SELECT ended FROM failure_rate(span := NULL)").fetchall()
        sliced = tables.sql("SELECT ended FROM failure_rate(span := NULL, attribute := MAP {'t': 'x'})").fetchall()
    assert whole == sliced == [(1,)]
