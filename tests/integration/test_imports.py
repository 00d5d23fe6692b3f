"""History that was imported beside a topic, a real job, parity and a recompute."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from sagascope import EventType, SagaEvent, encode
from sagascope.events import new_id
from tests.integration.conftest import produce
from tests.warehouse.imports.outboxes import add_rows, saga_rows
from warehouse import history, parity, quality, windows
from warehouse.imports.days import open_import, recompute_of
from warehouse.imports.outbox import SQLiteOutbox
from warehouse.imports.source import Span
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker, pytest.mark.timeout(600)]

DAYS = (date(2026, 5, 26), date(2026, 5, 27))
LIVE = datetime(2026, 5, 28, 12, tzinfo=UTC)


def starts(count: int) -> list[tuple[int, bytes]]:
    """Records of sagas that start, a second apart."""
    return [
        (
            number % 2,
            encode(
                SagaEvent(
                    event_id=new_id(),
                    event_type=EventType.SAGA_STARTED,
                    saga_id=f"live-{number}",
                    saga_name="order",
                    run_id=new_id(),
                    sequence=0,
                    timestamp=int((LIVE + timedelta(seconds=number)).timestamp() * 1000),
                )
            ),
        )
        for number in range(count)
    ]


def test_a_topic_beside_what_was_imported(
    settings: Settings, drain: Callable[[Settings], None], tmp_path: Path
) -> None:
    """A job starts on tables that hold imported events alone; parity stays whole; the days' windows differ until they are recomputed."""
    file = tmp_path / "outbox.db"
    for day in DAYS:
        add_rows(file, [row for number in range(5) for row in saga_rows(number, str(day))])

    def load() -> list[tuple[int, int]]:
        with open_import(settings, SQLiteOutbox(file), Span(), now=datetime.now(UTC)) as opened:
            return [(told.imported, told.already_there) for told in map(opened.store, opened.days())]

    assert load() == [(15, 0), (15, 0)]
    produce(settings, starts(200))
    drain(settings)
    account = parity.audit(settings)
    assert account.is_whole
    assert sum(one.stored for one in account.partitions) == 200
    assert all((one.missing, one.doubled, one.altered, one.lag) == (0, 0, 0, 0) for one in account.partitions)

    stale = windows.compare(settings)
    assert {hour.date() for hour in stale.hours} == {*DAYS}
    [command] = recompute_of(set(DAYS), datetime.now(UTC).date())
    environment = os.environ | settings.environment()
    subprocess.run([sys.executable, *command.split()[1:]], env=environment, check=True)
    assert windows.compare(settings).is_whole
    with history.open(settings) as tables:
        counted = tables.sql("SELECT sum(completed), sum(started) FROM stored_saga_stats").fetchall()
    assert counted == [(10, 200)]
    for day in DAYS:
        assert [one for one in quality.check(settings, EVENTS, day) if not one.passed] == []
    assert load() == [(0, 15), (0, 15)]
    assert parity.audit(settings).is_whole
