"""MetricsSagaListener: what it counts, in what bounds; its series are those that sagaz's alert rules need (test_alerts)."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, generate_latest, registry
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sagascope.errors import PermanentError
from sagascope.events import EventType, SagaEvent
from sagascope.fan_out import FanOut
from sagascope.integrations.sagaz import FanOutSaga
from sagascope.listeners.metrics import MetricsSagaListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import ManualClock, a_whole_life, fails, make_event, ok, until
from tests.sagascope.listeners.contract import ListenerContract, a_run, exceptions_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

EXCEPTIONS = {registry.DuplicateTimeseries: PermanentError}
"""What the client library may raise where we call it, and what becomes of it."""


def series(of: CollectorRegistry, *prefixes: str) -> dict[str, float]:
    """The samples of an exposition, as `name{label=value,…}`; without the times at which series were made."""
    text = generate_latest(of).decode()
    return {
        sample.name + "{" + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())) + "}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created") and sample.name.startswith(prefixes or "")
    }


def told(events: Iterable[SagaEvent], **settings: Any) -> CollectorRegistry:
    """A registry with these events counted."""
    counted = CollectorRegistry()
    asyncio.run(MetricsSagaListener(counted, **settings).write(list(events)))
    return counted


class TestMetricsSagaListener(ListenerContract):
    """The laws of every listener."""

    name = "MetricsSagaListener"
    drivers = ("prometheus_client",)
    extra = "prometheus"

    def unopened(self, tmp_path: Path) -> MetricsSagaListener:
        return MetricsSagaListener(CollectorRegistry())


def test_a_life_is_counted_under_both_sets_of_names() -> None:
    """Starts, ends, steps, compensations: each event shows in sagaz's metrics and in those of its alert rules."""
    counted, clock = CollectorRegistry(), ManualClock()

    async def main() -> None:
        listeners = [MetricsSagaListener(counted)]
        async with saga_scope("o-1", "order", listeners=listeners, clock=clock.clock) as saga:
            await a_whole_life(saga)

    asyncio.run(main())
    life = series(counted)
    assert {name: value for name, value in life.items() if value and "_bucket" not in name and "_sum" not in name} == {
        "saga_compensations_total{saga_name=order,status=completed}": 1,
        "saga_compensations_total{saga_name=order,status=failed}": 1,
        "saga_execution_duration_seconds_count{saga_name=order}": 1,
        "saga_execution_total{saga_name=order,status=failed}": 1,
        "saga_step_duration_seconds_count{saga_name=order,step_name=charge}": 1,
        "saga_step_duration_seconds_count{saga_name=order,step_name=notify}": 1,
        "saga_step_duration_seconds_count{saga_name=order,step_name=reserve}": 1,
        "sagaz_compensation_total{saga_name=order,status=completed,step_name=reserve}": 1,
        "sagaz_compensation_total{saga_name=order,status=failed,step_name=notify}": 1,
        "sagaz_saga_completed_total{outcome=failed,saga_name=order,status=failed}": 1,
        "sagaz_saga_started_total{saga_name=order}": 1,
        "sagaz_step_completed_total{saga_name=order,status=completed,step_name=notify}": 1,
        "sagaz_step_completed_total{saga_name=order,status=completed,step_name=reserve}": 1,
        "sagaz_step_completed_total{saga_name=order,status=failed,step_name=charge}": 1,
        "sagaz_step_duration_seconds_count{saga_name=order,step_name=charge}": 1,
        "sagaz_step_duration_seconds_count{saga_name=order,step_name=notify}": 1,
        "sagaz_step_duration_seconds_count{saga_name=order,step_name=reserve}": 1,
    }
    assert life["saga_active_count{saga_name=order}"] == 0


@pytest.mark.parametrize(
    ("event_type", "status", "outcome"),
    [
        (EventType.SAGA_COMPLETED, "completed", "completed"),
        (EventType.SAGA_ROLLED_BACK, "failed", "rolled_back"),
        (EventType.SAGA_FAILED, "failed", "failed"),
    ],
)
def test_a_saga_that_was_rolled_back_has_failed(event_type: EventType, status: str, outcome: str) -> None:
    """The status is sagaz's, on which its rules and dashboards ask; the outcome tells the two failures apart."""
    counted = told([make_event(event_type=event_type, total_duration_ms=1_500)])
    assert series(counted, "saga_execution_total", "sagaz_saga_completed_total") == {
        "saga_execution_total{saga_name=order,status=completed}": float(status == "completed"),
        "saga_execution_total{saga_name=order,status=failed}": float(status == "failed"),
    } | {
        f"sagaz_saga_completed_total{{outcome={o},saga_name=order,status={s}}}": float(o == outcome)
        for s, o in (("completed", "completed"), ("failed", "rolled_back"), ("failed", "failed"))
    }
    seconds = series(counted, "saga_execution_duration_seconds")
    assert seconds["saga_execution_duration_seconds_sum{saga_name=order}"] == 1.5
    assert seconds["saga_execution_duration_seconds_bucket{le=1.0,saga_name=order}"] == 0
    assert seconds["saga_execution_duration_seconds_bucket{le=2.5,saga_name=order}"] == 1


def test_a_step_that_began_has_its_counters_at_zero() -> None:
    """A counter that first appears as 1 has not risen for Prometheus: its first failure would alarm nobody."""
    counted = told([make_event(event_type=EventType.STEP_STARTED, step_name="pay")])
    assert series(counted, "sagaz_step_completed_total", "sagaz_compensation_total", "saga_compensations_total") == {
        "sagaz_step_completed_total{saga_name=order,status=completed,step_name=pay}": 0,
        "sagaz_step_completed_total{saga_name=order,status=failed,step_name=pay}": 0,
        "sagaz_compensation_total{saga_name=order,status=completed,step_name=pay}": 0,
        "sagaz_compensation_total{saga_name=order,status=failed,step_name=pay}": 0,
        "saga_compensations_total{saga_name=order,status=completed}": 0,
        "saga_compensations_total{saga_name=order,status=failed}": 0,
    }


LIVES = [*a_run("o-1"), *a_run("o-2"), *a_run("t-1", "trip"), *a_run("o-3")[:3]]
IN_ORDER = series(told(LIVES, clock=lambda: 1_780_000_060.0))


@given(st.permutations(LIVES), st.lists(st.sampled_from(LIVES), max_size=10), st.integers(1, 30))
def test_neither_order_nor_duplicates_nor_batches_matter(
    events: list[SagaEvent], again: list[SagaEvent], batch: int
) -> None:
    """Whatever order the events come in, however often and cut into whatever batches, the metrics are the same."""
    counted, all_events = CollectorRegistry(), [*events, *again]

    async def main() -> None:
        listener = MetricsSagaListener(counted, clock=lambda: 1_780_000_060.0)
        for start in range(0, len(all_events), batch):
            await listener.write(all_events[start : start + batch])

    asyncio.run(main())
    assert series(counted) == IN_ORDER
    assert IN_ORDER["saga_active_count{saga_name=order}"] == 1
    assert IN_ORDER["sagaz_saga_running_duration_seconds{saga_id=o-3,saga_name=order}"] == 60


def test_listeners_of_one_registry_count_together() -> None:
    """A second listener registers nothing again, and an event that both are told counts once."""
    counted, events = CollectorRegistry(), a_run("o-1")

    async def main() -> None:
        for listener in (MetricsSagaListener(counted), MetricsSagaListener(registry=counted)):
            await listener.open()
            await listener.write(events)
            await listener.close()
        await MetricsSagaListener(counted).write(a_run("o-2"))

    asyncio.run(main())
    assert series(counted)["sagaz_saga_started_total{saga_name=order}"] == 2


def test_a_second_listener_may_not_have_other_limits() -> None:
    """One registry has one set of limits: other ones are refused, and both are named."""

    async def main() -> None:
        counted = CollectorRegistry()
        await MetricsSagaListener(counted).open()
        with pytest.raises(ValueError, match=r"max_steps=500.*max_steps=7"):
            await MetricsSagaListener(counted, max_steps=7).open()

    asyncio.run(main())


@pytest.mark.parametrize("limit", ["max_sagas", "max_steps", "max_running", "max_age_seconds", "longest_running"])
def test_a_limit_is_at_least_one(limit: str) -> None:
    """A limit of nothing is refused by its name when the listener is made."""
    limits: dict[str, Any] = {limit: 0}
    with pytest.raises(ValueError, match=f"{limit}: got 0; allowed: 1 or more"):
        MetricsSagaListener(**limits)


def test_names_that_are_taken_are_refused_whole() -> None:
    """Where another has registered such a name, all fails with the name, and nothing of ours is left behind."""
    counted = CollectorRegistry()
    theirs = Counter("sagaz_saga_started", "Somebody's", registry=counted)

    async def main() -> None:
        with pytest.raises(PermanentError, match="sagaz_saga_started"):
            await MetricsSagaListener(counted).write(a_run("o-1"))
        assert list(series(counted)) == ["sagaz_saga_started_total{}"]
        counted.unregister(theirs)
        await MetricsSagaListener(counted).write(a_run("o-1"))

    asyncio.run(main())
    assert series(counted)["sagaz_saga_started_total{saga_name=order}"] == 1


def test_the_default_is_the_client_librarys_registry() -> None:
    """Without a registry the metrics are in the one that `start_http_server` shows."""

    async def main() -> None:
        await MetricsSagaListener().write(a_run("o-1", "in-the-default"))

    asyncio.run(main())
    value = registry.REGISTRY.get_sample_value("sagaz_saga_started_total", {"saga_name": "in-the-default"})
    assert value == 1


def test_every_exception_of_the_driver_is_decided() -> None:
    """A new exception class of the client library has to be looked at."""
    assert exceptions_of(registry) == set(EXCEPTIONS)


def test_names_are_bounded_as_labels() -> None:
    """Sagas and steps beyond the limits count under `other`: nothing is lost, and series do not grow without end."""
    events = [
        make_event(
            event_type=EventType.STEP_COMPLETED, saga_name=f"saga-{n % 50}", step_name=f"step-{n}", duration_ms=n
        )
        for n in range(1_000)
    ]
    counted = series(told(events, max_sagas=3, max_steps=5), "sagaz_step_completed_total")
    assert sum(counted.values()) == 1_000
    names = {name.split("saga_name=")[1].split(",")[0] for name in counted}
    assert names == {"saga-0", "saga-1", "saga-2", "other"}
    steps = {name for name, value in counted.items() if value}
    assert len(steps) == 5 + 3  # one `other` for each saga with too many
    assert counted["sagaz_step_completed_total{saga_name=other,status=completed,step_name=other}"] == 940


def test_only_the_longest_running_are_shown_by_id() -> None:
    """saga_id is the label of so many runs and no more, the oldest first."""
    starts = [make_event(saga_id=f"o-{n}", timestamp=1_000_000 + n * 1_000) for n in range(100)]
    counted = told(reversed(starts), longest_running=3, clock=lambda: 1_200.0)
    assert series(counted, "sagaz_saga_running_duration_seconds") == {
        f"sagaz_saga_running_duration_seconds{{saga_id=o-{n},saga_name=order}}": 200 - n for n in range(3)
    }
    assert series(counted)["saga_active_count{saga_name=order}"] == 100


def test_a_saga_id_that_runs_twice_at_once_is_one_series() -> None:
    """Runs of one saga_id would be one series of several values, which a scrape must not have: the oldest is shown."""
    counted = told([make_event(timestamp=ms) for ms in (60_000, 30_000, 45_000)], clock=lambda: 100.0)
    assert series(counted, "sagaz_saga_running_duration_seconds") == {
        "sagaz_saga_running_duration_seconds{saga_id=order-17,saga_name=order}": 70
    }
    assert generate_latest(counted).decode().count("sagaz_saga_running_duration_seconds{") == 1


def test_a_run_that_never_ends_is_dropped_by_age() -> None:
    """A run whose end nobody told is active until max_age_seconds, and counted as dropped from then on."""
    now = [1_000.0]
    counted = told([make_event(timestamp=1_000_000)], max_age_seconds=60.0, clock=lambda: now[0])
    now[0] += 60
    assert series(counted)["saga_active_count{saga_name=order}"] == 1
    now[0] += 1
    after = series(counted)
    assert after["saga_active_count{saga_name=order}"] == 0
    assert after["saga_active_dropped_total{reason=age}"] == 1
    assert "sagaz_saga_running_duration_seconds{saga_id=order-17,saga_name=order}" not in after


def test_active_runs_are_bounded() -> None:
    """No more than max_running are known: the one told of first makes room, and is counted as dropped."""
    starts = [make_event(saga_id=f"o-{n}", timestamp=1_000_000) for n in range(12)]
    counted = series(told(starts, max_running=10, longest_running=20, clock=lambda: 1_001.0))
    assert counted["saga_active_count{saga_name=order}"] == 10
    assert counted["saga_active_dropped_total{reason=room}"] == 2
    assert "sagaz_saga_running_duration_seconds{saga_id=o-1,saga_name=order}" not in counted
    assert "sagaz_saga_running_duration_seconds{saga_id=o-2,saga_name=order}" in counted


def test_a_clock_that_was_set_back_shows_no_negative_time() -> None:
    """A run that began in the future, by this clock, has been running for 0 s."""
    counted = told([make_event(timestamp=1_000_000)], clock=lambda: 900.0)
    assert series(counted, "sagaz_saga_running_duration_seconds") == {
        "sagaz_saga_running_duration_seconds{saga_id=order-17,saga_name=order}": 0
    }


ODD = ["\ud800", 'quo"te', "back\\slash", "new\nline", "nul\0", "return\r", "ö漢", "\x85", "\u2028", "x" * 1_000_000]


def test_odd_names_and_ids_leave_the_exposition_whole() -> None:
    """Whatever is in a name or an id, the scrape is text that can be encoded and parsed, at most 120 characters each."""
    events = [make_event(saga_id=f"{n} {odd}", saga_name=odd) for n, odd in enumerate(ODD)]
    text = generate_latest(told(events, clock=lambda: 1_700_000_001.0, longest_running=20)).decode()
    shown = [
        sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "sagaz_saga_running_duration_seconds"
    ]
    assert len(shown) == len(ODD)
    assert all(len(value) <= 120 for labels in shown for value in labels.values())
    assert len(text) < 200_000


def test_a_trace_is_the_exemplar_of_its_duration() -> None:
    """OpenMetrics shows for a bucket one trace to look at; a trace_id that is none is no exemplar, and no error."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    steps = [
        make_event(event_type=EventType.STEP_COMPLETED, step_name="pay", duration_ms=ms, trace_id=trace)
        for ms, trace in ((3, trace_id), (70_000, "no trace" * 100))
    ]
    text = generate_openmetrics(told(steps)).decode()  # type: ignore[no-untyped-call] # the client's have no types here
    assert text.count(f'# {{trace_id="{trace_id}"}} 0.003') == 2  # under both names
    assert "no trace" not in text


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1_000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_lose_no_count() -> None:
    """Sagas may run in several threads, and be told of twice, and a scrape in another: each event counts once."""
    counted = CollectorRegistry()
    listener = MetricsSagaListener(counted, clock=lambda: 1_780_000_060.0)
    runs = [[event for n in range(400) for event in a_run(f"o-{t}-{n}")[: 4 - n % 2]] for t in range(2)]
    threads = [threading.Thread(target=lambda e=e: asyncio.run(listener.write(e))) for e in runs * 2]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        generate_latest(counted)
    after = series(counted)
    assert after["sagaz_saga_started_total{saga_name=order}"] == 800
    assert after["sagaz_step_duration_seconds_count{saga_name=order,step_name=pay}"] == 800
    assert after["saga_active_count{saga_name=order}"] == 400


def test_a_saga_of_sagaz_is_counted() -> None:
    """A real saga that fails: its steps, what was undone, and its end."""
    counted = CollectorRegistry()

    async def main() -> None:
        saga = FanOutSaga("shop", listeners=[MetricsSagaListener(counted)])
        saga.add_step("reserve", ok, ok).add_step("charge", fails(ValueError("no")), depends_on={"reserve"})
        with pytest.raises(ValueError, match="no"):
            await saga.run({}, "o-1")

    asyncio.run(main())
    after = series(counted)
    assert after["sagaz_saga_completed_total{outcome=rolled_back,saga_name=shop,status=failed}"] == 1
    assert after["sagaz_step_completed_total{saga_name=shop,status=completed,step_name=reserve}"] == 1
    assert after["sagaz_step_completed_total{saga_name=shop,status=failed,step_name=charge}"] == 1
    assert after["sagaz_compensation_total{saga_name=shop,status=completed,step_name=reserve}"] == 1
    assert after["saga_active_count{saga_name=shop}"] == 0


def test_a_cancelled_run_is_active_no_more() -> None:
    """It tells no end; that it was left is enough, also where its start comes out of a queue only then."""
    counted = CollectorRegistry()
    listener = MetricsSagaListener(counted)

    async def main() -> None:
        async with FanOut([listener]) as fan_out:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05), saga_scope("o-1", "order", listeners=[fan_out]) as saga:
                    await saga.started({})
                    await until(lambda: series(counted).get("saga_active_count{saga_name=order}") == 1)
                    await asyncio.sleep(60)
            assert series(counted)["saga_active_count{saga_name=order}"] == 0
            late = make_event()
            listener.left(late.run_id)
            await fan_out.write([late])

    asyncio.run(main())
    assert series(counted)["saga_active_count{saga_name=order}"] == 0
