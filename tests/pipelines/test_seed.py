"""A week of made-up history: whole but for the two days that are to be mended."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pipelines import simulated_time
from pipelines.seed import LATE_HOURS, AlreadyHistoryError, Seeded, seed
from warehouse import history, windows
from warehouse.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 3, 9, 15, 30, tzinfo=UTC)
DAY = timedelta(days=1)


class Lake(NamedTuple):
    """Where was seeded, and what."""

    settings: Settings
    seeded: Seeded


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Seven days, about 120 sagas each."""
    settings = Settings(home=str(tmp_path_factory.mktemp("seeded")))
    return Lake(settings, seed(settings, NOW, sagas_a_day=120))


def ask(lake: Lake, query: str) -> list[tuple[object, ...]]:
    """What the history answers."""
    with history.open(lake.settings) as tables:
        return tables.sql(query).fetchall()


def test_days_before_today_have_whole_sagas(lake: Lake) -> None:
    """Each of the seven days has sagas, today has none; every run has ended, in more than one way."""
    first = datetime(2026, 3, 2, tzinfo=UTC).date()
    days = ask(
        lake, """SELECT "timestamp"::DATE AS day, count(DISTINCT run_id) FROM events GROUP BY day ORDER BY day"""
    )
    assert [day for day, _ in days] == [first + number * DAY for number in range(7)]
    assert all(80 < int(str(runs)) < 160 for _, runs in days)
    assert ask(lake, "SELECT count(*) FROM events") == [(lake.seeded.events,)]
    assert ask(lake, "SELECT count(*) FROM open_runs") == [(0,)]
    assert len(ask(lake, "SELECT DISTINCT outcome FROM saga_runs")) >= 4


def test_durations_are_those_that_passed_in_the_simulation(lake: Lake) -> None:
    """A step's duration is the span between its two events; its definition is stored; nothing is rejected."""
    [(steps, equal)] = ask(
        lake,
        "SELECT count(*), count(*) FILTER (duration_ms = date_diff('millisecond', started_at, ended_at)) FROM step_runs",
    )
    assert steps == equal
    assert ask(lake, "SELECT count(*) FROM events ANTI JOIN saga_definitions USING (definition_id)") == [(0,)]
    assert ask(lake, "SELECT count(*) FROM rejected_events") == [(0,)]


def test_two_days_are_to_be_mended(lake: Lake) -> None:
    """Of the statistics differ those of steps on one day, all of them, and on another the hours that came late."""
    seeded, compared = lake.seeded, windows.compare(lake.settings)
    late_hours = {datetime(2026, 3, 7, hour, tzinfo=UTC) for hour in range(*LATE_HOURS)}
    assert seeded.late_events
    assert {hour.date() for hour in compared.hours} == {seeded.late_day, seeded.wrong_day}
    assert {hour for hour in compared.hours if hour.date() == seeded.late_day} <= late_hours
    wrong = [table.table for table in compared.tables if any(found.wrong for found in table.hours.values())]
    assert wrong == ["step_stats"]
    [(stored,)] = ask(
        lake, f"SELECT sum(completed + failed) FROM step_stats WHERE window_start::DATE = '{seeded.wrong_day}'"
    )
    [(told,)] = ask(
        lake,
        f"""SELECT count(*) FROM step_runs WHERE ended_at::DATE = '{seeded.wrong_day}'""",
    )
    assert stored == 2 * int(str(told))


def test_history_is_not_seeded_twice(lake: Lake) -> None:
    """Where there is history, nothing is added, and the refusal says since when and what to do."""
    with pytest.raises(AlreadyHistoryError, match=r"since 2026-03-02 00:\d\d UTC.*SAGASCOPE_HOME"):
        seed(lake.settings, NOW)
    assert ask(lake, "SELECT count(*) FROM events") == [(lake.seeded.events,)]


def test_a_seed_gives_the_same_sagas(lake: Lake, tmp_path: Path) -> None:
    """The same number gives the same sagas with the same times, ids of runs apart."""
    again = Lake(settings := Settings(home=str(tmp_path)), seed(settings, NOW, sagas_a_day=120))
    query = """SELECT saga_id, event_type, step_name, "timestamp", duration_ms FROM events ORDER BY ALL"""
    assert ask(again, query) == ask(lake, query)


@pytest.mark.parametrize(("days", "sagas_a_day"), [(4, 10), (7, 0)])
def test_too_little_is_refused(tmp_path: Path, days: int, sagas_a_day: int) -> None:
    """The message names both numbers."""
    with pytest.raises(ValueError, match=rf"days={days}, sagas_a_day={sagas_a_day}.*5 days"):
        seed(Settings(home=str(tmp_path)), NOW, days=days, sagas_a_day=sagas_a_day)


def test_simulated_time_jumps() -> None:
    """A week of sleeping takes no time here, and timers end in their order."""

    async def sleep() -> list[str]:
        ended = []

        async def one(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            ended.append(f"{name} {asyncio.get_running_loop().time():.0f}")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one("week", 7 * 86_400))
            tasks.create_task(one("hour", 3_600))
        return ended

    began = time.monotonic()
    assert simulated_time.run(sleep()) == ["hour 3600", "week 604800"]
    assert time.monotonic() - began < 60


def test_few_sagas_may_have_none_late(tmp_path: Path) -> None:
    """With a saga a day no event may fall into the late hours: nothing is late then, and all the rest is there."""
    settings = Settings(home=str(tmp_path))
    seeded = seed(settings, NOW, days=5, sagas_a_day=1)
    assert ask(Lake(settings, seeded), "SELECT count(*) FROM events") == [(seeded.events,)]
