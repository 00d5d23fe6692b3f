"""What a FanOut counts, and dead letters, in a scrape."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter

from sagascope.dead_letters import DeadLetterFile
from sagascope.delivery_metrics import DeadLetterFigures, FiguresOfFile, watch_dead_letters, watch_fan_out
from sagascope.errors import PermanentError
from sagascope.fan_out import FanOut
from sagascope.listener import EventListener
from sagascope.policies import Inline
from sagascope.scope import saga_scope
from tests.sagascope.conftest import MemoryListener, make_event
from tests.sagascope.listeners.test_metrics import series

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sagascope.events import SagaEvent


class Refuses(EventListener):
    """A sink that takes nothing."""

    async def write(self, events: Sequence[SagaEvent]) -> None:
        msg = "no such index"
        raise PermanentError(msg)


def test_what_a_fan_out_counts_is_shown(tmp_path: Path) -> None:
    """Each listener's accepted, delivered, dead-lettered and dropped events are counters, what is queued is a gauge."""
    shown = CollectorRegistry()
    path = tmp_path / "dead.jsonl"

    async def main() -> None:
        async with FanOut([MemoryListener(), Refuses()], dead_letters=DeadLetterFile(path)) as fan_out:
            for _ in range(2):  # watched twice is watched once
                watch_fan_out(fan_out, shown)
            watch_dead_letters("file", FiguresOfFile(path), shown)
            async with saga_scope("o-1", "order", listeners=[fan_out]) as saga:
                await saga.started({})
                await saga.completed()

    asyncio.run(main())
    assert series(shown, "sagascope_listener") == {
        "sagascope_listener_events_total{fate=accepted,listener=MemoryListener}": 2,
        "sagascope_listener_events_total{fate=delivered,listener=MemoryListener}": 2,
        "sagascope_listener_events_total{fate=dead_lettered,listener=MemoryListener}": 0,
        "sagascope_listener_events_total{fate=dropped,listener=MemoryListener}": 0,
        "sagascope_listener_queued_events{listener=MemoryListener}": 0,
        "sagascope_listener_retries_total{listener=MemoryListener}": 0,
        "sagascope_listener_up{listener=MemoryListener}": 1,
        "sagascope_listener_events_total{fate=accepted,listener=Refuses}": 2,
        "sagascope_listener_events_total{fate=delivered,listener=Refuses}": 0,
        "sagascope_listener_events_total{fate=dead_lettered,listener=Refuses}": 2,
        "sagascope_listener_events_total{fate=dropped,listener=Refuses}": 0,
        "sagascope_listener_queued_events{listener=Refuses}": 0,
        "sagascope_listener_retries_total{listener=Refuses}": 0,
        "sagascope_listener_up{listener=Refuses}": 1,
    }
    dead = series(shown, "sagaz_dlq")
    assert dead.pop("sagaz_dlq_oldest_message_age_seconds{topic=file}") < 300
    assert dead == {
        "sagaz_dlq_messages_total{topic=file}": 2,
        "sagaz_dlq_queue_depth{topic=file}": 2,
        "sagaz_dlq_depth{}": 2,
    }


def test_several_fan_outs_are_added_up() -> None:
    """Listeners of one name in several fan-outs are one series."""
    shown = CollectorRegistry()

    async def main() -> None:
        for number in (1, 2):
            async with FanOut([Inline(MemoryListener())]) as fan_out:
                watch_fan_out(fan_out, shown)
                await fan_out.write([make_event()] * number)

    asyncio.run(main())
    assert series(shown)["sagascope_listener_events_total{fate=delivered,listener=MemoryListener}"] == 3


def test_dead_letters_are_asked_for_at_each_scrape() -> None:
    """Each topic shows its total, its depth and the age of its oldest; what is not known is not shown."""
    shown = CollectorRegistry()
    figures = {"total": 3, "depth": 2}
    watch_dead_letters("dlq", lambda: DeadLetterFigures(figures["total"], figures["depth"], 0.0), shown)
    watch_dead_letters("webhook", lambda: DeadLetterFigures(7), shown)
    before = series(shown, "sagaz_dlq")
    assert before.pop("sagaz_dlq_oldest_message_age_seconds{topic=dlq}") > 86_400
    assert before == {
        "sagaz_dlq_messages_total{topic=dlq}": 3,
        "sagaz_dlq_messages_total{topic=webhook}": 7,
        "sagaz_dlq_queue_depth{topic=dlq}": 2,
        "sagaz_dlq_depth{}": 2,
    }
    figures |= {"depth": 0}
    assert series(shown)["sagaz_dlq_queue_depth{topic=dlq}"] == 0
    assert series(shown)["sagaz_dlq_oldest_message_age_seconds{topic=dlq}"] == 0


def test_dead_letters_that_cannot_be_read_spoil_no_scrape(caplog: pytest.LogCaptureFixture) -> None:
    """A source that raises is logged once, and left out until it works again; the others are there."""
    shown, broken = CollectorRegistry(), [True]

    def figures() -> DeadLetterFigures:
        if broken[0]:
            msg = "disk gone"
            raise OSError(msg)
        return DeadLetterFigures(1)

    watch_dead_letters("broken", figures, shown)
    watch_dead_letters("well", lambda: DeadLetterFigures(2), shown)
    for _ in range(3):
        assert series(shown, "sagaz_dlq") == {"sagaz_dlq_messages_total{topic=well}": 2}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    broken[0] = False
    assert series(shown)["sagaz_dlq_messages_total{topic=broken}"] == 1


def test_a_file_is_followed(tmp_path: Path) -> None:
    """Letters that are appended count, those taken out lower the depth alone, and the oldest is that of the first line."""
    path = tmp_path / "dead.jsonl"
    figures = FiguresOfFile(path)
    assert figures() == DeadLetterFigures(0, 0, None)

    def lines(*days: int) -> str:
        about = [{"dlq_metadata": {"failure_timestamp": f"2026-01-0{day}T00:00:00.000+00:00"}} for day in days]
        return "".join(json.dumps(each) + "\n" for each in about)

    path.write_text(lines(1, 2, 3))
    assert figures() == figures() == DeadLetterFigures(3, 3, 1_767_225_600.0)
    with path.open("a") as file:
        file.write(lines(4)[:-1])
        file.flush()
        assert figures().depth == 3  # a line that is not whole yet
        file.write("\n")
    assert figures() == DeadLetterFigures(4, 4, 1_767_225_600.0)
    path.write_text(lines(3, 4))
    assert figures() == DeadLetterFigures(4, 2, 1_767_398_400.0)
    path.unlink()
    assert figures() == DeadLetterFigures(4, 0, None)
    path.write_text("no JSON\n")
    assert figures() == DeadLetterFigures(5, 1, None)


def test_names_that_are_taken_are_refused() -> None:
    """Where another has registered such a name, watching fails, naming it."""
    taken = CollectorRegistry()
    Counter("sagaz_dlq_messages", "Somebody's", registry=taken)
    with pytest.raises(PermanentError, match="sagaz_dlq_messages"):
        watch_dead_letters("dlq", lambda: DeadLetterFigures(1), taken)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the client library, watching says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sagascope\[prometheus\]'"):
        watch_dead_letters("dlq", lambda: DeadLetterFigures(1))
