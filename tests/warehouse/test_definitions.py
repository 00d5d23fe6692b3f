"""Definitions in the topic become rows of `saga_definitions`, each once."""

from __future__ import annotations

import multiprocessing
import uuid
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from kafka import KafkaProducer

from pipelines import stack
from sagascope.definitions import SagaDefinition, StepDefinition, encode_definition
from warehouse import history
from warehouse.catalog import open_catalog, row_count
from warehouse.definitions import import_definitions
from warehouse.tables import SAGA_DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warehouse.settings import Settings

pytestmark = pytest.mark.broker

MOMENT = 1_700_000_000_123


@pytest.fixture
def at(settings: Settings) -> Settings:
    """Settings with a topic of definitions of their own, not made yet."""
    return msgspec.structs.replace(settings, definitions_topic=f"definitions-{uuid.uuid4().hex[:8]}")


def definition(number: int) -> SagaDefinition:
    """One of many."""
    steps = (StepDefinition(step_name="reserve", compensable=True), StepDefinition(step_name="pay", pivot=True))
    return SagaDefinition(saga_name=f"order-{number}", steps=steps)


def publish(settings: Settings, records: Iterable[tuple[str, bytes | None, int]]) -> None:
    """Make the topic, and write key, value and timestamp."""
    stack.make_topic(settings)
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    for key, value, moment in records:
        producer.send(settings.definitions_topic, key=key.encode(), value=value, timestamp_ms=moment).get(10)
    producer.close()


def published(number: int, moment: int = MOMENT, service: str | None = "shop") -> tuple[str, bytes, int]:
    """The record of a definition."""
    return definition(number).definition_id, encode_definition(definition(number), service), moment


def import_into(settings: Settings) -> int:
    """As the job does it."""
    with closing(open_catalog(settings)) as catalog:
        return import_definitions(settings, catalog)


def rows(settings: Settings) -> list[tuple[Any, ...]]:
    """What the table holds, by saga_name."""
    with history.open(settings) as tables:
        return tables.sql("SELECT * FROM saga_definitions ORDER BY saga_name").fetchall()


def test_each_definition_is_in_the_table_once(at: Settings) -> None:
    """A definition told of again, by another service, in the same import or a later one, changes nothing."""
    publish(at, [published(1), published(2), published(1, MOMENT + 5, "billing")])
    assert import_into(at) == 2
    assert import_into(at) == 0
    publish(at, [published(2, MOMENT + 9), published(3, MOMENT + 9, None)])
    assert import_into(at) == 1
    steps = msgspec.json.encode(definition(1).steps).decode()
    seen = datetime.fromtimestamp(MOMENT / 1000, UTC)
    later = datetime.fromtimestamp((MOMENT + 9) / 1000, UTC)
    assert rows(at) == [
        (definition(1).definition_id, "order-1", steps, seen, "shop"),
        (definition(2).definition_id, "order-2", steps, seen, "shop"),
        (definition(3).definition_id, "order-3", steps, later, None),
    ]


def test_without_a_topic_there_is_nothing_to_import(at: Settings) -> None:
    """A Kafka without the topic is no error, and the topic is not made by looking; an empty topic is none either."""
    assert import_into(at) == 0
    with stack._admin(at.bootstrap_servers) as admin:
        assert at.definitions_topic not in admin.list_topics()
    stack.make_topic(at)
    assert import_into(at) == 0
    with closing(open_catalog(at)) as catalog:
        assert catalog.load_table(SAGA_DEFINITIONS.identifier).current_snapshot() is None


def test_what_is_no_definition_is_skipped_and_said_once(at: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """One bad record keeps no other out; the log names its offset. A tombstone is no bad record, and takes nothing back."""
    publish(
        at,
        [
            ("x", b"{}", MOMENT),
            published(1),
            (definition(1).definition_id, None, MOMENT),
            ("y", b"\xff", MOMENT),
            published(2),
        ],
    )
    assert import_into(at) == 2
    assert import_into(at) == 0
    assert [row[1] for row in rows(at)] == ["order-1", "order-2"]
    said = [record.getMessage() for record in caplog.records if record.name == "warehouse.definitions"]
    assert len(said) == 2
    assert f"the record of {at.definitions_topic}-0 at offset 0 is skipped" in said[0]
    assert "missing required field `definition_id`" in said[0]
    assert "at offset 3 is skipped" in said[1]


def _import_at_once(settings: Settings, start: Any, added: Any) -> None:
    with closing(open_catalog(settings)) as catalog:
        start.wait()
        added.put(import_definitions(settings, catalog))


def test_imports_at_once_add_each_definition_once(at: Settings) -> None:
    """Four processes that import at the same moment share the work: together they add each definition once."""
    publish(at, (published(number) for number in range(50)))
    with closing(open_catalog(at)):
        pass
    spawn = multiprocessing.get_context("spawn")
    start, added = spawn.Barrier(4), spawn.SimpleQueue()
    importers = [spawn.Process(target=_import_at_once, args=(at, start, added)) for _ in range(4)]
    for importer in importers:
        importer.start()
    for importer in importers:
        importer.join(60)
        assert importer.exitcode == 0
    assert sorted(added.get() for _ in importers) == [0, 0, 0, 50]
    with closing(open_catalog(at)) as catalog:
        assert row_count(catalog, SAGA_DEFINITIONS) == 50
    assert len({row[0] for row in rows(at)}) == 50
