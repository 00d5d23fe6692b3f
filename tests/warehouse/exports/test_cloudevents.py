"""Events as CloudEvents: whoever knows the standard reads them, and they are the very events."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat

from sagascope.cloudevents import headers, structured
from sagascope.events import decode
from tests.warehouse.test_saga_runs import told
from warehouse import history
from warehouse.exports import cloudevents
from warehouse.exports.whole_file import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.events import SagaEvent
    from warehouse.settings import Settings


def test_the_sdk_reads_each_event_once_and_whole(
    lake: Settings, exported_events: list[SagaEvent], tmp_path: Path
) -> None:
    """In order of time, with the attributes that a Kafka record's headers have, and the event as data."""
    file = tmp_path / "events.jsonl"
    with history.open(lake) as tables:
        assert cloudevents.write(tables, file) == len(exported_events)
    lines = file.read_bytes().splitlines()
    read = [
        from_http_event(HTTPMessage(headers={"content-type": "application/cloudevents+json"}, body=line), JSONFormat())
        for line in lines
    ]
    for found, event, line in zip(read, exported_events, lines, strict=True):
        assert found.get_id() == event.event_id
        assert found.get_type() == f"sagascope.{event.event_type}"
        assert found.get_subject() == event.saga_id
        assert found.get_time() == datetime.fromtimestamp(event.timestamp / 1000, UTC)
        assert found.get_datacontenttype() == "application/json"
        in_headers = {name.removeprefix("ce_"): value.decode() for name, value in headers(event)}
        assert {name: found.get_attributes()[name] for name in ("id", "source", "type", "subject")} == {
            name: in_headers[name] for name in ("id", "source", "type", "subject")
        }
        assert decode(json.dumps(found.get_data()).encode()) == event
        assert line == structured(event)


def test_an_empty_span_leaves_the_file_as_it_was(
    lake: Settings, exported_events: list[SagaEvent], tmp_path: Path
) -> None:
    """No event is no export."""
    file = tmp_path / "events.jsonl"
    with history.open(lake) as tables:
        cloudevents.write(tables, file)
    before = file.read_bytes()
    with (
        history.open(lake, until=datetime(2020, 1, 1, tzinfo=UTC)) as tables,
        pytest.raises(ExportError, match="no event"),
    ):
        cloudevents.write(tables, file)
    assert file.read_bytes() == before
    assert [*tmp_path.glob(".*partial")] == []


def test_its_own_files_are_known(tmp_path: Path) -> None:
    """And nothing else is."""
    file = tmp_path / "x"
    for content in (b"", b"\xff\xfe", b"[1]", b'{"type": "sagascope.x"}', b'{"specversion": "1.0", "type": "other"}'):
        file.write_bytes(content)
        assert not cloudevents.is_export(file)
    [event] = told("> ")
    file.write_bytes(structured(event))
    assert cloudevents.is_export(file)
