"""Rows and tables of FlussAnalyticsListener, on a real Fluss cluster."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import fluss
import msgspec
import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow

from sagascope.errors import PartialError, PermanentError, TransientError
from sagascope.events import EventType, SagaEvent, decode, encode
from sagascope.listeners.fluss import FlussAnalyticsListener
from sagascope.listeners.fluss_rows import BUCKET_KEY, COLUMNS, LARGEST_EVENT, table_schema
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sagascope.listener import EventListener
    from tests.servers.fluss import FlussServer


def many(sagas: int) -> list[SagaEvent]:
    """Four events of each saga, those of all sagas mixed as they would be: the first of each, then the second …."""
    runs = [a_run(f"order-{n}") for n in range(sagas)]
    return [event for moment in zip(*runs, strict=True) for event in moment]


def test_the_columns_are_the_fields_of_the_event() -> None:
    """A field that an event gains needs a column: none is lost on the way."""
    assert list(COLUMNS) == [field.name for field in msgspec.structs.fields(SagaEvent)]


def test_the_table_could_be_tiered_into_the_lake_table() -> None:
    """The lake's table of events begins with these very columns, of the same types and as optional."""
    lake = schema_to_pyarrow(EVENTS.schema, include_field_ids=False)
    ours = table_schema()
    for field, in_lake in zip(ours, lake, strict=False):
        assert (field.name, field.nullable) == (in_lake.name, in_lake.nullable)
        assert plain(field.type) == plain(in_lake.type)
    assert {field.name for field in lake} - set(ours.names) == {"source_topic", "source_partition", "source_offset"}


def plain(kind: pa.DataType) -> str:
    """A type without what Iceberg and Fluss choose differently: units of time, sizes of offsets, names of elements."""
    text = str(kind)
    for differs, same in {"large_": "", "timestamp[us": "timestamp[ms", "element": "item", " not null": ""}.items():
        text = text.replace(differs, same)
    return text.split(" ('")[0]


def test_every_field_arrives_as_it_was(fluss_server: FlussServer, fluss_table: str) -> None:
    """A row has what its event has: all fields set, none set, empty ones, control characters, the far end of Unicode."""
    full = make_event(
        event_type=EventType.COMPENSATION_FAILED,
        saga_id="a\x00b\n\u202e\U0001f9e8",
        sequence=2**63 - 1,
        timestamp=1_780_000_000_123,
        step_name="pay",
        attempt=3,
        compensable=True,
        pivot=False,
        duration_ms=0,
        duration_derived=True,
        total_duration_ms=2**63 - 1,
        error_type="Boom",
        error_message="",
        context_keys=("", "ö", "amount"),
        attributes={"tenant": "", "": "x", "\x00": "\x00"},
        definition_id="d",
        parent_saga_id="p",
        trace_id="t",
        service="s",
    )
    events = [full, make_event()]

    async def main() -> None:
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            await listener.write(events)
        found = {row["event_id"]: row for row in await fluss_server.rows(fluss_table)}
        for event in events:
            row = found[event.event_id]
            assert round(row.pop("timestamp").timestamp() * 1000) == event.timestamp
            assert tuple(row.pop("context_keys")) == event.context_keys
            assert dict(row.pop("attributes")) == event.attributes
            assert row == {name: getattr(event, name) for name in row if name != "bucket"} | {"bucket": row["bucket"]}

    fluss_server.run(main)


def test_a_lone_surrogate_costs_a_character_not_the_event(fluss_server: FlussServer, fluss_table: str) -> None:
    """What is no Unicode is written as the topic has it, and the events beside it are untouched."""
    broken = make_event(saga_id="file-\udcff", attributes={"\udcff": "\udcff"})
    others = a_run("order-1")

    async def main() -> None:
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            await listener.write([*others[:2], broken, *others[2:]])
        found = {row["event_id"]: row for row in await fluss_server.rows(fluss_table)}
        assert found.keys() == {event.event_id for event in [*others, broken]}
        assert found[broken.event_id]["saga_id"] == decode(encode(broken)).saga_id == "file-?"
        assert found[broken.event_id]["attributes"] == [("?", "?")]

    fluss_server.run(main)


def test_a_saga_keeps_its_order_in_one_bucket(fluss_server: FlussServer, fluss_table: str) -> None:
    """All events of a saga are in one bucket, in the order written, over batches and reopened connections; sagas spread."""
    events = many(50)

    async def main() -> None:
        for start in range(0, len(events), 40):
            async with FlussAnalyticsListener(fluss_server.address, table=fluss_table, buckets=3) as listener:
                await listener.write(events[start : start + 40])
        found = await fluss_server.rows(fluss_table)
        for saga_id in {event.saga_id for event in events}:
            of_saga = [row for row in found if row["saga_id"] == saga_id]
            assert [row["sequence"] for row in of_saga] == [0, 1, 2, 3]
            assert len({row["bucket"] for row in of_saga}) == 1
        assert {row["bucket"] for row in found} == {0, 1, 2}

    fluss_server.run(main)


def test_full_batches_from_several_tasks_arrive_whole(fluss_server: FlussServer, fluss_table: str) -> None:
    """500 events a write, from four tasks at once through one listener: each event once."""
    batches = [many(125) for _ in range(4)]

    async def main() -> None:
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            await asyncio.gather(*(listener.write(batch) for batch in batches))
        found = [row["event_id"] for row in await fluss_server.rows(fluss_table)]
        assert sorted(found) == sorted(event.event_id for batch in batches for event in batch)

    fluss_server.run(main)


def test_large_events_are_split_over_requests(fluss_server: FlussServer, fluss_table: str) -> None:
    """Twenty events of 1 MB each, which no compression makes small, are written by one call."""
    random = Random(17)
    events = [make_event(attributes={"note": random.randbytes(500_000).hex()}) for _ in range(20)]

    async def main() -> None:
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            await listener.write(events)
        found = {row["event_id"]: dict(row["attributes"]) for row in await fluss_server.rows(fluss_table)}
        assert found == {event.event_id: event.attributes for event in events}

    fluss_server.run(main)


def test_an_event_that_is_no_row_is_named_and_the_others_arrive(fluss_server: FlussServer, fluss_table: str) -> None:
    """Too large, a wrong type, out of range: rejected each with its reason, PartialError beside others, PermanentError alone."""
    good = a_run("order-1")
    bad = [
        make_event(attributes={"note": "x" * LARGEST_EVENT}),
        make_event(saga_id=None),
        make_event(sequence=2**63),
        make_event(attributes={"tenant": 5}),
        make_event(attributes={"tenant": object()}),
    ]

    async def main() -> None:
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            with pytest.raises(PartialError) as caught:
                await listener.write([*bad[:2], *good, *bad[2:]])
            assert not caught.value.retry
            rejected = {event.event_id: why for event, why in caught.value.rejected}
            assert rejected.keys() == {event.event_id for event in bad}
            assert all(event_id in why and not why.endswith(": ") for event_id, why in rejected.items())
            for event in bad:
                with pytest.raises(PermanentError, match=event.event_id):
                    await listener.write([event])
        assert sorted(row["event_id"] for row in await fluss_server.rows(fluss_table)) == sorted(
            e.event_id for e in good
        )

    fluss_server.run(main)


def test_services_that_start_at_once_make_one_table(fluss_server: FlussServer, fluss_table: str) -> None:
    """Database and table are absent, and eight listeners want them at the same moment: all of them write."""
    runs = [a_run(f"order-{n}") for n in range(8)]
    database = f"db_{fluss_table}"

    async def main() -> None:
        async def service(run: list[SagaEvent]) -> None:
            async with FlussAnalyticsListener(fluss_server.address, database=database, table=fluss_table) as listener:
                await listener.write(run)

        await asyncio.gather(*map(service, runs))
        found = await fluss_server.rows(fluss_table, database)
        assert sorted(row["event_id"] for row in found) == sorted(event.event_id for run in runs for event in run)

    fluss_server.run(main)


def test_a_dropped_table_is_made_anew(fluss_server: FlussServer, fluss_table: str) -> None:
    """A table that somebody drops makes a write fail as transient; the next one makes it again."""
    events = a_run("order-1")

    async def main() -> None:
        admin = (await fluss_server.connect()).get_admin()
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            await listener.write(a_run("order-0"))
            await admin.drop_table(fluss.TablePath("saga", fluss_table))
            with pytest.raises(TransientError):
                await until_it_fails(listener)  # its server takes rows until it has heard of it
            await listener.write(events)
        assert [row["event_id"] for row in await fluss_server.rows(fluss_table)] == [event.event_id for event in events]

    fluss_server.run(main)


async def until_it_fails(listener: EventListener) -> None:
    """Write on and on."""
    async with asyncio.timeout(30):
        while True:
            await listener.write(a_run("order-0"))


def test_the_table_has_what_was_asked_for(fluss_server: FlussServer, fluss_table: str) -> None:
    """Number of buckets and properties are those of the constructor, and a table that exists keeps its own."""

    async def main() -> None:
        listener = FlussAnalyticsListener(
            fluss_server.address, table=fluss_table, buckets=5, table_properties={"table.log.ttl": "3d"}
        )
        async with listener, FlussAnalyticsListener(fluss_server.address, table=fluss_table, buckets=2) as second:
            await second.write(a_run("order-1"))
            info = await (await fluss_server.connect()).get_admin().get_table_info(fluss.TablePath("saga", fluss_table))
            assert info.num_buckets == 5
            assert info.get_properties()["table.log.ttl"] == "3d"
            assert info.get_bucket_keys() == [BUCKET_KEY]

    fluss_server.run(main)


def test_further_columns_are_left_null(fluss_server: FlussServer, fluss_table: str) -> None:
    """A table with columns of somebody else's, also amid ours, takes events."""
    events = a_run("order-1")
    schema = table_schema().insert(2, pa.field("ingested", pa.int64()))

    async def main() -> None:
        await make(fluss_server, fluss_table, schema, bucket_count=2, bucket_keys=["saga_id"])
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            await listener.write(events)
        found = await fluss_server.rows(fluss_table)
        assert {(row["event_id"], row["ingested"]) for row in found} == {(event.event_id, None) for event in events}

    fluss_server.run(main)


async def make(server: FlussServer, table: str, schema: pa.Schema, keys: list[str] | None = None, **how: Any) -> None:
    """Make a table as somebody else would."""
    admin = (await server.connect()).get_admin()
    await admin.create_database("saga", ignore_if_exists=True)
    descriptor = fluss.TableDescriptor(fluss.Schema(schema, primary_keys=keys), **how)
    await admin.create_table(fluss.TablePath("saga", table), descriptor)


@pytest.mark.parametrize(
    ("changed", "how", "said"),
    [
        (lambda s: s, {"bucket_count": 2}, r"bucket key is \[\]"),
        (lambda s: s, {"bucket_count": 2, "bucket_keys": ["event_id"]}, r"bucket key is \['event_id'\]"),
        (lambda s: s, {"bucket_count": 2, "keys": ["event_id"]}, "primary key"),
        (
            lambda s: s,
            {"bucket_count": 2, "bucket_keys": ["saga_id"], "partition_keys": ["event_type"]},
            "is partitioned",
        ),
        (
            lambda s: s.remove(1),
            {"bucket_count": 2, "bucket_keys": ["saga_id"]},
            "no column event_type STRING NOT NULL",
        ),
        (
            lambda s: s.set(6, pa.field("timestamp", pa.int64())),
            {"bucket_count": 2, "bucket_keys": ["saga_id"]},
            "timestamp is int64",
        ),
        (
            lambda s: s.append(pa.field("other", pa.int64(), nullable=False)),
            {"bucket_count": 2, "bucket_keys": ["saga_id"]},
            "other is not of events, and allows no NULL",
        ),
    ],
    ids=["no bucket key", "other bucket key", "primary key", "partitioned", "column missing", "other type", "not null"],
)
def test_a_table_that_is_not_for_events_is_refused(
    fluss_server: FlussServer,
    fluss_table: str,
    changed: Callable[[pa.Schema], pa.Schema],
    how: dict[str, Any],
    said: str,
) -> None:
    """A table of that name that can't hold events, or not in a saga's order, is no place to write to, and says why."""

    async def main() -> None:
        await make(fluss_server, fluss_table, changed(table_schema()), **how)
        listener = FlussAnalyticsListener(fluss_server.address, table=fluss_table)
        with pytest.raises(PermanentError, match=said):
            await listener.write(a_run("order-1"))
        await listener.close()

    fluss_server.run(main)
