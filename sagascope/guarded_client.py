"""POST requests to one URL that somebody else configured: addresses are judged, redirects never followed.

Needs httpx, and loads it: imported where a listener opens, after it has said which extra brings it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, NamedTuple

import httpcore
import httpx

from sagascope.address_guard import AddressGuard, RefusedAddressError
from sagascope.errors import DeliveryError, PermanentError, TransientError
from sagascope.retry_after import seconds_to_wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

_READ_LIMIT = 64 * 1024
"""Bytes of an answer's body that are read, so that its connection can be used again; of a longer one it is closed."""
_READ_SECONDS = 1.0
_KEPT_SECONDS = 5.0
"""How long an idle connection is used again: many servers close theirs a little later."""

PERMANENT = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol)
"""It is the URL that is wrong."""
TRANSIENT = (
    # LocalProtocolError among them: what we send was validated, so that it can only be a connection in a bad state
    httpx.HTTPError,
    httpx.StreamError,
    httpx.CookieConflict,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.ConnectionNotAvailable,
    OSError,  # the look-up of a name
)


class Answer(NamedTuple):
    """What the endpoint said, as far as it matters."""

    status: int
    retry_after: float | None
    """Seconds that it asked to wait, where it did."""

    @property
    def reason(self) -> str:
        """Status and its standard phrase; nothing that the endpoint has written."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)


class GuardedClient:
    """One HTTP client for one URL: kept connections, TLS verified, no proxy of the environment, no cookies.

    Raises:
        PermanentError: the URL has no valid host.
    """

    def __init__(
        self,
        url: str,
        guard: AddressGuard,
        *,
        timeout: float,
        connections: int,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float],
    ) -> None:
        try:
            parsed = httpx.URL(url)
            self._origin = parsed.copy_with(path="/", query=None, fragment=None)
            valid = bool(self._origin.host)  # decodes what stands in Punycode
        except (httpx.InvalidURL, UnicodeError):
            valid = False
        if not valid:
            msg = "the URL is not valid: its host is neither a name nor an address"
            raise PermanentError(msg)
        self._extensions = {"target": parsed.raw_path}
        """Path and query, which often are a secret, apart from the URL, which httpx logs."""
        self._timeout = timeout
        self._clock = clock
        self._slots = asyncio.Semaphore(connections)
        self._client = httpx.AsyncClient(
            transport=_GuardedTransport(guard, ssl_context or httpx.create_ssl_context()),
            headers={"User-Agent": "sagascope", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(None, connect=timeout),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            follow_redirects=False,
            trust_env=False,
        )

    @asynccontextmanager
    async def post(self, body: bytes, headers: Callable[[], Mapping[str, str]]) -> AsyncIterator[Answer]:
        """The answer to one request; what it has of a body is read, up to a limit, when the caller is done with it.

        Args:
            body: Sent as it is.
            headers: Asked for when the request is sent, not while it waits for a connection.

        Raises:
            TransientError: no answer in time, or none at all.
            PermanentError: the address is refused, or the URL is wrong.
        """
        async with self._slots:
            response = await self._answered(body, headers)
            try:
                yield Answer(response.status_code, seconds_to_wait(response.headers.get("retry-after"), self._clock()))
                with suppress(*TRANSIENT):  # the status stands, whatever comes after it
                    async with asyncio.timeout(_READ_SECONDS):
                        await _read(response)
            finally:
                with suppress(*TRANSIENT):
                    await response.aclose()

    async def aclose(self) -> None:
        """Close all connections: requests that are under way fail."""
        await self._client.aclose()

    async def _answered(self, body: bytes, headers: Callable[[], Mapping[str, str]]) -> httpx.Response:
        if self._client.is_closed:
            msg = "closed before the request was sent"
            raise TransientError(msg)
        request = self._client.build_request(
            "POST", self._origin, content=body, headers=dict(headers()), extensions=self._extensions
        )
        failure: DeliveryError
        try:
            async with asyncio.timeout(self._timeout):
                return await self._client.send(request, stream=True)
        except TimeoutError:
            failure = TransientError(f"no answer within {self._timeout:g} s")
        except PERMANENT as error:
            failure = PermanentError(_said(error))
        except TRANSIENT as error:
            failure = TransientError(_said(error))
        raise failure  # outside, so that the driver's text, which may quote what the endpoint sent, is no part of it


class _GuardedTransport(httpx.AsyncBaseTransport):
    """Keeps connections, each of one request at a time, and closes any whose request did not come to its end.

    httpx's own transport takes no network backend, which is where an address is known. And the pool behind it keeps a
    connection for ever whose request was cancelled at the wrong moment (encode/httpcore#1093), which a fan-out's time
    limit does to a slow endpoint all day.
    """

    def __init__(self, guard: AddressGuard, ssl_context: ssl.SSLContext) -> None:
        self._guard = guard
        self._ssl_context = ssl_context
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        connection = await self._kept() or _Connection(sent.url.origin, self._guard, self._ssl_context)
        self._busy.add(connection)
        try:
            answer = await connection.http.handle_async_request(sent)
        except BaseException:
            self._busy.discard(connection)
            await connection.aclose()
            raise
        body = _Body(answer, lambda: self._release(connection))
        return httpx.Response(answer.status, headers=answer.headers, stream=body, extensions=answer.extensions)

    async def aclose(self) -> None:
        connections = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(connection.aclose() for connection in connections))

    async def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.http.is_available() and not connection.http.has_expired():
                return connection
            await connection.aclose()
        return None

    async def _release(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        if connection.http.is_idle() and not connection.closed:
            self._idle.append(connection)
        else:
            await connection.aclose()


class _Connection:
    """One connection, and the stream beneath it, which is closed whatever state a cancelled handshake left it in."""

    def __init__(self, origin: httpcore.Origin, guard: AddressGuard, ssl_context: ssl.SSLContext) -> None:
        self._backend = _GuardedBackend(guard)
        self.closed = False
        self.http = httpcore.AsyncHTTPConnection(
            origin, ssl_context, keepalive_expiry=_KEPT_SECONDS, network_backend=self._backend
        )

    async def aclose(self) -> None:
        self.closed = True
        if self._backend.stream is not None:
            await self._backend.stream.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response, release: Callable[[], Awaitable[None]]) -> None:
        self._answer = answer
        self._release = release

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._answer.aiter_stream():
            yield part

    async def aclose(self) -> None:
        try:
            await self._answer.aclose()
        finally:
            await self._release()


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Looks a host up, judges each address, and connects to one that passed: no second look-up can change it.

    Host header, SNI and the certificate's name stay those of the URL, which this does not see.
    """

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard
        self._network = httpcore.AnyIOBackend()
        self.stream: httpcore.AsyncNetworkStream | None = None
        """What was connected: a backend is one connection's own."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._passed(host, port)
        share = None if timeout is None else timeout / len(addresses)
        for number, address in enumerate(addresses, start=1):
            try:
                self.stream = await self._network.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
            else:
                return self.stream
        raise AssertionError  # there is at least one

    async def _passed(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError:
            msg = "the URL is not valid: a part of its host's name is empty or too long"
            raise PermanentError(msg) from None
        addresses = list(dict.fromkeys(str(where[0]) for *_, where in found))
        objections = {address: self._guard.objection(address) for address in addresses}
        passed = [address for address in addresses if objections[address] is None]
        if not passed:
            listed = ", ".join(f"{address} ({objection})" for address, objection in objections.items())
            msg = f"{host} is {listed}: not connected to, unless `allow_networks` names a network that it is in"
            raise RefusedAddressError(msg)
        return passed


async def _read(response: httpx.Response) -> None:
    read = 0
    async for part in response.aiter_raw():
        read += len(part)
        if read > _READ_LIMIT:
            return


def _said(error: BaseException) -> str:
    """The error's class, and what the system or TLS says; never a driver's text, which may quote what was received."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{type(error).__name__}: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.strerror:
            return f"{type(error).__name__}: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
