"""The live tables: the same numbers as the history, whatever way the events came."""

from __future__ import annotations

import tempfile
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from tests.warehouse.live_oracle import SCRIPT, assert_equals_oracle, story
from tests.warehouse.planted import NOON, Rows, append, compact, event, events_of, paths
from warehouse import duplicates, history, statistics
from warehouse.arrivals import IcebergSource
from warehouse.catalog import open_catalog
from warehouse.guarded_queries import DamagedFileError
from warehouse.live import LiveTables
from warehouse.settings import Settings
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, STEP_STATS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warehouse.live_frame import Frame

NOW = NOON + timedelta(seconds=3)
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)


class Clock:
    """A clock that is set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@contextmanager
def following(lake: Settings, clock: Callable[[], datetime] = lambda: NOW) -> Iterator[LiveTables]:
    """Live tables over the lake, not refreshed yet."""
    with (
        closing(open_catalog(lake)) as catalog,
        closing(IcebergSource(lake, catalog)) as source,
        closing(LiveTables(lake, source, clock)) as live,
    ):
        yield live


def numbers(frame: Frame) -> Any:
    """A frame without what tells of snapshots and commits."""
    return msgspec.to_builtins(
        [frame.made_at, frame.active, frame.active_sagas, frame.windows, frame.series, frame.freshness.newest_event_at]
    )


def test_numbers_equal_an_oracle_and_the_history(lake: Settings) -> None:
    """Counts, rates, means and percentiles of each window; and the history's statistics over the same span."""
    rows: Rows = []
    for n in range(60):
        begin = NOON - timedelta(seconds=n * 77)
        steps = ["pay", "ship!" if n % 4 == 0 else "ship"] + (["-pay"] if n % 4 == 0 else [])
        end = None if n % 7 == 0 else ("saga_rolled_back" if n % 4 == 0 else "saga_completed")
        rows += story(n, begin, steps, end, name=["order", SCRIPT][n % 2])
    append(lake, EVENTS, rows[:150])
    with following(lake) as live:
        assert live.refresh()
        append(lake, EVENTS, rows[150:])
        assert live.refresh()
        assert not live.refresh()
        frame = live.frame(NOW)
        assert_equals_oracle(frame, rows)
        for window in frame.windows:
            with history.open(lake, window.since, window.until) as tables:
                sums = "sum(completed)::BIGINT, sum(failed)::BIGINT"
                told = tables.sql(
                    f"SELECT saga_name, step_name, phase, {sums} FROM step_stats GROUP BY ALL ORDER BY ALL"
                )
                assert told.fetchall() == [
                    (s.saga_name, s.step_name, s.phase, s.completed, s.failed) for s in window.steps
                ]
                told = tables.sql("SELECT sum(started)::BIGINT, sum(completed)::BIGINT FROM saga_stats")
                assert told.fetchall() == [(window.all_sagas.started, window.all_sagas.completed)]
                exact = tables.sql(
                    "SELECT p95_ms FROM duration_percentiles(span := NULL) ORDER BY saga_name"
                ).fetchall()
                assert len(exact) == len([saga for saga in window.sagas if saga.completed or saga.rolled_back])
        with history.open(lake) as tables:
            assert tables.sql("SELECT count(*) FROM open_runs").fetchall() == [(frame.active,)]
    assert {kind.saga_name for kind in frame.active_sagas} == {"order", SCRIPT}, "text of events is data"


NAMES = st.sampled_from(["order", SCRIPT, "'; DROP TABLE keys; --"])
STEPS = st.lists(st.sampled_from(["pay", "ship", "pay!", "-pay", "-ship!"]), max_size=4)
ENDS = st.sampled_from([None, "saga_completed", "saga_rolled_back", "saga_failed"])
RUNS = st.lists(st.tuples(st.integers(0, 5_000), STEPS, ENDS, NAMES, st.floats(0.1, 400)), min_size=1, max_size=8)


@tried(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(RUNS, st.data())
def test_any_way_of_coming_gives_the_same_numbers(runs: list[Any], data: st.DataObject) -> None:
    """Split into commits in any order, with doubles and compaction in between, read one by one or some at once."""
    rows = [
        row
        for n, (age, steps, end, name, wait) in enumerate(runs)
        for row in story(n, NOON - age * SECOND, steps, end, name=name, wait=wait)
    ]
    rows = data.draw(st.permutations(rows))
    again = data.draw(st.lists(st.sampled_from(rows), max_size=4))
    rows += [row | {"source_offset": 100_000 + n} for n, row in enumerate(again)]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=3)))
    with tempfile.TemporaryDirectory() as folder:
        lake = Settings(home=folder, topic="t")
        open_catalog(lake)
        with following(lake) as live:
            for first, last in zip([0, *cuts], [*cuts, len(rows)], strict=True):
                if data.draw(st.booleans()):
                    live.refresh()
                if rows[first:last]:
                    append(lake, EVENTS, rows[first:last])
                if last and data.draw(st.booleans()):
                    compact(lake, EVENTS)
            live.refresh()
            frame = live.frame(NOW)
            running = live.running()
        with following(lake) as at_once:
            at_once.refresh()
            assert numbers(frame) == numbers(at_once.frame(NOW))
            assert running == at_once.running()
        assert_equals_oracle(frame, rows)


def test_a_file_that_compaction_replaced_before_it_was_read_is_read(lake: Settings) -> None:
    """What came between two looks is counted also where it is in another file by now; what compaction wrote is not counted."""
    append(lake, EVENTS, events_of(0, NOON - MINUTE))
    with following(lake) as live:
        live.refresh()
        append(lake, EVENTS, events_of(1, NOON - MINUTE))
        compact(lake, EVENTS)
        append(lake, EVENTS, events_of(3, NOON - MINUTE))
        assert len(paths(lake, EVENTS)) == 2
        live.refresh()
        assert live.frame(NOW).windows[-1].all_sagas.completed == 3
        compact(lake, EVENTS)
        assert live.refresh(), "a newer snapshot, though it brings nothing"
        assert live.frame(NOW).windows[-1].all_sagas.completed == 3


def test_rows_that_are_written_anew_count_once(lake: Settings) -> None:
    """`maintain dedup` rewrites whole files: what was counted stays counted, and no ended run opens again."""
    rows = events_of(0, NOON - MINUTE) + story(5, NOON - MINUTE, ["pay"], None)
    append(lake, EVENTS, [*rows, rows[2] | {"source_offset": 9_999}])
    with following(lake) as live:
        live.refresh()
        before = numbers(live.frame(NOW))
        with closing(open_catalog(lake)) as catalog:
            assert duplicates.remove(lake, catalog)
        assert live.refresh()
        assert numbers(live.frame(NOW)) == before
        assert live.running().sagas[0].steps_done == ["pay"]


def test_a_late_event_does_not_open_an_ended_run_again(lake: Settings) -> None:
    """Neither soon after its end nor when the end is long forgotten; and a run that started late is one that runs."""
    clock = Clock(NOW)
    rows = story(0, NOON - MINUTE, ["pay", "ship"], "saga_completed")
    append(lake, EVENTS, rows[:3] + rows[4:])
    with following(lake, clock) as live:
        live.refresh()
        append(lake, EVENTS, [rows[3]])
        live.refresh()
        assert live.frame(clock.now).active == 0
        clock.now += timedelta(hours=5)
        live.refresh()
        append(lake, EVENTS, [rows[1] | {"event_id": "late"}])
        append(lake, EVENTS, story(1, NOON, ["pay"], None))
        live.refresh()
        assert [kind.active for kind in live.frame(clock.now).active_sagas] == [1]
        assert live.frame(clock.now).active_sagas[0].silent == 1
        clock.now += timedelta(days=8)
        live.refresh()
        assert live.frame(clock.now).active == 0, "abandoned"


def test_windows_slide_and_old_rows_go(lake: Settings) -> None:
    """An hour later nothing of it is counted, nor kept."""
    clock = Clock(NOW)
    append(lake, EVENTS, events_of(0, NOON - MINUTE) + events_of(1, NOON - 10 * MINUTE))
    with following(lake, clock) as live:
        live.refresh()
        assert [window.all_sagas.completed for window in live.frame(clock.now).windows] == [1, 1, 2, 2]
        clock.now += 6 * MINUTE
        assert not live.refresh()
        assert [window.all_sagas.completed for window in live.frame(clock.now).windows] == [0, 0, 1, 2]
        clock.now += 60 * MINUTE
        live.refresh()
        assert [window.all_sagas.completed for window in live.frame(clock.now).windows] == [0] * 4
        kept = [
            live._connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
            for table in ("step_windows", "saga_windows", "counted_ids", "keys", "open_events")
        ]
        assert kept == [0] * 5
        append(lake, EVENTS, events_of(3, NOON + 5 * MINUTE))
        live.refresh()
        assert live.frame(clock.now).windows[-1].all_sagas.completed == 0, "too late for every window"


def test_windows_are_open_until_the_job_has_closed_them(lake: Settings) -> None:
    """By the newest window that is stored; before the first one all are."""
    append(lake, EVENTS, events_of(0, NOON - MINUTE))
    with following(lake) as live:
        live.refresh()
        assert live.frame(NOW).series.open_since is None
        with history.open(lake) as tables:
            rows = tables.sql(f'SELECT * EXCLUDE "open" FROM {STEP_STATS.name}').to_arrow_table().to_pylist()
        append(lake, STEP_STATS, rows)
        assert live.refresh()
        assert live.frame(NOW).series.open_since == rows[0]["window_end"]
    with following(lake) as live:
        live.refresh()
        assert live.frame(NOW).series.open_since == rows[0]["window_end"]


def define(lake: Settings, definition_id: str, *names: str) -> None:
    """A definition of `order` with these steps."""
    steps = msgspec.json.encode([{"step_name": name, "compensable": True} for name in names]).decode()
    row = {"definition_id": definition_id, "saga_name": "order", "steps": steps, "first_seen": NOON}
    append(lake, SAGA_DEFINITIONS, [row])


def test_running_sagas_tell_how_far_they_are(lake: Settings) -> None:
    """Current step, what is left by the definition (also one that comes later), ages by the clock; what undoes has no rest."""
    rows = story(0, NOON - MINUTE, ["pay"], None) + story(1, NOON - 2 * MINUTE, ["pay", "ship!", "-pay"], None)
    append(lake, EVENTS, [row | {"definition_id": "d"} for row in rows])
    with following(lake) as live:
        live.refresh()
        assert [saga.steps_remaining for saga in live.running().sagas] == [None, None]
        define(lake, "d", "pay", "ship", "mail")
        assert live.refresh()
        undoing, forward = live.running().sagas
    assert (undoing.run_id, undoing.undoing, undoing.steps_remaining, undoing.failing_step) == (
        "r1",
        True,
        None,
        "ship",
    )
    assert (forward.current_step, forward.undoing, forward.steps_done) == ("pay", False, ["pay"])
    assert (forward.steps_defined, forward.steps_remaining) == (3, 2)
    assert (forward.age_ms, forward.silent_ms) == (63_000, 61_000)


def test_running_sagas_are_searched_sorted_and_paged(lake: Settings) -> None:
    """Any part of a name, an id or the step, in any case; what is asked is data, not SQL."""
    for n, name in enumerate(["order", SCRIPT, "Refund%"]):
        append(lake, EVENTS, story(n, NOON - (n + 1) * MINUTE, ["pay"] * (n + 1), None, name=name))
    with following(lake) as live:
        live.refresh()
        page = live.running(limit=2)
        assert (page.matching, [saga.run_id for saga in page.sagas]) == (3, ["r2", "r1"])
        assert [saga.run_id for saga in live.running(limit=2, offset=2).sagas] == ["r0"]
        assert [saga.run_id for saga in live.running(sort="age", descending=False).sagas] == ["r0", "r1", "r2"]
        assert [saga.saga_name for saga in live.running("SCRIPT>").sagas] == [SCRIPT]
        assert [saga.saga_name for saga in live.running("d%").sagas] == ["Refund%"]
        assert live.running("' OR 1=1 --").matching == 0
        with pytest.raises(LookupError, match="no sort 'x'; there are age, silent"):
            live.running(sort="x")


def test_an_eta_is_what_longer_runs_took_beyond_the_age(lake: Settings) -> None:
    """Quantiles over completed runs that took longer than this one has; none where fewer than 20 are known."""
    took = [10 * (n + 1) for n in range(100)]  # 10 s to 1,000 s
    ended = [
        event(n, 0, "saga_completed", NOON - 30 * MINUTE + n * SECOND, total_duration_ms=seconds * 1000)
        for n, seconds in enumerate(took)
    ]
    append(lake, EVENTS, ended + story(200, NOW - 500 * SECOND, [], None) + story(201, NOW - 850 * SECOND, [], None))
    with following(lake) as live:
        live.refresh()
        old, young = live.running().sagas
    assert (old.eta_p50_ms, old.eta_p90_ms) == (None, None)
    longer = sorted(seconds for seconds in took if seconds > 500)
    assert young.eta_p50_ms == pytest.approx((longer[24] - 500) * 1000, rel=0.05)
    assert young.eta_p90_ms == pytest.approx((longer[44] - 500) * 1000, rel=0.05)


def test_a_damaged_file_is_told_until_it_is_whole(lake: Settings) -> None:
    """The numbers stay what they were; nothing is left out in silence."""
    append(lake, EVENTS, events_of(0, NOON - MINUTE))
    with following(lake) as live:
        live.refresh()
        before = set(paths(lake, EVENTS))
        append(lake, EVENTS, events_of(1, NOON - MINUTE))
        [new] = set(paths(lake, EVENTS)) - before
        whole = new.read_bytes()
        new.write_bytes(b"no parquet")
        for _ in range(2):
            with pytest.raises(DamagedFileError, match=r"events of 2026-11-20 can.t be read"):
                live.refresh()
        assert live.frame(NOW).windows[-1].all_sagas.completed == 1
        new.write_bytes(whole)
        assert live.refresh()
        assert live.frame(NOW).windows[-1].all_sagas.completed == 2


def test_all_is_read_anew_where_the_track_is_lost(lake: Settings) -> None:
    """The snapshot that was seen last has expired: as after a night's sleep."""
    append(lake, EVENTS, events_of(0, NOON - MINUTE))
    with following(lake) as live:
        live.refresh()
        for run in (1, 3, 4):
            append(lake, EVENTS, events_of(run, NOON - MINUTE))
        table = open_catalog(lake).load_table(EVENTS.identifier)
        ids = [snapshot.snapshot_id for snapshot in table.snapshots()]
        table.maintenance.expire_snapshots().by_ids(ids[:-1]).commit()
        assert live.refresh()
        assert live.frame(NOW).windows[-1].all_sagas.completed == 4


def test_empty_tables_have_a_frame(lake: Settings) -> None:
    """Of zeros; rates and durations are unknown, not 0."""
    with following(lake) as live:
        live.refresh()
        frame = live.frame(NOW)
        assert (frame.snapshot_id, frame.active, len(frame.series.started)) == (None, 0, 360)
        assert [window.all_sagas.failure_rate for window in frame.windows] == [None] * 4
        append(lake, EVENTS, events_of(0, NOON - MINUTE))
        assert live.refresh()
        assert live.frame(NOW).snapshot_id is not None


def test_the_bucket_is_that_of_step_durations(lake: Settings) -> None:
    """Merged over all windows: the live rows of each bucket are those of the table."""
    append(lake, EVENTS, [row for n in range(30) for row in story(n, NOON - n * SECOND, ["pay"], "saga_completed")])
    with following(lake) as live:
        live.refresh()
        got = live._connection.execute(
            "SELECT bucket, sum(timed)::BIGINT FROM step_windows GROUP BY bucket ORDER BY bucket"
        ).fetchall()
    with history.open(lake) as tables:
        query = 'SELECT bucket, sum("count")::BIGINT FROM step_durations GROUP BY bucket ORDER BY bucket'
        assert got == tables.sql(query).fetchall()
    assert statistics.bucket_of("x").count("1.01e0") == 1
