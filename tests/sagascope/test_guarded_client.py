"""What a URL that somebody else configured can't do: seen through WebhookListener, on real connections."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import httpcore
import httpx
import psutil
import pytest

from sagascope import PermanentError, TransientError, WebhookListener
from sagascope.guarded_client import PERMANENT, TRANSIENT
from tests.sagascope.conftest import until
from tests.sagascope.listeners.contract import exceptions_of
from tests.sagascope.listeners.webhooks import ends, to, written
from tests.servers.server import require_debian
from tests.servers.webhook_receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


NO_CONTENT = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def saying(answer: bytes, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that says the same to everybody, and then hangs up: its port, and what it has heard."""
    heard: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, host, port)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What names resolve to, for the test to fill: for each look-up its addresses, the last ones for ever."""
    resolved: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if host not in resolved:
            return real(host, port, *arguments, **options)
        answers = resolved[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [found for address in addresses for found in real(address, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return resolved


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0", "localhost", "LocalHost",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]",
    ],
)  # fmt: skip
def test_the_own_machine_is_refused_however_it_is_spelt(receiver: Receiver, host: str) -> None:
    """No spelling of an address that leads to this machine gets a connection."""
    with pytest.raises(PermanentError, match=r"\((loopback|this network|unspecified)\)"):
        written(WebhookListener(f"http://{host}:{receiver.port}/hook"), ends(1))
    assert receiver.received == []


def test_a_refusal_names_address_and_option() -> None:
    """What is refused will always be: the message says which address, why, and what would allow it."""
    with pytest.raises(PermanentError, match=r"169\.254\.169\.254 \(link-local, .*unless `allow_networks` names"):
        written(WebhookListener("http://169.254.169.254/latest/meta-data"), ends(1))


@pytest.mark.parametrize(
    "host", ["0177.0.0.1", "256.1.1.1", "[::1", "[zz]", "a..b", "a" * 64 + ".example", "xn--", "☃" * 70]
)
def test_what_is_no_host_is_no_server_to_wait_for(host: str) -> None:
    """A host that can't be one is refused for good, by the constructor or by the first write."""
    with pytest.raises((ValueError, PermanentError), match=r"the URL is not valid|webhook_url: got one with no URL"):
        written(WebhookListener(f"http://{host}/"), ends(1))


def test_the_address_that_was_judged_is_the_one_connected_to(names: dict[str, list[list[str]]]) -> None:
    """A name that answers with an allowed address first and a forbidden one next (DNS rebinding) gains nothing."""
    names["rebinding.test"] = [["127.0.0.2"], ["127.0.0.1"]]

    async def main() -> None:
        async with saying(NO_CONTENT, host="127.0.0.2") as (port, allowed):  # noqa: SIM117 - the port comes first
            async with saying(NO_CONTENT, host="127.0.0.1", port=port) as (_, forbidden):
                url = f"http://rebinding.test:{port}/"
                async with WebhookListener(url, allow_networks=["127.0.0.2/32"], timeout=5) as listener:
                    await listener.write(ends(1))
                    assert (len(allowed), len(forbidden)) == (1, 0)
                    with pytest.raises(PermanentError, match=r"rebinding\.test is 127\.0\.0\.1 \(loopback\)"):
                        await listener.write(ends(1))
                assert (len(allowed), len(forbidden)) == (1, 0)
                assert f"Host: rebinding.test:{port}".encode() in allowed[0]

    asyncio.run(main())


def test_of_several_addresses_one_that_passes_and_answers_is_used(names: dict[str, list[list[str]]]) -> None:
    """Forbidden addresses are left out, dead ones passed over."""
    names["several.test"] = [["10.0.0.1", "127.0.0.3", "127.0.0.2"]]

    async def main() -> None:
        async with saying(NO_CONTENT, host="127.0.0.2") as (port, heard):
            async with to(f"http://several.test:{port}/") as listener:
                await listener.write(ends(1))
            assert len(heard) == 1

    asyncio.run(main())


def test_a_name_that_is_unknown_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that is down says the same as one that does not know the name."""

    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TransientError, match="gaierror: Name or service not known"):
        written(WebhookListener("http://nowhere.test/"), ends(1))


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
def test_a_proxy_of_the_environment_is_not_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A proxy would connect where no guard looks, and see the secrets: none is used unasked."""
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    written(to(receiver.port), ends(1))
    assert len(receiver.received) == 1


class Authority(NamedTuple):
    """A certificate authority, and an endpoint's certificate that it signed."""

    trusting: ssl.SSLContext
    certificate: Path
    key: Path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority of its own, which signed a certificate for hooks.test."""
    openssl = require_debian("openssl", "openssl")
    folder = tmp_path_factory.mktemp("tls")
    request = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    ca = [*request, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"]
    leaf = [
        *request,
        "-subj",
        "/CN=hooks",
        "-addext",
        "subjectAltName=DNS:hooks.test",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
    ]
    for command in (
        ca,
        [*leaf, "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "leaf.key", "-out", "leaf.pem"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return Authority(ssl.create_default_context(cafile=folder / "ca.pem"), folder / "leaf.pem", folder / "leaf.key")


@pytest.fixture(scope="session")
def tls_process(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Receiver]:
    """An endpoint that speaks TLS."""
    asking = ssl.create_default_context()
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    certificate = (authority.certificate, authority.key)
    with receiving(tmp_path_factory.mktemp("webhook-tls"), certificate=certificate, tls=asking) as endpoint:
        yield endpoint


@pytest.fixture
def tls_receiver(tls_process: Receiver, names: dict[str, list[list[str]]]) -> Receiver:
    """The same with nothing received yet, by the names hooks.test and other.test."""
    names["hooks.test"] = names["other.test"] = [["127.0.0.1"]]
    tls_process.plan()
    return tls_process


def test_tls_is_verified_by_the_name_of_the_url(tls_receiver: Receiver, authority: Authority) -> None:
    """The connection goes to an address, yet the certificate and the Host header are those of the name."""
    url = f"https://hooks.test:{tls_receiver.port}/hook"
    written(to(url, ssl_context=authority.trusting), ends(1))
    (received,) = tls_receiver.received
    assert received.headers["host"] == f"hooks.test:{tls_receiver.port}"


@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [
        ("hooks.test", False, "unable to get local issuer certificate"),
        ("other.test", True, "Hostname mismatch"),
        ("127.0.0.1", True, "IP address mismatch"),
    ],
)
def test_a_certificate_that_does_not_hold_is_no_connection(
    tls_receiver: Receiver,
    authority: Authority,
    host: str,
    trusted: bool,  # noqa: FBT001 - of a table
    reason: str,
) -> None:
    """An authority that nobody trusts, or another name: nothing is sent, and it is said why."""
    context = authority.trusting if trusted else None
    with pytest.raises(TransientError, match=reason):
        written(to(f"https://{host}:{tls_receiver.port}/hook", ssl_context=context), ends(1))
    assert tls_receiver.received == []


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example ESMTP hunter2\r\n",
        b"HTTP/1.1 200 hunter2\r\nContent-Length: hunter2\r\n\r\n",
        b"HTTP/1.1 hunter2 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nhunter2",
        b"HTTP/1.1 200 OK\r\n" + b"X: hunter2\r\n" * 20_000 + b"\r\n",
        b"",
    ],
)
def test_what_is_no_http_is_transient_and_not_repeated(answer: bytes) -> None:
    """An answer that is none is a failure that may pass; what was received is in no message, and in no traceback."""

    async def main() -> None:
        async with saying(answer) as (port, _):
            with pytest.raises(TransientError) as told:
                async with to(f"http://127.0.0.1:{port}/") as listener:
                    await listener.write(ends(1))
        error: BaseException | None = told.value
        while error is not None:
            assert "hunter2" not in repr(error)
            error = error.__cause__ or error.__context__

    asyncio.run(main())


def test_a_status_is_success_whatever_breaks_after_it() -> None:
    """Once 2xx was said the event is taken: a body that breaks off, or is no valid one, changes nothing."""

    async def main() -> None:
        for rest in (b"Content-Length: 1000\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\nzz"):
            async with saying(b"HTTP/1.1 200 OK\r\n" + rest) as (port, heard):
                async with to(f"http://127.0.0.1:{port}/") as listener:
                    await listener.write(ends(1))
                assert len(heard) == 1

    asyncio.run(main())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(receiver: Receiver, status: int) -> None:
    """Where an endpoint points to is not where the event, and its secret, may go."""
    receiver.plan({"status": status, "headers": {"Location": f"http://127.0.0.1:{receiver.port}/elsewhere"}})
    with pytest.raises((TransientError, PermanentError)):
        written(to(receiver.port), ends(1))
    assert [received.path for received in receiver.received] == ["/hook"]


def test_a_dripping_body_is_not_waited_for(receiver: Receiver) -> None:
    """The status is the answer: a body that takes a minute holds up neither a success nor a failure."""
    dripping = {"bytes": 60, "drip_seconds": 1}
    receiver.plan({"status": 200} | dripping, {"status": 404} | dripping)

    async def main() -> None:
        async with asyncio.timeout(20), to(receiver.port, timeout=60) as listener:
            await listener.write(ends(1))
            with pytest.raises(PermanentError, match="404 Not Found"):
                await listener.write(ends(1))
            await listener.write(ends(1))

    asyncio.run(main())


def test_an_endless_body_is_not_read() -> None:
    """Of a body only its beginning is read, then the connection is closed: at most what buffers hold was sent."""
    sent = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(OSError):
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
                sent += 65_536

    async def main() -> None:
        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            async with to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/") as listener:
                await listener.write(ends(1))
            assert sent < 16 * 1024 * 1024

    asyncio.run(main())


def test_cookies_are_not_kept(receiver: Receiver) -> None:
    """What an endpoint wants to be remembered is not."""
    receiver.plan({"status": 204, "headers": {"Set-Cookie": "a=b"}})
    written(to(receiver.port), ends(2, saga_id="order-1"))
    assert not any("cookie" in received.headers for received in receiver.received)


def test_one_connection_serves_many_events(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """The client lives as long as the listener: connections are kept."""
    caplog.set_level(logging.DEBUG, logger="httpcore.connection")
    written(to(receiver.port, concurrency=1), ends(50))
    assert sum(record.message.startswith("connect_tcp.started") for record in caplog.records) == 1


def test_cancelled_requests_leave_no_connection_behind(receiver: Receiver) -> None:
    """Requests cancelled at any moment, as time limits do, cost their own connection and no more."""
    moments = random.Random(7)

    async def main() -> None:
        async with to(receiver.port, concurrency=2) as listener:
            for _ in range(300):
                with suppress(TimeoutError):
                    async with asyncio.timeout(moments.uniform(0, 0.01)):
                        await listener.write(ends(3))
            await until(lambda: connections() <= 2)
            await listener.write(ends(3))
        await until(lambda: connections() == 0)

    def connections() -> int:
        return sum(
            bool(each.raddr) and each.raddr.port == receiver.port and each.status == psutil.CONN_ESTABLISHED
            for each in psutil.Process().net_connections("tcp")
        )

    asyncio.run(main())


def test_every_error_of_the_driver_has_a_meaning() -> None:
    """Each exception class of httpx and httpcore is transient or permanent, by a rule that names it or its base."""
    permanent = {httpx.InvalidURL, httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol}
    transient = {
        httpx.CloseError, httpx.ConnectError, httpx.ConnectTimeout, httpx.CookieConflict, httpx.DecodingError,
        httpx.HTTPError, httpx.HTTPStatusError, httpx.LocalProtocolError, httpx.NetworkError, httpx.PoolTimeout,
        httpx.ProtocolError, httpx.ProxyError, httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError,
        httpx.RequestError, httpx.RequestNotRead, httpx.ResponseNotRead, httpx.StreamClosed, httpx.StreamConsumed,
        httpx.StreamError, httpx.TimeoutException, httpx.TooManyRedirects, httpx.TransportError, httpx.WriteError,
        httpx.WriteTimeout, httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ConnectionNotAvailable,
        httpcore.LocalProtocolError, httpcore.NetworkError, httpcore.PoolTimeout, httpcore.ProtocolError,
        httpcore.ProxyError, httpcore.ReadError, httpcore.ReadTimeout, httpcore.RemoteProtocolError,
        httpcore.TimeoutException, httpcore.WriteError, httpcore.WriteTimeout,
    }  # fmt: skip
    assert exceptions_of(httpx, httpcore) == permanent | transient
    assert all(issubclass(kind, PERMANENT) for kind in permanent)
    assert all(issubclass(kind, TRANSIENT) and not issubclass(kind, PERMANENT) for kind in transient)
