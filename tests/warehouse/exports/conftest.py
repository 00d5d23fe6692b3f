"""A lake whose events have names that are hard to write down."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sagascope.events import EventType, SagaEvent
from tests.warehouse.planted import append
from tests.warehouse.test_saga_runs import told
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from warehouse.settings import Settings

HARD = 'a/b%2F "\\ \n\x01 ü 🦆 null'


@pytest.fixture
def exported_events(lake: Settings) -> list[SagaEvent]:
    """The events of the lake, as they were told, in order of time: of four sagas, one of them within another."""
    events = [
        *told("> ", "( pay", "+ pay", "= completed", run="a", saga_id="17", service="shop"),
        *told(
            "> ", "( pay", "! pay", "= rolled_back", run="b", saga_id="17", saga_name="refund", attributes={HARD: HARD}
        ),
        *told(
            "> ", f"( {HARD}", f"+ {HARD}", run="c", saga_id=HARD, saga_name="run", parent_saga_id="17", trace_id="t"
        ),
        *told("> ", "( b/c", "+ b/c", "= completed", run="d/a", saga_name="run", context_keys=("k",), compensable=True),
    ]
    store(lake, events)
    return sorted(events, key=lambda one: (one.timestamp, one.run_id, one.sequence))


def store(lake: Settings, events: list[SagaEvent]) -> None:
    """Append them, and the first of them once more: a record that came twice."""
    rows: list[dict[str, Any]] = []
    for one in [*events, events[0]]:
        moment = datetime.fromtimestamp(one.timestamp / 1000, UTC)
        row = msgspec.structs.asdict(one) | {"timestamp": moment, "event_type": EventType(one.event_type).value}
        rows.append(row | {"source_topic": "t", "source_partition": 0, "source_offset": len(rows)})
    append(lake, EVENTS, rows)
