"""What ElasticsearchListener makes of an index: its template, and an index that takes no or not all documents."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from sagascope.errors import PartialError, PermanentError, TransientError
from sagascope.listeners.elasticsearch import _DRIVERS, TEMPLATE_VERSION, ElasticsearchListener, _digest, index_template
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run, settle
from tests.sagascope.listeners.search import INDEX, Search, elasticsearch_client, opensearch_at, search
from tests.servers.elasticsearch import INDEXING_BYTES, LARGEST_REQUEST_BYTES

__all__ = ["search"]

LARGE_BODIES = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
"""aiohttp's, of requests longer than those that the listener makes by default."""


def test_a_newer_template_is_left(search: Search) -> None:
    """A service of an older version opens after one of a newer, and takes nothing back."""
    theirs = {"index_patterns": [INDEX], "version": TEMPLATE_VERSION + 1, "_meta": {"digest": "any"}}
    search.ask("PUT", f"/_index_template/{INDEX}", theirs)
    asyncio.run(search.write(make_event()))
    assert search.templates()[INDEX]["version"] == TEMPLATE_VERSION + 1


def test_an_older_template_is_replaced(search: Search) -> None:
    """One that an older version has put, and nobody has edited."""
    theirs: dict[str, Any] = {"index_patterns": [INDEX], "priority": 1, "composed_of": []}
    theirs |= {"version": TEMPLATE_VERSION - 1, "_meta": {"digest": _digest(theirs)}}
    search.ask("PUT", f"/_index_template/{INDEX}", theirs)
    asyncio.run(search.write(make_event()))
    found = search.templates()[INDEX]
    assert found["version"] == TEMPLATE_VERSION
    assert found["_meta"]["digest"] == _digest(found)


def test_an_edited_template_is_left(search: Search, caplog: pytest.LogCaptureFixture) -> None:
    """What an operator has edited since is not replaced by a newer version's, and a line says so once an open."""
    asyncio.run(search.write(make_event()))
    edited = search.templates()[INDEX]
    edited["template"]["settings"] = {"index": {"number_of_replicas": "0"}}
    edited["version"] = TEMPLATE_VERSION - 1
    search.ask("PUT", f"/_index_template/{INDEX}", edited)
    with caplog.at_level(logging.WARNING, "sagascope"):
        asyncio.run(search.write(make_event(), make_event()))
    assert search.templates()[INDEX] == edited
    assert len([r for r in caplog.records if r.name.startswith("sagascope")]) == 1


def test_no_template_where_none_is_wanted(search: Search) -> None:
    """With put_template=False the mapping is the user's."""
    asyncio.run(search.write(make_event(), put_template=False))
    assert search.templates() == {}


def test_the_more_specific_template_wins(search: Search) -> None:
    """Two listeners whose one index is named like the other and more, each have their own template."""

    async def main() -> None:
        client = search.client(search.port)
        async with client:
            for index in (INDEX, f"{INDEX}-eu"):
                await ElasticsearchListener(client, index).write([make_event()])

    asyncio.run(main())
    assert set(search.templates()) == {INDEX, f"{INDEX}-eu"}


def test_an_alias_is_written_through(search: Search) -> None:
    """An index that rolls over gets the mapping, too, as its name begins with the alias'."""

    async def main() -> None:
        async with search.listening() as listener:
            await listener.open()
            aliases = {"aliases": {INDEX: {"is_write_index": True}}}
            search.ask("PUT", f"/{INDEX}-000001", aliases)
            await listener.write(events := a_run("order-1"))
            assert set(search.stored()) == {e.event_id for e in events}

    asyncio.run(main())
    mapping = search.ask("GET", f"/{INDEX}-000001/_mapping")[1][f"{INDEX}-000001"]["mappings"]
    assert mapping["properties"]["attributes"]["type"] == search.flattened


def test_a_name_that_no_index_can_have_is_permanent(search: Search) -> None:
    """It is said when the listener opens, with the server's own words."""

    async def main() -> None:
        async with search.client(search.port) as client:
            with pytest.raises(PermanentError, match=r"lower.?case"):
                await ElasticsearchListener(client, "Sagas").open()

    asyncio.run(main())


def test_a_template_that_stands_in_the_way_is_named(search: Search) -> None:
    """Another one for the same index, of the same priority, is refused by the server; without ours, events arrive."""
    theirs = {"index_patterns": ["s*"], "priority": len(INDEX)}
    assert search.ask("PUT", "/_index_template/theirs", theirs)[0] == 200

    async def main() -> None:
        async with search.listening() as listener:
            with pytest.raises(PermanentError, match=r"put_template=False.*theirs"):
                await listener.write([make_event()])
        async with search.listening(put_template=False) as listener:
            await listener.write([make_event()])
            assert len(search.stored()) == 1

    asyncio.run(main())


def test_the_template_has_no_version_of_two_contents() -> None:
    """Whoever changes what the template says has to raise TEMPLATE_VERSION, and put the new digests here."""
    digests = {name: _digest(index_template("saga-events", driver.flattened))[:12] for name, driver in _DRIVERS.items()}
    assert (TEMPLATE_VERSION, digests) == (1, {"AsyncElasticsearch": "addfa4f045bd", "AsyncOpenSearch": "f4f16439606f"})


def test_what_can_not_be_mapped_is_rejected_alone(search: Search) -> None:
    """A document that the index's own mapping refuses is named, with why; the others of its batch are stored."""
    search.ask("PUT", f"/{INDEX}", {"mappings": {"properties": {"saga_name": {"type": "integer"}}}})
    good = [make_event(saga_name=str(n)) for n in range(4)]
    bad = make_event(saga_name="order")

    async def main() -> None:
        async with search.listening() as listener:
            with pytest.raises(PartialError) as caught:
                await listener.write([*good[:2], bad, *good[2:]])
            assert not caught.value.retry
            ((event, reason),) = caught.value.rejected
            assert event is bad
            assert "saga_name" in reason
            assert set(search.stored()) == {e.event_id for e in good}
            with pytest.raises(PartialError) as again:
                await listener.write([bad])
            assert [event for event, _ in again.value.rejected] == [bad]

    asyncio.run(main())


def test_an_id_that_is_too_long_is_rejected_alone(search: Search) -> None:
    """An id that no document can have would have the whole bulk refused: it is not sent."""
    events = [make_event(event_id="i" * 512), make_event(event_id="i" * 513), make_event(event_id="ö" * 257)]

    async def main() -> None:
        async with search.listening() as listener:
            with pytest.raises(PartialError) as caught:
                await listener.write(events)
            assert [event for event, _ in caught.value.rejected] == events[1:]
            assert search.stored() == [events[0].event_id]
            with pytest.raises(PartialError):
                await listener.write(events[1:])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("hurt", "mend", "status"),
    [
        ("index.blocks.read_only_allow_delete", None, "429"),  # what a node does that runs out of disk
        ("index.blocks.write", None, "403"),
        ("_close", "_open", "index_closed_exception"),
    ],
)
def test_an_index_that_takes_nothing_now_is_transient(search: Search, hurt: str, mend: str | None, status: str) -> None:
    """No event is at fault where the index is full, blocked or closed: all wait, and are stored once it is mended."""
    before, events = make_event(), a_run("order-1")

    async def main() -> None:
        async with search.listening() as listener:
            await listener.write([before])
            change(search, hurt, "true")
            try:
                with pytest.raises(TransientError, match=status):
                    await listener.write(events)
            finally:
                change(search, mend or hurt, "null")
            await listener.write(events)
            assert set(search.stored()) == {e.event_id for e in [before, *events]}

    asyncio.run(main())


@LARGE_BODIES
def test_too_much_at_once_is_transient_and_keeps_what_was_taken(search: Search) -> None:
    """A server that indexes all it can answers 429; what it took before is not sent again, the rest in order is."""
    big = make_event(saga_name="x" * (INDEXING_BYTES + 1_000_000))
    before, after = a_run("before"), a_run("after")

    async def main() -> None:
        async with search.listening() as listener:
            with pytest.raises(TransientError, match=r"429 \w*rejected_execution_exception"):
                await listener.write([big])
            with pytest.raises(PartialError) as caught:
                await listener.write([*before, big, *after])
            assert list(caught.value.retry) == [big, *after]
            assert not caught.value.rejected
            assert set(search.stored()) == {e.event_id for e in before}

    asyncio.run(main())


@LARGE_BODIES
def test_a_request_that_is_too_large_is_made_smaller(search: Search) -> None:
    """Where the server takes less than `max_request_bytes`, a batch arrives nonetheless."""
    events = [make_event(saga_name="x" * 1_000_000) for _ in range(LARGEST_REQUEST_BYTES // 1_000_000 + 2)]

    async def main() -> None:
        async with search.listening(max_request_bytes=10 * LARGEST_REQUEST_BYTES) as listener:
            await settle(listener, events)
            assert set(search.stored()) == {e.event_id for e in events}

    asyncio.run(main())


@LARGE_BODIES
def test_an_event_that_is_too_large_is_rejected_alone(search: Search) -> None:
    """An event that no request can hold is a dead letter, and takes no other with it."""
    big = make_event(saga_name="x" * (LARGEST_REQUEST_BYTES + 1))
    events = a_run("order-1")

    async def main() -> None:
        async with search.listening() as listener:
            with pytest.raises(PartialError) as caught:
                await listener.write([*events[:2], big, *events[2:]])
            ((event, reason),) = caught.value.rejected
            assert event is big
            assert "413" in reason
            assert not caught.value.retry
            assert set(search.stored()) == {e.event_id for e in events}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("action.auto_create_index", "false", "404 index_not_found_exception"),
        ("cluster.max_shards_per_node", "1", "400 validation_exception"),
    ],
)
def test_an_index_that_can_not_be_made_now_is_transient(search: Search, setting: str, value: str, reason: str) -> None:
    """Nor is an event at fault where the cluster makes no index, or has no room for its shards."""
    events = a_run("order-1")

    async def main() -> None:
        async with search.listening() as listener:
            assert search.ask("PUT", "/_cluster/settings", {"persistent": {setting: value}})[0] == 200
            try:
                with pytest.raises(TransientError, match=reason):
                    await listener.write(events)
            finally:
                search.ask("PUT", "/_cluster/settings", {"persistent": {setting: None}})
            await listener.write(events)
            assert set(search.stored()) == {e.event_id for e in events}

    asyncio.run(main())


def test_a_data_stream_is_written_to(opensearch_port: int) -> None:
    """A data stream takes documents that are created, which is what is asked of it, and each once."""
    search = opensearch_at(opensearch_port).emptied()
    theirs = {"index_patterns": [INDEX], "data_stream": {}, "priority": 300}
    assert search.ask("PUT", "/_index_template/theirs", theirs)[0] == 200
    assert search.ask("PUT", f"/_data_stream/{INDEX}")[0] == 200
    events = a_run("order-1")

    async def main() -> None:
        async with search.listening() as listener:
            await listener.write(events)
            await listener.write(events)
            assert sorted(search.stored()) == sorted(e.event_id for e in events)

    asyncio.run(main())


def test_an_attribute_beyond_a_term_is_rejected_alone(opensearch_port: int) -> None:
    """flat_object can't leave a value out that is too long for the index, so the event is rejected, by name."""
    search = opensearch_at(opensearch_port).emptied()
    good, bad = make_event(attributes={"note": "x" * 30_000}), make_event(attributes={"note": "x" * 33_000})

    async def main() -> None:
        async with search.listening() as listener:
            with pytest.raises(PartialError) as caught:
                await listener.write([bad, good])
            assert [event for event, _ in caught.value.rejected] == [bad]
            assert search.stored() == [good.event_id]

    asyncio.run(main())


def test_the_other_products_client_is_permanent(opensearch_port: int) -> None:
    """elasticsearch-py supports no OpenSearch: that is said when it opens."""
    opensearch_at(opensearch_port).emptied()

    async def main() -> None:
        async with elasticsearch_client(opensearch_port) as client:
            with pytest.raises(PermanentError):
                await ElasticsearchListener(client, INDEX).open()
            with pytest.raises(PartialError, match="406"):
                await ElasticsearchListener(client, INDEX, put_template=False).write([make_event()])

    asyncio.run(main())


def change(search: Search, what: str, value: str) -> None:
    """Set a setting of the index, or call one of its endpoints."""
    if what.startswith("_"):
        assert search.ask("POST", f"/{INDEX}/{what}?wait_for_active_shards=1")[0] == 200
    else:
        assert search.ask("PUT", f"/{INDEX}/_settings", {what: json.loads(value)})[0] == 200
