"""The sagas' definitions: from the compacted topic into the table `saga_definitions`, each once."""

from __future__ import annotations

import fcntl
import logging
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
from kafka import TopicPartition
from pyiceberg.io.pyarrow import schema_to_pyarrow

from sagascope.definitions import InvalidDefinitionError, decode_definition
from warehouse import topic
from warehouse.tables import SAGA_DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka.consumer.fetcher import ConsumerRecord
    from pyiceberg.catalog import Catalog

    from sagascope.definitions import PublishedDefinition, SagaDefinition
    from warehouse.settings import Settings

logger = logging.getLogger(__name__)


def import_definitions(settings: Settings, catalog: Catalog) -> int:
    """Append to the table the topic's definitions that it lacks; returns how many. Safe beside another import.

    The whole topic is read: it is compacted, so it holds little more than one record a definition. A record that is no
    definition is skipped, and logged once by each process. Without the topic there is nothing to import.

    Raises:
        kafka.errors.KafkaError: the broker does not answer, or stops to.
        OSError: the catalog's folder can't be written.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in _records(settings):
        if row := _row(record):
            found.setdefault(row["definition_id"], row)  # the first record of a definition says when it was first seen
    if not found:
        return 0
    with (settings.catalog_file.parent / f"{SAGA_DEFINITIONS.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # PyIceberg repeats an append that another one came before, without a look
        table = catalog.load_table(SAGA_DEFINITIONS.identifier)
        stored = set(table.scan(selected_fields=("definition_id",)).to_arrow()["definition_id"].to_pylist())
        new = [row for definition_id, row in found.items() if definition_id not in stored]
        if new:
            table.append(pa.Table.from_pylist(new, schema=schema_to_pyarrow(table.schema(), include_field_ids=False)))
    return len(new)


def _records(settings: Settings) -> Iterator[ConsumerRecord]:
    """All records of the topic, of each partition from its first to the last one that it has now."""
    with topic.consuming(settings) as consumer:
        numbers = consumer.partitions_for_topic(settings.definitions_topic) or ()
        partitions = [TopicPartition(settings.definitions_topic, number) for number in sorted(numbers)]
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        for partition in partitions:
            for _, _, records in topic.read(consumer, partition, begins[partition], ends[partition]):
                yield from records


def _row(record: ConsumerRecord) -> dict[str, Any] | None:
    """The row of a record; None for one that says a definition is to be forgotten, and for one that is none."""
    if record.value is None:
        return None
    try:
        definition = decode_definition(record.value)
        first_seen = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    except (InvalidDefinitionError, ValueError, OverflowError) as error:
        _log_skipped(f"{record.topic}-{record.partition} at offset {record.offset}", str(error))
        return None
    return row_of(definition, first_seen, definition.service)


def row_of(
    definition: PublishedDefinition | SagaDefinition, first_seen: datetime, service: str | None
) -> dict[str, Any]:
    """A row of `saga_definitions`, by column."""
    return {
        "definition_id": definition.definition_id,
        "saga_name": definition.saga_name,
        "steps": msgspec.json.encode(definition.steps).decode(),
        "first_seen": first_seen,
        "service": service,
    }


@lru_cache(maxsize=1_000)
def _log_skipped(place: str, reason: str) -> None:
    """Once: every import reads the record again."""
    logger.warning("the record of %s is skipped: %s", place, reason)
