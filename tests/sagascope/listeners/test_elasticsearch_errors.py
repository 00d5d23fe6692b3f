"""What ElasticsearchListener makes of errors: those that the drivers raise, and what stands between it and a node."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import elastic_transport
import elasticsearch
import opensearchpy
import pytest

from pipelines.ports import free_port
from sagascope.errors import PartialError, PermanentError, TransientError
from sagascope.listeners.elasticsearch import ElasticsearchListener, delivery_error
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run, exceptions_of
from tests.sagascope.listeners.search import elasticsearch_client, listening, opensearch_client
from tests.servers.elasticsearch import SECURED, WRITER, node
from tests.servers.server import state_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.mark.parametrize("client", [elasticsearch_client, opensearch_client])
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
    @pytest.mark.parametrize("put_template", [False, True])
    def test_an_answer_that_is_none_is_not_taken_for_success(
        self,
        client: Any,
        body: bytes,
        put_template: bool,  # noqa: FBT001 - a parameter of the test
    ) -> None:
        """200 with anything but an item an event tells nothing of the events."""

        async def main() -> None:
            async with gateway(200, body) as port, listening(client(port), put_template=put_template) as listener:
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
        (format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), 1, 86_400),
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
            listening(elasticsearch_client(port), put_template=False) as listener,
        ):
            with pytest.raises(TransientError) as caught:
                await listener.write([make_event()])
            waits = caught.value.retry_after
            assert waits is None if least is None or most is None else waits is not None and least <= waits <= most

    asyncio.run(main())


def test_credentials_that_lack_something_are_transient() -> None:
    """A wrong password, no right to see templates or to make the index: the events wait. A right to create is enough."""
    events = a_run("order-1")

    async def main(port: int) -> None:
        async def write(user: tuple[str, str], index: str, **options: Any) -> None:
            async with elasticsearch.AsyncElasticsearch(f"http://127.0.0.1:{port}", basic_auth=user) as client:
                await ElasticsearchListener(client, index, **options).write(events)

        for user, index, options, reason in (
            ((WRITER[0], "wrong"), "sagas", {}, "401 security_exception"),
            ((WRITER[0], "wrong"), "sagas", {"put_template": False}, "401 security_exception"),
            (WRITER, "sagas", {}, r"put_template=False.* 403 security_exception"),
            (WRITER, "other", {"put_template": False}, "403 security_exception"),
        ):
            with pytest.raises(TransientError, match=reason):
                await write(user, index, **options)
        await write(WRITER, "sagas", put_template=False)
        await write(WRITER, "sagas", put_template=False)

    with node(SECURED, state_folder("elasticsearch"), port := free_port()):
        asyncio.run(main(port))


def test_a_server_that_the_client_does_not_support_is_permanent() -> None:
    """elasticsearch-py looks for a header of Elasticsearch's own in the first answer: no event changes that."""

    async def main() -> None:
        async with gateway(200, b"{}", product="Other") as port:
            async with listening(elasticsearch_client(port)) as listener:
                with pytest.raises(PermanentError, match="UnsupportedProductError"):
                    await listener.open()
            async with listening(elasticsearch_client(port), put_template=False) as listener:
                with pytest.raises(PartialError) as caught:
                    await listener.write(events := a_run("order-1"))
                assert [event for event, _ in caught.value.rejected] == events

    asyncio.run(main())


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
    of_elasticsearch = exceptions_of(elasticsearch, elasticsearch.exceptions, elastic_transport)
    assert {c.__name__ for c in of_elasticsearch} == set(_MEANING["elasticsearch"])
    of_opensearch = exceptions_of(opensearchpy, opensearchpy.exceptions)
    assert {c.__name__ for c in of_opensearch} == set(_MEANING["opensearchpy"])
    listener = ElasticsearchListener(elasticsearch_client(1)), ElasticsearchListener(opensearch_client(1))
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


@asynccontextmanager
async def gateway(
    status: int, body: bytes, header: str = "Content-Type: application/json", product: str = "Elasticsearch"
) -> AsyncIterator[int]:
    """The port of a server that answers each request so."""
    headers = f"HTTP/1.1 {status} Said\r\nX-Elastic-Product: {product}\r\n{header}\r\nContent-Length: {len(body)}\r\n"
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
