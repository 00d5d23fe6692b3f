"""The command as a script runs it, and what it looks at: tables with rows, a topic with records."""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
from kafka import KafkaProducer
from pyiceberg.io.pyarrow import schema_to_pyarrow
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.doctor.findings import Finding, Level
from sagascope import EventType, SagaEvent, encode
from sagascope.events import new_id
from warehouse.catalog import open_catalog
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from warehouse.settings import Settings


def look(settings: Settings, **environment: str) -> tuple[int, list[Finding]]:
    """The command's exit code, and its findings; a traceback fails the test."""
    done = CliRunner().invoke(app, ["doctor", "--format", "json"], env=settings.environment() | environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, [msgspec.json.decode(line, type=Finding) for line in done.stdout.splitlines()]


def found(settings: Settings, area: str, level: Level, what: str, cure: str, **environment: str) -> Finding:
    """The one finding of this area whose texts match; the exit code is 1 where it is a fault, and 0 where none is."""
    code, findings = look(settings, **environment)
    [one] = [one for one in findings if one.area == area and re.search(what, one.what)]
    assert one.level is level
    assert re.search(cure, one.cure), one.cure
    assert code == any(other.level is Level.FAULT for other in findings)
    assert level is not Level.FAULT or code == 1
    return one


def faults(findings: list[Finding]) -> list[Finding]:
    """Those that make the exit code 1."""
    return [one for one in findings if one.level is Level.FAULT]


def make_tables(settings: Settings) -> None:
    """Empty tables, as the job makes them."""
    open_catalog(settings).close()


def store(settings: Settings, *offsets: int) -> None:
    """A row in `events` for each offset of partition 0."""
    with closing(open_catalog(settings)) as catalog:
        table = catalog.load_table(EVENTS.identifier)
        rows = [
            {
                **dict.fromkeys(("event_id", "saga_id", "saga_name", "run_id", "event_type"), str(offset)),
                **dict.fromkeys(("sequence", "attempt", "schema_version", "timestamp"), 1),
                "duration_derived": False,
                "source_topic": settings.topic,
                "source_partition": 0,
                "source_offset": offset,
            }
            for offset in offsets
        ]
        table.append(pa.Table.from_pylist(rows, schema=schema_to_pyarrow(table.schema(), include_field_ids=False)))


def send(settings: Settings, *values: bytes, timestamp_ms: int | None = None) -> None:
    """Records in partition 0."""
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    for value in values:
        producer.send(settings.topic, value, partition=0, timestamp_ms=timestamp_ms)
    producer.flush()
    producer.close()


def event(ahead_seconds: float, service: str) -> bytes:
    """An event whose service's clock is that far ahead."""
    return encode(
        SagaEvent(
            event_id=new_id(),
            event_type=EventType.SAGA_STARTED,
            saga_id="s",
            saga_name="order",
            run_id=new_id(),
            sequence=0,
            timestamp=round((time.time() + ahead_seconds) * 1000),
            service=service,
        )
    )
