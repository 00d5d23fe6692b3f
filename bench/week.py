"""A week of made-up events, straight into the tables: 100,000 events lived through once, and told again and again.

Each time later and with ids of its own. Sagas and their definitions are those of `bench/synthesise.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import msgspec
import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow

from bench import synthesise
from pipelines.workload import SAGAS
from sagascope.definitions import SagaDefinition, StepDefinition
from sagascope.events import decode
from warehouse.catalog import open_catalog
from warehouse.definitions import row_of
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, Table

if TYPE_CHECKING:
    from warehouse.settings import Settings

TOLD_ONCE = 100_000
DAYS = 7
BEGIN = datetime.fromtimestamp(synthesise.BEGIN_MS / 1000, UTC)
END = BEGIN + timedelta(days=DAYS)

TOLD_AGAIN = """
SELECT printf('%08x', range + $first) || substr(event_id, 9) AS event_id, event_type,
    saga_id || '-' || range + $first AS saga_id, saga_name,
    printf('%08x', range + $first) || substr(run_id, 9) AS run_id, "sequence",
    "timestamp" + (range + $first) * to_milliseconds($width) AS "timestamp",
    * EXCLUDE (event_id, event_type, saga_id, saga_name, run_id, "sequence", "timestamp", source_offset),
    source_offset + (range + $first) * $events AS source_offset
FROM range($number), once ORDER BY "timestamp"
"""


def fill(settings: Settings, events: int) -> None:
    """Append the events and the definitions."""
    times = max(1, events // TOLD_ONCE)
    load = synthesise.Load(events=TOLD_ONCE, partitions=1, events_per_second=TOLD_ONCE * times / DAYS / 86_400)
    width = round(DAYS * 86_400_000 / times)
    rows = [_row(value, offset) for offset, value in enumerate(r.value for r in synthesise.partition_events(load, 0))]
    with duckdb.connect() as duck:
        duck.execute("SET TimeZone = 'UTC'")
        duck.register("once", pa.Table.from_pylist(rows, schema=_schema(EVENTS)))
        for first in range(0, times, 10):
            values = {"first": first, "number": min(10, times - first), "width": width, "events": TOLD_ONCE}
            append(settings, EVENTS, duck.sql(TOLD_AGAIN, params=values).to_arrow_table())
    defined = [row_of(one, BEGIN, None) for one in definitions().values()]
    append(settings, SAGA_DEFINITIONS, pa.Table.from_pylist(defined, schema=_schema(SAGA_DEFINITIONS)))


def _row(value: bytes, offset: int) -> dict[str, Any]:
    event = decode(value)
    return msgspec.structs.asdict(event) | {
        "event_type": str(event.event_type),
        "timestamp": datetime.fromtimestamp(event.timestamp / 1000, UTC),
        "context_keys": list(event.context_keys),
        "source_topic": "bench",
        "source_partition": 0,
        "source_offset": offset,
    }


def definitions() -> dict[str, SagaDefinition]:
    """The sagas', by their id."""
    found = [
        SagaDefinition(
            saga_name=model.name,
            steps=tuple(
                StepDefinition(
                    step_name=step.name,
                    compensable=step.compensation is not None,
                    pivot=step.pivot,
                    depends_on=step.after,
                )
                for step in model.steps
            ),
        )
        for model in SAGAS
    ]
    return {one.definition_id: one for one in found}


def _schema(table: Table) -> pa.Schema:
    return schema_to_pyarrow(table.schema, include_field_ids=False)


def append(settings: Settings, table: Table, rows: pa.Table) -> None:
    """Append rows to a table."""
    stored = open_catalog(settings).load_table(table.identifier)
    wanted = schema_to_pyarrow(stored.schema(), include_field_ids=False)
    stored.append(rows.select(wanted.names).cast(wanted))
