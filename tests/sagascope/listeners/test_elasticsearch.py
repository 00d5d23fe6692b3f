"""ElasticsearchListener on real nodes of Elasticsearch and OpenSearch, each with its own driver."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import abstractmethod
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import elasticsearch
import msgspec
import opensearchpy
import pytest

from sagascope.errors import DeliveryError, PartialError, PermanentError, TransientError
from sagascope.events import EventType, SagaEvent, decode
from sagascope.listeners.elasticsearch import (
    _DRIVERS,
    TEMPLATE_VERSION,
    ElasticsearchListener,
    _digest,
    delivery_error,
    index_template,
)
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import NetworkedContract, a_run, exceptions_of
from tests.servers.elasticsearch import (
    ELASTICSEARCH,
    INDEXING_BYTES,
    LARGEST_REQUEST_BYTES,
    OPENSEARCH,
    Product,
    ask,
    elasticsearch_port,
    kill,
    node,
    opensearch_port,
)
from tests.servers.server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

__all__ = ["elasticsearch_port", "opensearch_port"]

INDEX = "sagas"
LARGE_BODIES = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
"""aiohttp's, of requests longer than those that the listener makes by default."""


class SearchContract(NetworkedContract):
    """The laws of the listener, whichever product it talks to."""

    module = "sagascope.listeners.elasticsearch"
    name = "ElasticsearchListener"
    product: ClassVar[Product]
    flattened: ClassVar[str]

    @staticmethod
    @abstractmethod
    def client(port: int) -> Any:
        """The driver's client, as its users make it."""

    def unopened(self, tmp_path: Path) -> ElasticsearchListener:
        return ElasticsearchListener(self.client(free_port()))

    def at(self, port: int, **options: Any) -> AbstractAsyncContextManager[ElasticsearchListener]:
        return listening(self.client(port), **options)

    async def stored(self, port: int) -> list[str]:
        return [hit["_id"] for hit in hits(port)]

    def test_each_field_is_mapped(self, server: int) -> None:
        """Whatever an event has can be searched by: ids and names as keywords, durations as numbers, times as dates."""
        asyncio.run(self.written(server, whole_event()))
        mappings = ask(server, "GET", f"/{INDEX}/_mapping")[1][INDEX]["mappings"]
        properties = mappings["properties"]
        assert set(properties) == {f.name for f in msgspec.structs.fields(SagaEvent)} | {"@timestamp", "status"}
        assert mappings["dynamic"] == "false"
        kinds = {name: mapping["type"] for name, mapping in properties.items()}
        assert {kinds[name] for name in ("event_id", "saga_id", "run_id", "step_name", "event_type", "status")} == {
            "keyword"
        }
        assert (kinds["@timestamp"], kinds["duration_ms"], kinds["attempt"]) == ("date", "long", "integer")
        assert kinds["attributes"] == self.flattened
        assert (kinds["error_message"], properties["error_message"]["fields"]["keyword"]["type"]) == ("text", "keyword")

    def test_a_document_is_the_event(self, server: int) -> None:
        """What is stored reads back as the same event, with the time of the event itself and its status beside it."""
        event = whole_event()
        asyncio.run(self.written(server, event))
        (hit,) = hits(server)
        assert decode(json.dumps(hit["_source"]).encode()) == event
        assert hit["_id"] == event.event_id
        assert hit["_source"]["@timestamp"] == "2026-05-28T20:26:40.007Z"
        assert hit["_source"]["status"] == "failed"

    def test_events_are_found(self, server: int) -> None:
        """By word of the message, by attribute whose name has a dot, by time, and by what the event's JSON leaves out."""
        event = whole_event()
        asyncio.run(self.written(server, event, *a_run("other")))
        for query in (
            {"match": {"error_message": "refused"}},
            {"term": {"attributes.customer.tier": "gold"}},
            {"term": {"context_keys": "address"}},
            {"range": {"@timestamp": {"gt": "2026-05-28T20:26:40.006Z", "lt": "2026-05-28T20:26:40.008Z"}}},
            {"range": {"attempt": {"gt": 1}}},
        ):
            assert [hit["_id"] for hit in hits(server, query)] == [event.event_id], query
        assert len(hits(server, {"term": {"attempt": 1}})) == 4

    @pytest.mark.parametrize(
        ("event_type", "status"),
        [
            (EventType.SAGA_STARTED, "started"),
            (EventType.STEP_COMPLETED, "completed"),
            (EventType.COMPENSATION_FAILED, "failed"),
            (EventType.SAGA_ROLLED_BACK, "rolled_back"),
        ],
    )
    def test_the_status_is_what_happened(self, server: int, event_type: EventType, status: str) -> None:
        """The status is the event's type without what it happened to."""
        asyncio.run(self.written(server, make_event(event_type=event_type, step_name="pay")))
        assert hits(server)[0]["_source"]["status"] == status

    def test_a_duplicate_changes_nothing(self, server: int) -> None:
        """The document stays as it is, with what an operator has added to it."""
        event = make_event()

        async def main() -> None:
            async with self.at(server) as listener:
                await listener.write([event, event])
                assert ask(server, "POST", f"/{INDEX}/_update/{event.event_id}", {"doc": {"note": "seen"}})[0] == 200
                before = ask(server, "GET", f"/{INDEX}/_doc/{event.event_id}")[1]
                await listener.write([event])
                assert ask(server, "GET", f"/{INDEX}/_doc/{event.event_id}")[1] == before
                assert before["_source"]["note"] == "seen"

        asyncio.run(main())

    def test_a_write_waits_for_no_refresh(self, server: int) -> None:
        """What was written is there, though an index that never refreshes finds it in no search."""
        event = make_event()
        ask(server, "PUT", f"/{INDEX}", {"settings": {"refresh_interval": "-1"}})
        asyncio.run(self.written(server, event))
        assert hits(server, refresh=False) == []
        assert ask(server, "GET", f"/{INDEX}/_doc/{event.event_id}")[0] == 200

    def test_what_can_not_be_mapped_is_rejected_alone(self, server: int) -> None:
        """A document that the index's own mapping refuses is named, with why; the others of its batch are stored."""
        ask(server, "PUT", f"/{INDEX}", {"mappings": {"properties": {"saga_name": {"type": "integer"}}}})
        good = [make_event(saga_name=str(n)) for n in range(4)]
        bad = make_event(saga_name="order")

        async def main() -> None:
            async with self.at(server) as listener:
                with pytest.raises(PartialError) as caught:
                    await listener.write([*good[:2], bad, *good[2:]])
                assert not caught.value.retry
                ((event, reason),) = caught.value.rejected
                assert event is bad
                assert "saga_name" in reason
                assert set(await self.stored(server)) == {e.event_id for e in good}
                with pytest.raises(PartialError) as again:
                    await listener.write([bad])
                assert [event for event, _ in again.value.rejected] == [bad]

        asyncio.run(main())

    @pytest.mark.parametrize(
        ("hurt", "mend", "status"),
        [
            ("index.blocks.read_only_allow_delete", None, "429"),  # what a node does that runs out of disk
            ("index.blocks.write", None, "403"),
            ("_close", "_open", "index_closed_exception"),
        ],
    )
    def test_an_index_that_takes_nothing_now_is_transient(
        self, server: int, hurt: str, mend: str | None, status: str
    ) -> None:
        """No event is at fault where the index is full, blocked or closed: all wait, and are stored once it is mended."""
        before, events = make_event(), a_run("order-1")

        async def main() -> None:
            async with self.at(server) as listener:
                await listener.write([before])
                change(server, hurt, "true")
                try:
                    with pytest.raises(TransientError, match=status):
                        await listener.write(events)
                finally:
                    change(server, mend or hurt, "null")
                await listener.write(events)
                assert set(await self.stored(server)) == {e.event_id for e in [before, *events]}

        asyncio.run(main())

    @LARGE_BODIES
    def test_too_much_at_once_is_transient_and_keeps_what_was_taken(self, server: int) -> None:
        """A server that indexes all it can answers 429; what it took before is not sent again, the rest in order is."""
        big = make_event(saga_name="x" * (INDEXING_BYTES + 1_000_000))
        before, after = a_run("before"), a_run("after")

        async def main() -> None:
            async with self.at(server) as listener:
                with pytest.raises(TransientError, match=r"429 \w*rejected_execution_exception"):
                    await listener.write([big])
                with pytest.raises(PartialError) as caught:
                    await listener.write([*before, big, *after])
                assert list(caught.value.retry) == [big, *after]
                assert not caught.value.rejected
                assert set(await self.stored(server)) == {e.event_id for e in before}

        asyncio.run(main())

    @LARGE_BODIES
    def test_a_request_that_is_too_large_is_made_smaller(self, server: int) -> None:
        """Where the server takes less than `max_request_bytes`, a batch arrives nonetheless."""
        events = [make_event(saga_name="x" * 1_000_000) for _ in range(LARGEST_REQUEST_BYTES // 1_000_000 + 2)]

        async def main() -> None:
            async with self.at(server, max_request_bytes=10 * LARGEST_REQUEST_BYTES) as listener:
                await settle(listener, events)
                assert set(await self.stored(server)) == {e.event_id for e in events}

        asyncio.run(main())

    @LARGE_BODIES
    def test_an_event_that_is_too_large_is_rejected_alone(self, server: int) -> None:
        """An event that no request can hold is a dead letter, and takes no other with it."""
        big = make_event(saga_name="x" * (LARGEST_REQUEST_BYTES + 1))
        events = a_run("order-1")

        async def main() -> None:
            async with self.at(server) as listener:
                with pytest.raises(PartialError) as caught:
                    await listener.write([*events[:2], big, *events[2:]])
                ((event, reason),) = caught.value.rejected
                assert event is big
                assert "413" in reason
                assert not caught.value.retry
                assert set(await self.stored(server)) == {e.event_id for e in events}

        asyncio.run(main())

    def test_large_events_and_batches_arrive(self, server: int) -> None:
        """Events of 1 MB in their names, keys or attributes, and 500 at once, in several requests."""
        large = [
            make_event(saga_name="ö" * 500_000, saga_id="x" * 40_000),
            make_event(context_keys=tuple("k" * 1_000 + str(n) for n in range(1_000))),
            make_event(attributes={f"key{n}": "v" * 1_000 for n in range(1_000)}),
        ]
        many = [make_event(sequence=n, saga_name="x" * 20_000) for n in range(500)]

        async def main() -> None:
            async with self.at(server) as listener:
                await listener.write(large)
                await listener.write(many)
                assert set(await self.stored(server)) == {e.event_id for e in large + many}

        asyncio.run(main())

    def test_odd_characters_arrive(self, server: int) -> None:
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
            async with self.at(server) as listener:
                await listener.write(events)
                await listener.write(events)
                wanted = {e.event_id.encode("utf-8", "replace").decode() for e in events}
                assert set(await self.stored(server)) == wanted
                assert len(await self.stored(server)) == 50

        asyncio.run(main())

    def test_an_id_that_is_too_long_is_rejected_alone(self, server: int) -> None:
        """An id that no document can have would have the whole bulk refused: it is not sent."""
        events = [make_event(event_id="i" * 512), make_event(event_id="i" * 513), make_event(event_id="ö" * 257)]

        async def main() -> None:
            async with self.at(server) as listener:
                with pytest.raises(PartialError) as caught:
                    await listener.write(events)
                assert [event for event, _ in caught.value.rejected] == events[1:]
                assert await self.stored(server) == [events[0].event_id]
                with pytest.raises(PartialError):
                    await listener.write(events[1:])

        asyncio.run(main())

    def test_a_time_after_the_year_9999_is_taken(self, server: int) -> None:
        """A timestamp that no calendar of Python's has does not stop a batch."""
        events = [make_event(timestamp=0), make_event(timestamp=253_402_300_800_000), make_event(timestamp=2**63 - 1)]
        asyncio.run(self.written(server, *events))
        assert {hit["_id"] for hit in hits(server)} == {e.event_id for e in events}

    def test_several_writers_store_each_event_once(self, server: int) -> None:
        """Two services, and several tasks of each, write the same events at the same time from the very beginning."""
        events = [event for n in range(50) for event in a_run(f"order-{n}")]

        async def main() -> None:
            async with self.at(server) as one, self.at(server) as two:
                await asyncio.gather(*(each.write(events) for each in (one, two) * 3))
                stored = await self.stored(server)
                assert sorted(stored) == sorted(e.event_id for e in events)

        asyncio.run(main())
        assert len(templates(server)) == 1

    def test_a_newer_template_is_left(self, server: int) -> None:
        """A service of an older version opens after one of a newer, and takes nothing back."""
        theirs = {"index_patterns": [INDEX], "version": TEMPLATE_VERSION + 1, "_meta": {"digest": "any"}}
        ask(server, "PUT", f"/_index_template/{INDEX}", theirs)
        asyncio.run(self.written(server, make_event()))
        assert templates(server)[INDEX]["version"] == TEMPLATE_VERSION + 1

    def test_an_older_template_is_replaced(self, server: int) -> None:
        """One that an older version has put, and nobody has edited."""
        theirs: dict[str, Any] = {"index_patterns": [INDEX], "priority": 1, "composed_of": []}
        theirs |= {"version": TEMPLATE_VERSION - 1, "_meta": {"digest": _digest(theirs)}}
        ask(server, "PUT", f"/_index_template/{INDEX}", theirs)
        asyncio.run(self.written(server, make_event()))
        found = templates(server)[INDEX]
        assert found["version"] == TEMPLATE_VERSION
        assert found["_meta"]["digest"] == _digest(found)

    def test_an_edited_template_is_left(self, server: int, caplog: pytest.LogCaptureFixture) -> None:
        """What an operator has edited since is not replaced by a newer version's, and a line says so once an open."""
        asyncio.run(self.written(server, make_event()))
        edited = templates(server)[INDEX]
        edited["template"]["settings"] = {"index": {"number_of_replicas": "0"}}
        edited["version"] = TEMPLATE_VERSION - 1
        ask(server, "PUT", f"/_index_template/{INDEX}", edited)
        with caplog.at_level(logging.WARNING, "sagascope"):
            asyncio.run(self.written(server, make_event(), make_event()))
        assert templates(server)[INDEX] == edited
        assert len([r for r in caplog.records if r.name.startswith("sagascope")]) == 1

    def test_no_template_where_none_is_wanted(self, server: int) -> None:
        """With put_template=False the mapping is the user's."""
        asyncio.run(self.written(server, make_event(), put_template=False))
        assert templates(server) == {}

    def test_the_more_specific_template_wins(self, server: int) -> None:
        """Two listeners whose one index is named like the other and more, each have their own template."""

        async def main() -> None:
            client = self.client(server)
            async with client:
                for index in (INDEX, f"{INDEX}-eu"):
                    await ElasticsearchListener(client, index).write([make_event()])

        asyncio.run(main())
        assert set(templates(server)) == {INDEX, f"{INDEX}-eu"}

    def test_an_alias_is_written_through(self, server: int) -> None:
        """An index that rolls over gets the mapping, too, as its name begins with the alias'."""

        async def main() -> None:
            async with self.at(server) as listener:
                await listener.open()
                aliases = {"aliases": {INDEX: {"is_write_index": True}}}
                ask(server, "PUT", f"/{INDEX}-000001", aliases)
                await listener.write(events := a_run("order-1"))
                assert set(await self.stored(server)) == {e.event_id for e in events}

        asyncio.run(main())
        mapping = ask(server, "GET", f"/{INDEX}-000001/_mapping")[1][f"{INDEX}-000001"]["mappings"]
        assert mapping["properties"]["attributes"]["type"] == self.flattened

    def test_a_name_that_no_index_can_have_is_permanent(self, server: int) -> None:
        """It is said when the listener opens, with the server's own words."""

        async def main() -> None:
            async with self.client(server) as client:
                with pytest.raises(PermanentError, match=r"lower.?case"):
                    await ElasticsearchListener(client, "Sagas").open()

        asyncio.run(main())

    def test_a_node_killed_while_it_is_written_to_has_each_event_once(self, tmp_path: Path) -> None:
        """What write did not name is there after the node's restart; what it named arrives when it is tried again."""
        events = [event for n in range(1_000) for event in a_run(f"order-{n}")]
        folder, port = tmp_path / "node", free_port()
        folder.mkdir()

        async def main() -> None:
            async with self.at(port, max_request_bytes=10_000) as listener:
                with node(self.product, folder, port) as process:
                    writing = asyncio.create_task(listener.write(events))
                    while not await asyncio.to_thread(has_any, port):
                        assert not writing.done()
                    await asyncio.to_thread(kill, process)
                    with pytest.raises(DeliveryError) as caught:
                        await writing
                assert isinstance(caught.value, PartialError)
                assert 0 < len(caught.value.retry) < len(events)
                with node(self.product, folder, port):
                    await settle(listener, caught.value.retry)
                    assert sorted(await self.stored(port)) == sorted(e.event_id for e in events)

        asyncio.run(main())

    async def written(self, port: int, *events: SagaEvent, **options: Any) -> None:
        """Write them by a listener made for it."""
        async with self.at(port, **options) as listener:
            await listener.write(events)


class TestElasticsearch(SearchContract):
    """Elasticsearch, by elasticsearch-py."""

    drivers = ("elasticsearch",)
    extra = "elasticsearch"
    product = ELASTICSEARCH
    flattened = "flattened"

    @staticmethod
    def client(port: int) -> Any:
        return elasticsearch.AsyncElasticsearch(f"http://127.0.0.1:{port}")

    @pytest.fixture(autouse=True)
    def server(self, elasticsearch_port: int) -> int:
        return emptied(elasticsearch_port)


class TestOpenSearch(SearchContract):
    """OpenSearch, by opensearch-py."""

    drivers = ("opensearchpy",)
    extra = "opensearch"
    product = OPENSEARCH
    flattened = "flat_object"

    @staticmethod
    def client(port: int) -> Any:
        return opensearchpy.AsyncOpenSearch(f"http://127.0.0.1:{port}")

    @pytest.fixture(autouse=True)
    def server(self, opensearch_port: int) -> int:
        return emptied(opensearch_port)

    def test_a_data_stream_is_written_to(self, server: int) -> None:
        """A data stream takes documents that are created, which is what is asked of it, and each once."""
        theirs = {"index_patterns": [INDEX], "data_stream": {}, "priority": 300}
        assert ask(server, "PUT", "/_index_template/theirs", theirs)[0] == 200
        assert ask(server, "PUT", f"/_data_stream/{INDEX}")[0] == 200
        events = a_run("order-1")

        async def main() -> None:
            async with self.at(server) as listener:
                await listener.write(events)
                await listener.write(events)
                assert sorted(await self.stored(server)) == sorted(e.event_id for e in events)

        asyncio.run(main())

    def test_an_attribute_beyond_a_term_is_rejected_alone(self, server: int) -> None:
        """flat_object can't leave a value out that is too long for the index, so the event is rejected, by name."""
        good, bad = make_event(attributes={"note": "x" * 30_000}), make_event(attributes={"note": "x" * 33_000})

        async def main() -> None:
            async with self.at(server) as listener:
                with pytest.raises(PartialError) as caught:
                    await listener.write([bad, good])
                assert [event for event, _ in caught.value.rejected] == [bad]
                assert await self.stored(server) == [good.event_id]

        asyncio.run(main())

    def test_the_other_products_client_is_permanent(self, server: int) -> None:
        """elasticsearch-py supports no OpenSearch: that is said when it opens."""

        async def main() -> None:
            async with TestElasticsearch.client(server) as client:
                with pytest.raises(PermanentError):
                    await ElasticsearchListener(client, INDEX).open()
                with pytest.raises(PartialError, match="406"):
                    await ElasticsearchListener(client, INDEX, put_template=False).write([make_event()])

        asyncio.run(main())


@pytest.mark.parametrize("client", [TestElasticsearch.client, TestOpenSearch.client])
class TestGateway:
    """What a proxy, a cloud or a cluster under load says in place of a node."""

    @pytest.mark.parametrize("status", [401, 403, 404, 407, 408, 425, 429, 500, 502, 503, 504])
    @pytest.mark.parametrize("kind", ["application/json", "text/html"])
    def test_what_may_pass_is_transient(self, client: Any, status: int, kind: str) -> None:
        """Overload, an outage, and what an operator has to mend, are no event's fault, in JSON or as a page."""
        body = b'{"error": {"type": "some_exception", "reason": "because"}}' if "json" in kind else b"<html>"

        async def main() -> None:
            async with gateway(status, body, f"Content-Type: {kind}") as port, listening(client(port)) as listener:
                with pytest.raises(TransientError) as caught:
                    await listener.write(a_run("order-1"))
                if "json" in kind:
                    assert f"{status} some_exception: because" in str(caught.value)

        asyncio.run(main())

    @pytest.mark.parametrize("status", [400, 405, 406, 413, 415])
    def test_what_will_not_pass_is_rejected(self, client: Any, status: int) -> None:
        """A request that is wrong stays wrong: each event is named, none is tried again."""
        events = a_run("order-1")

        async def main() -> None:
            async with gateway(status, b"{}") as port, listening(client(port), put_template=False) as listener:
                with pytest.raises(PartialError) as caught:
                    await listener.write(events)
                assert [event for event, _ in caught.value.rejected] == events
                assert not caught.value.retry

        asyncio.run(main())

    @pytest.mark.parametrize("body", [b'{"items": []}', b"{}", b"[]", b'"hello"', b"<html>", b""])
    def test_an_answer_that_is_none_is_not_taken_for_success(self, client: Any, body: bytes) -> None:
        """200 with anything but an item an event tells nothing of the events."""

        async def main() -> None:
            async with gateway(200, body) as port, listening(client(port), put_template=False) as listener:
                with pytest.raises(TransientError):
                    await listener.write(a_run("order-1"))

        asyncio.run(main())

    def test_no_secret_is_told(self, client: Any) -> None:
        """A password of the client's is in no message, whether nobody answers or the server refuses it."""
        secret = "hunter-2-secret"  # noqa: S105 - made up
        kind = type(client(1))
        login = {"basic_auth" if kind is elasticsearch.AsyncElasticsearch else "http_auth": ("sagas", secret)}

        async def main() -> None:
            async with gateway(401, json.dumps({"error": f"no {secret}"}).encode()) as port:
                for there in (port, free_port()):
                    async with listening(kind(f"http://127.0.0.1:{there}", **login)) as listener:
                        with pytest.raises(TransientError) as caught:
                            await listener.write([make_event()])
                        assert secret not in repr(caught.value)

        asyncio.run(main())


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 3_000, 3_600),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
        ("soon", None, None),
        ("-3", None, None),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole request", "single item"])
def test_retry_after_is_handed_on(value: str, least: float | None, most: float | None, whole: bool) -> None:  # noqa: FBT001
    """Seconds and dates that the server asks to wait are in the error, for a bulk and for an item of it."""
    item = b'{"items": [{"create": {"status": 429, "error": {"type": "t", "reason": "r"}}}]}'

    async def main() -> None:
        answer = (429, b"{}") if whole else (200, item)
        async with (
            gateway(*answer, f"Retry-After: {value}") as port,
            listening(TestElasticsearch.client(port), put_template=False) as listener,
        ):
            with pytest.raises(TransientError) as caught:
                await listener.write([make_event()])
            waits = caught.value.retry_after
            assert waits is None if least is None or most is None else waits is not None and least <= waits <= most

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
        ElasticsearchListener(TestElasticsearch.client(1), max_request_bytes=0)


def test_the_template_has_no_version_of_two_contents() -> None:
    """Whoever changes what the template says has to raise TEMPLATE_VERSION, and put the new digests here."""
    digests = {name: _digest(index_template("saga-events", driver.flattened))[:12] for name, driver in _DRIVERS.items()}
    assert (TEMPLATE_VERSION, digests) == (1, {"AsyncElasticsearch": "addfa4f045bd", "AsyncOpenSearch": "f4f16439606f"})


_HTTP = "by its status"
_NEVER = "raised by no request"
_MEANING = {
    "elasticsearch": {
        "ApiError": _HTTP,
        "AuthenticationException": _HTTP,
        "AuthorizationException": _HTTP,
        "BadRequestError": _HTTP,
        "ConflictError": _HTTP,
        "ConnectionError": TransientError,
        "ConnectionTimeout": TransientError,
        "ElasticsearchWarning": _NEVER,
        "GeneralAvailabilityWarning": _NEVER,
        "NotFoundError": _HTTP,
        "SecurityWarning": _NEVER,
        "SerializationError": TransientError,
        "SniffingError": TransientError,
        "TlsError": TransientError,
        "TransportError": TransientError,
        "TransportWarning": _NEVER,
        "UnsupportedProductError": PermanentError,
    },
    "opensearchpy": {
        "AuthenticationException": _HTTP,
        "AuthorizationException": _HTTP,
        "ConflictError": _HTTP,
        "ConnectionError": TransientError,
        "ConnectionTimeout": TransientError,
        "IllegalOperation": _NEVER,
        "ImproperlyConfigured": PermanentError,
        "NotFoundError": _HTTP,
        "OpenSearchDslException": _NEVER,
        "OpenSearchException": TransientError,
        "OpenSearchWarning": _NEVER,
        "RequestError": _HTTP,
        "SSLError": TransientError,
        "SerializationError": TransientError,
        "TransportError": _HTTP,
        "UnknownDslObject": _NEVER,
        "ValidationException": _NEVER,
    },
}


def test_each_exception_of_the_drivers_has_a_meaning() -> None:
    """No class of either driver is without a rule; one that a driver adds fails here."""
    import elastic_transport

    of_elasticsearch = exceptions_of(elasticsearch, elasticsearch.exceptions, elastic_transport)
    assert {c.__name__ for c in of_elasticsearch} == set(_MEANING["elasticsearch"])
    of_opensearch = exceptions_of(opensearchpy, opensearchpy.exceptions)
    assert {c.__name__ for c in of_opensearch} == set(_MEANING["opensearchpy"])
    listener = ElasticsearchListener(TestElasticsearch.client(1)), ElasticsearchListener(TestOpenSearch.client(1))
    for each, classes in zip(listener, (of_elasticsearch, of_opensearch), strict=True):
        caught = each._imported_errors()
        for kind in classes:
            meaning = _MEANING[each._package][kind.__name__]
            if meaning is _NEVER:
                assert not issubclass(kind, caught)
            elif isinstance(meaning, type):
                assert isinstance(delivery_error(made(kind), "bulk"), meaning), kind
            elif kind is not elastic_transport.ApiError:  # only its subclasses are raised
                assert issubclass(kind, caught)
                for status, meant in ((401, TransientError), (503, TransientError), (400, PermanentError)):
                    assert isinstance(delivery_error(made(kind, status), "bulk"), meant), (kind, status)


def made(kind: Any, status: int = 200) -> Exception:
    """An exception as the drivers make them."""
    import elastic_transport

    error: Exception
    if issubclass(kind, elastic_transport.ApiError):
        meta = elastic_transport.ApiResponseMeta(
            status, "1.1", elastic_transport.HttpHeaders(), 0.1, elastic_transport.NodeConfig("http", "localhost", 1)
        )
        error = kind("some_exception", meta, {})
    elif issubclass(kind, opensearchpy.ConnectionError):
        error = kind("N/A", "gone", OSError())
    elif issubclass(kind, opensearchpy.TransportError):
        error = kind(status, "some_exception", None)
    else:
        error = kind("something")
    return error


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


@asynccontextmanager
async def listening(client: Any, **options: Any) -> AsyncIterator[ElasticsearchListener]:
    """A listener that writes to `INDEX`, and closes with its client."""
    async with client:
        listener = ElasticsearchListener(client, INDEX, **options)
        try:
            yield listener
        finally:
            await listener.close()


@asynccontextmanager
async def gateway(status: int, body: bytes, header: str = "Content-Type: application/json") -> AsyncIterator[int]:
    """The port of a server that answers each request so."""
    headers = (
        f"HTTP/1.1 {status} Said\r\nX-Elastic-Product: Elasticsearch\r\n{header}\r\nContent-Length: {len(body)}\r\n"
    )
    if "Content-Type" not in header:
        headers += "Content-Type: application/json\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                length = request.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                writer.write(headers.encode() + b"\r\n" + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def settle(listener: ElasticsearchListener, events: Sequence[SagaEvent]) -> None:
    """Write until all are taken, as a fan-out does."""
    async with asyncio.timeout(60):
        while events:
            try:
                await listener.write(events)
            except PartialError as error:
                if error.rejected:
                    raise
                events = error.retry
            except TransientError:
                await asyncio.sleep(0.1)
            else:
                return


def emptied(port: int) -> int:
    """The node at this port, with nothing in it that a test has left."""
    for data_stream in ask(port, "GET", "/_data_stream")[1].get("data_streams", ()):
        ask(port, "DELETE", f"/_data_stream/{data_stream['name']}")
    for index in ask(port, "GET", "/_all")[1]:
        assert ask(port, "DELETE", f"/{quote(index)}")[0] == 200
    for template in templates(port):
        assert ask(port, "DELETE", f"/_index_template/{template}")[0] == 200
    return port


def hits(port: int, query: object = None, *, refresh: bool = True) -> list[dict[str, Any]]:
    """The documents that a search finds."""
    if refresh:
        ask(port, "POST", f"/{INDEX}/_refresh")
    search = {"size": 10_000, "query": query or {"match_all": {}}}
    status, found = ask(port, "POST", f"/{INDEX}/_search?ignore_unavailable=true", search)
    assert status == 200, found
    documents: list[dict[str, Any]] = found["hits"]["hits"]
    return documents


def has_any(port: int) -> bool:
    """Whether a document is there, of an index that may not be ready to be asked."""
    ask(port, "POST", f"/{INDEX}/_refresh")
    status, found = ask(port, "POST", f"/{INDEX}/_search?ignore_unavailable=true")
    return status == 200 and bool(found["hits"]["hits"])


def templates(port: int) -> dict[str, Any]:
    """The index templates, by name."""
    found = ask(port, "GET", "/_index_template")[1]["index_templates"]
    return {each["name"]: each["index_template"] for each in found}


def change(port: int, what: str, value: str) -> None:
    """Set a setting of the index, or call one of its endpoints."""
    if what.startswith("_"):
        assert ask(port, "POST", f"/{INDEX}/{what}?wait_for_active_shards=1")[0] == 200
    else:
        assert ask(port, "PUT", f"/{INDEX}/_settings", {what: json.loads(value)})[0] == 200
