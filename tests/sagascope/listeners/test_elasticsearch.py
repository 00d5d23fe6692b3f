"""ElasticsearchListener by the contract, on real nodes of Elasticsearch and OpenSearch; and what its documents are."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from random import Random
from typing import TYPE_CHECKING

import elasticsearch
import msgspec
import opensearchpy
import pytest

from pipelines.ports import free_port
from sagascope.errors import PartialError
from sagascope.events import EventType, SagaEvent, decode
from sagascope.listeners.elasticsearch import ElasticsearchListener
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import NetworkedContract, a_run, settle
from tests.sagascope.listeners.search import (
    INDEX,
    Search,
    elasticsearch_at,
    elasticsearch_client,
    opensearch_at,
    search,
)
from tests.servers.elasticsearch import kill, node
from tests.servers.server import state_folder

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

__all__ = ["search"]


class SearchContract(NetworkedContract):
    """The contract, whichever product is written to."""

    name = "ElasticsearchListener"

    @abstractmethod
    def node(self, port: int) -> Search:
        """The node at this port."""

    def unopened(self, tmp_path: Path) -> ElasticsearchListener:
        there = self.node(free_port())
        return ElasticsearchListener(there.client(there.port))

    def at(self, port: int) -> AbstractAsyncContextManager[ElasticsearchListener]:
        return self.node(port).listening()

    async def stored(self, port: int) -> list[str]:
        return self.node(port).stored()


class TestElasticsearch(SearchContract):
    """Elasticsearch, by elasticsearch-py."""

    drivers = ("elasticsearch",)
    extra = "elasticsearch"

    def node(self, port: int) -> Search:
        return elasticsearch_at(port)

    @pytest.fixture(autouse=True)
    def server(self, elasticsearch_port: int) -> int:
        return self.node(elasticsearch_port).emptied().port


class TestOpenSearch(SearchContract):
    """OpenSearch, by opensearch-py."""

    drivers = ("opensearchpy",)
    extra = "opensearch"

    def node(self, port: int) -> Search:
        return opensearch_at(port)

    @pytest.fixture(autouse=True)
    def server(self, opensearch_port: int) -> int:
        return self.node(opensearch_port).emptied().port


def test_each_field_is_mapped(search: Search) -> None:
    """Whatever an event has can be searched by: ids and names as keywords, durations as numbers, times as dates."""
    asyncio.run(search.write(whole_event()))
    mappings = search.ask("GET", f"/{INDEX}/_mapping")[1][INDEX]["mappings"]
    properties = mappings["properties"]
    assert set(properties) == {f.name for f in msgspec.structs.fields(SagaEvent)} | {"@timestamp", "status"}
    assert mappings["dynamic"] == "false"
    kinds = {name: mapping["type"] for name, mapping in properties.items()}
    assert {kinds[name] for name in ("event_id", "saga_id", "run_id", "step_name", "event_type", "status")} == {
        "keyword"
    }
    assert (kinds["@timestamp"], kinds["duration_ms"], kinds["attempt"]) == ("date", "long", "integer")
    assert kinds["attributes"] == search.flattened
    assert (kinds["error_message"], properties["error_message"]["fields"]["keyword"]["type"]) == ("text", "keyword")


def test_a_document_is_the_event(search: Search) -> None:
    """What is stored reads back as the same event, with the time of the event itself and its status beside it."""
    event = whole_event()
    asyncio.run(search.write(event))
    (hit,) = search.hits()
    assert decode(json.dumps(hit["_source"]).encode()) == event
    assert hit["_id"] == event.event_id
    assert hit["_source"]["@timestamp"] == "2026-05-28T20:26:40.007Z"
    assert hit["_source"]["status"] == "failed"


def test_events_are_found(search: Search) -> None:
    """By word of the message, by attribute whose name has a dot, by time, and by what the event's JSON leaves out."""
    event = whole_event()
    asyncio.run(search.write(event, *a_run("other")))
    for query in (
        {"match": {"error_message": "refused"}},
        {"term": {"attributes.customer.tier": "gold"}},
        {"term": {"context_keys": "address"}},
        {"range": {"@timestamp": {"gt": "2026-05-28T20:26:40.006Z", "lt": "2026-05-28T20:26:40.008Z"}}},
        {"range": {"attempt": {"gt": 1}}},
    ):
        assert [hit["_id"] for hit in search.hits(query)] == [event.event_id], query
    assert len(search.hits({"term": {"attempt": 1}})) == 4


@pytest.mark.parametrize(
    ("event_type", "status"),
    [
        (EventType.SAGA_STARTED, "started"),
        (EventType.STEP_COMPLETED, "completed"),
        (EventType.COMPENSATION_FAILED, "failed"),
        (EventType.SAGA_ROLLED_BACK, "rolled_back"),
    ],
)
def test_the_status_is_what_happened(search: Search, event_type: EventType, status: str) -> None:
    """The status is the event's type without what it happened to."""
    asyncio.run(search.write(make_event(event_type=event_type, step_name="pay")))
    assert search.hits()[0]["_source"]["status"] == status


def test_a_duplicate_changes_nothing(search: Search) -> None:
    """The document stays as it is, with what an operator has added to it."""
    event = make_event()

    async def main() -> None:
        async with search.listening() as listener:
            await listener.write([event, event])
            assert search.ask("POST", f"/{INDEX}/_update/{event.event_id}", {"doc": {"note": "seen"}})[0] == 200
            before = search.ask("GET", f"/{INDEX}/_doc/{event.event_id}")[1]
            await listener.write([event])
            assert search.ask("GET", f"/{INDEX}/_doc/{event.event_id}")[1] == before
            assert before["_source"]["note"] == "seen"

    asyncio.run(main())


def test_a_write_waits_for_no_refresh(search: Search) -> None:
    """What was written is there, though an index that never refreshes finds it in no search."""
    event = make_event()
    search.ask("PUT", f"/{INDEX}", {"settings": {"refresh_interval": "-1"}})
    asyncio.run(search.write(event))
    assert search.hits(refresh=False) == []
    assert search.ask("GET", f"/{INDEX}/_doc/{event.event_id}")[0] == 200


def test_large_events_and_batches_arrive(search: Search) -> None:
    """Events of 1 MB in their names, keys or attributes, and 500 at once, in several requests."""
    large = [
        make_event(saga_name="ö" * 500_000, saga_id="x" * 40_000),
        make_event(context_keys=tuple("k" * 1_000 + str(n) for n in range(1_000))),
        make_event(attributes={f"key{n}": "v" * 1_000 for n in range(1_000)}),
    ]
    many = [make_event(sequence=n, saga_name="x" * 20_000) for n in range(500)]

    async def main() -> None:
        async with search.listening() as listener:
            await listener.write(large)
            await listener.write(many)
            assert set(search.stored()) == {e.event_id for e in large + many}

    asyncio.run(main())


def test_odd_characters_arrive(search: Search) -> None:
    """Line ends, quotes, surrogates without a partner and nothing that a bulk's lines are made of do harm."""
    random = Random(11)
    alphabet = ['"', "\\", "\n", "\r", "\u2028", "\0", "{", "ö", "😀", "\ud800", "/", "."]
    events = [
        make_event(
            event_id="".join(random.choices(alphabet, k=20)),
            saga_id="".join(random.choices(alphabet, k=20)),
            attributes={"a": "x", "a.b": "".join(random.choices(alphabet, k=20)), "": "empty"},
        )
        for _ in range(50)
    ]

    async def main() -> None:
        async with search.listening() as listener:
            await listener.write(events)
            await listener.write(events)
            wanted = {e.event_id.encode("utf-8", "replace").decode() for e in events}
            assert set(search.stored()) == wanted
            assert len(search.stored()) == 50

    asyncio.run(main())


def test_a_time_after_the_year_9999_is_taken(search: Search) -> None:
    """A timestamp that no calendar of Python's has does not stop a batch."""
    events = [make_event(timestamp=0), make_event(timestamp=253_402_300_800_000), make_event(timestamp=2**63 - 1)]
    asyncio.run(search.write(*events))
    assert {hit["_id"] for hit in search.hits()} == {e.event_id for e in events}


def test_several_writers_store_each_event_once(search: Search) -> None:
    """Two services, and several tasks of each, write the same events at the same time from the very beginning."""
    events = [event for n in range(50) for event in a_run(f"order-{n}")]

    async def main() -> None:
        async with search.listening() as one, search.listening() as two:
            await asyncio.gather(*(each.write(events) for each in (one, two) * 3))
            stored = search.stored()
            assert sorted(stored) == sorted(e.event_id for e in events)

    asyncio.run(main())
    assert len(search.templates()) == 1


def test_a_node_killed_while_it_is_written_to_has_each_event_once(search: Search) -> None:
    """What write did not name is there after the node's restart; what it named arrives when it is tried again."""
    events = [event for n in range(1_000) for event in a_run(f"order-{n}")]
    there = search._replace(port=free_port())
    folder = state_folder("node")

    async def main() -> None:
        async with there.listening(max_request_bytes=10_000) as listener:
            with node(there.product, folder, there.port) as process:
                writing = asyncio.create_task(listener.write(events))
                while len(await asyncio.to_thread(there.hits)) < 200:  # of several requests: one at least was answered
                    assert not writing.done()
                await asyncio.to_thread(kill, process)
                with pytest.raises(PartialError) as caught:
                    await writing
            assert 0 < len(caught.value.retry) < len(events)
            with node(there.product, folder, there.port):
                await settle(listener, caught.value.retry)
                assert sorted(there.stored()) == sorted(e.event_id for e in events)

    asyncio.run(main())


def test_only_asynchronous_clients_are_taken() -> None:
    """A synchronous client would stop the saga's loop, and anything else can't work: it is said at once."""
    for wrong in (elasticsearch.Elasticsearch("http://127.0.0.1:1"), opensearchpy.OpenSearch(), object(), None):
        with pytest.raises(TypeError, match="AsyncElasticsearch or AsyncOpenSearch"):
            ElasticsearchListener(wrong)  # type: ignore[arg-type]


def test_a_subclass_of_a_client_is_taken() -> None:
    """A client may be one's own class, and one with options of its own is none the less a client."""

    class Traced(elasticsearch.AsyncElasticsearch):
        pass

    ElasticsearchListener(Traced("http://127.0.0.1:1").options(request_timeout=1))


def test_a_size_is_above_nothing() -> None:
    """A request of no bytes can hold no event."""
    with pytest.raises(ValueError, match="max_request_bytes: got 0"):
        ElasticsearchListener(elasticsearch_client(1), max_request_bytes=0)


def whole_event() -> SagaEvent:
    """An event in which no field is left at its default."""
    return make_event(
        event_type=EventType.STEP_FAILED,
        saga_id="order-ö/17",
        sequence=3,
        timestamp=1_780_000_000_007,
        step_name="pay",
        attempt=2,
        compensable=True,
        pivot=False,
        duration_ms=12,
        duration_derived=True,
        total_duration_ms=15,
        error_type="ValueError",
        error_message="the card was refused",
        context_keys=("amount", "address"),
        attributes={"tenant": "a", "customer.tier": "gold"},
        definition_id="d",
        parent_saga_id="p",
        trace_id="t",
        service="shop",
    )
