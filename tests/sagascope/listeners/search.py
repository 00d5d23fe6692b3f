"""The two products that ElasticsearchListener writes to: a real node of each, and its driver."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import elasticsearch
import opensearchpy
import pytest

from sagascope.listeners.elasticsearch import ElasticsearchListener
from tests.servers.elasticsearch import ELASTICSEARCH, OPENSEARCH, Product, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from sagascope.events import SagaEvent

INDEX = "sagas"


def elasticsearch_client(port: int) -> Any:
    """elasticsearch-py's client, as its users make it."""
    return elasticsearch.AsyncElasticsearch(f"http://127.0.0.1:{port}")


def opensearch_client(port: int) -> Any:
    """opensearch-py's client, as its users make it."""
    return opensearchpy.AsyncOpenSearch(f"http://127.0.0.1:{port}")


class Search(NamedTuple):
    """A node of one product."""

    product: Product
    client: Callable[[int], Any]
    flattened: str
    """What it calls the type of attributes."""
    port: int

    def listening(self, **options: Any) -> AbstractAsyncContextManager[ElasticsearchListener]:
        """A listener that writes to `INDEX`."""
        return listening(self.client(self.port), **options)

    async def write(self, *events: SagaEvent, **options: Any) -> None:
        """Write the events by a listener made for it."""
        async with self.listening(**options) as listener:
            await listener.write(events)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """A request past the drivers."""
        return ask(self.port, method, path, body)

    def hits(self, query: object = None, *, refresh: bool = True) -> list[dict[str, Any]]:
        """The documents that a search finds; none of an index that is missing or not ready."""
        if refresh:
            self.ask("POST", f"/{INDEX}/_refresh")
        search = {"size": 10_000, "query": query or {"match_all": {}}}
        status, found = self.ask("POST", f"/{INDEX}/_search?ignore_unavailable=true", search)
        assert status in (200, 503), found
        documents: list[dict[str, Any]] = found["hits"]["hits"] if status == 200 else []
        return documents

    def stored(self) -> list[str]:
        """The ids of the documents."""
        return [hit["_id"] for hit in self.hits()]

    def templates(self) -> dict[str, Any]:
        """The index templates, by name."""
        found = self.ask("GET", "/_index_template")[1]["index_templates"]
        return {each["name"]: each["index_template"] for each in found}

    def emptied(self) -> Search:
        """Itself, without anything that a test has left."""
        for data_stream in self.ask("GET", "/_data_stream")[1].get("data_streams", ()):
            self.ask("DELETE", f"/_data_stream/{data_stream['name']}")
        for index in self.ask("GET", "/_all")[1]:
            assert self.ask("DELETE", f"/{quote(index)}")[0] == 200
        for template in self.templates():
            assert self.ask("DELETE", f"/_index_template/{template}")[0] == 200
        return self


def elasticsearch_at(port: int) -> Search:
    """Elasticsearch, by elasticsearch-py."""
    return Search(ELASTICSEARCH, elasticsearch_client, "flattened", port)


def opensearch_at(port: int) -> Search:
    """OpenSearch, by opensearch-py."""
    return Search(OPENSEARCH, opensearch_client, "flat_object", port)


@pytest.fixture(params=["elasticsearch", "opensearch"])
def search(request: pytest.FixtureRequest) -> Search:
    """Each of the two in turn, empty; a test file imports its ports' fixtures, too."""
    port = request.getfixturevalue(f"{request.param}_port")
    return (elasticsearch_at if request.param == "elasticsearch" else opensearch_at)(port).emptied()


@asynccontextmanager
async def listening(client: Any, **options: Any) -> AsyncIterator[ElasticsearchListener]:
    """A listener that writes to `INDEX`, and closes with its client."""
    async with client:
        listener = ElasticsearchListener(client, INDEX, **options)
        try:
            yield listener
        finally:
            await listener.close()
