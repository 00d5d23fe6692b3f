"""Saga events to a URL, as webhooks signed by the Standard Webhooks specification 1.0.0.

Needs the extra `sagascope[webhook]` (httpx).

    async with WebhookListener("https://hooks.example.com/sagas", signing_secrets=["whsec_…"]) as webhook:
        await OrderSaga(listeners=[webhook]).run(context)
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from sagascope.address_guard import AddressGuard
from sagascope.drivers import load
from sagascope.errors import DeliveryError, PartialError, PermanentError, TransientError
from sagascope.events import EventType
from sagascope.listener import EventListener
from sagascope.webhook_message import body_of, headers_of, signing_key

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sagascope.events import SagaEvent
    from sagascope.guarded_client import Answer, GuardedClient

logger = logging.getLogger(__name__)

ENDS = (EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED)
"""How a saga can end."""
_REMEMBERED = 10_000
_GONE = 410
_GONE_FOR_GOOD = "the endpoint answered 410 Gone, and every event is rejected until enable() is called"
_PASSING = frozenset({302, 303, 307, 408, 425, 429})
"""Of the 3xx and 4xx those that by their definition (RFC 9110, 8470, 6585) are about now, not about the request."""
_OF_ENDPOINT = frozenset({429, 502, 503, 504})
"""What would meet every other event, too."""
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_URL = re.compile(r"[^\s\x00-\x20\x7f\\]+")
_OWN_HEADERS = re.compile(r"(?i)webhook-.*|x-webhook-secret|content-.*|host|transfer-encoding|connection")


class WebhookListener(EventListener):
    """Tells a URL of events, one POST request each: how sagas end, or what `event_types` names.

    The body is a JSON object: `event`, `saga_id` and `duration_ms` (of the saga where it ended, else of the step; null
    where nothing lasted), and all fields that the event's own JSON has, so that `sagascope.decode` reads it. It stays
    below 20 KB: where it would not, error_message is shortened, then attributes and context_keys are left out, and
    `cut` lists which.

    The headers are those of Standard Webhooks 1.0.0: `webhook-id` (the event_id), `webhook-timestamp` (of this try),
    `webhook-signature` (`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`, once for each secret). With a `secret`
    also `X-Webhook-Secret`, which is that secret in clear: whoever sees one request can sign others with it, so prefer
    `signing_secrets`, which never leave the service, or `send_secret=False`.

    Only 2xx is success. Redirects are not followed. 3xx and 4xx are permanent failures but for 302, 303, 307, 408, 425
    and 429; 5xx and all that happens to connections may pass. After a 410 nothing more is sent, and every event is
    rejected, until `enable` is called. An address that is not public is never connected to unless `allow_networks` has
    it; which is judged after the name was looked up, for each connection. Proxies named by the environment are not used.

    Guarantee: at least once, and the events of one saga in order; a later one is not sent before an earlier one was
    taken or rejected. A duplicate has the same webhook-id, by which the receiver tells it. While the endpoint is down a
    write fails as transient, and names those that it had taken before; what a cancelled write had delivered is not sent
    again. Nothing is held here: what was not taken is the caller's.
    """

    def __init__(
        self,
        webhook_url: str,
        secret: str | None = None,
        *,
        event_types: Collection[EventType] = ENDS,
        signing_secrets: Sequence[str] = (),
        send_secret: bool = True,
        headers: Mapping[str, str] | None = None,
        allow_networks: Sequence[str] = (),
        timeout: float = 15.0,
        concurrency: int = 4,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Do no I/O yet. Neither the URL's path nor a secret is ever part of a message.

        Args:
            webhook_url: http or https, without user and password: see `headers`.
            secret: Sent as X-Webhook-Secret; also signs where there are no `signing_secrets`.
            event_types: Which events are sent; `EventType` for all.
            signing_secrets: What signs; several while they are exchanged. `whsec_` and base64 of 24 to 64 bytes, or any
                other text, whose UTF-8 bytes are the key.
            send_secret: False: `secret` only signs.
            headers: More headers, an Authorization for instance.
            allow_networks: Networks that may be connected to although they are not public: `["10.20.0.0/16"]`.
            timeout: Seconds for one request, from looking up the name to the answer's status.
            concurrency: How many requests may be under way at once, of different sagas.
            ssl_context: Where another than the public certificate authorities is to be trusted.
            clock: Seconds since the epoch; for tests.

        Raises:
            ValueError: an option out of its range.
        """
        self.endpoint = _endpoint(webhook_url)
        """Scheme, host and port: what messages say."""
        if isinstance(event_types, str):
            msg = f"event_types={event_types!r} is one string: write [{event_types!r}]"
            raise TypeError(msg)
        for option, value, least in (("timeout", timeout, 0.001), ("concurrency", concurrency, 1)):
            if not value >= least:
                msg = f"{option}: got {value!r}; allowed: {least} or more"
                raise ValueError(msg)
        self.event_types = frozenset(map(EventType, event_types))
        self._url = webhook_url
        self._keys = [signing_key(each) for each in signing_secrets or ([] if secret is None else [secret])]
        self._headers = _headers(headers or {}, secret if send_secret else None)
        self._guard = AddressGuard(allow_networks)
        self._timeout = timeout
        self._concurrency = concurrency
        self._ssl_context = ssl_context
        self._clock = clock
        self._client: GuardedClient | None = None
        self._disabled = False
        self._delivered: dict[str, None] = {}
        """Ids that were taken within writes which have not returned yet, or were cancelled: not to be sent again."""

    @property
    def disabled(self) -> bool:
        """Whether the endpoint has answered 410 Gone."""
        return self._disabled

    def enable(self) -> None:
        """Send again, after a 410."""
        self._disabled = False

    async def open(self) -> None:
        """Make the HTTP client; connects to nothing yet.

        Raises:
            ModuleNotFoundError: httpx is not installed.
            PermanentError: the URL has no valid host.
        """
        if self._client is not None:
            return
        client = await asyncio.to_thread(self._made)  # loading httpx and certificates takes 0.1 s, and sagas run on
        if self._client is None:
            self._client = client
        else:  # opened by another saga meanwhile
            await client.aclose()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        batch = _Batch([event for event in events if event.event_type in self.event_types])
        if not batch.events:
            return
        while (client := self._client) is None:
            await self.open()
        sagas = batch.sagas()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(batch.events))):
                    group.create_task(self._send_sagas(client, sagas, batch))
        except ExceptionGroup as unexpected:
            raise unexpected.exceptions[0] from None  # a group's own message says nothing
        for event in batch.events:
            self._delivered.pop(event.event_id, None)  # the caller is told of it now
        if self._disabled:
            batch.reject_the_rest(_GONE_FOR_GOOD)
        batch.tell(self.endpoint, alone=len(events) == 1)

    async def close(self) -> None:
        """Close the connections: requests that other tasks have under way fail as transient. A later write reopens."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _made(self) -> GuardedClient:
        load("httpx", needed_by="WebhookListener", package="httpx", extra="webhook")
        load("httpcore", needed_by="WebhookListener", package="httpcore", extra="webhook")
        from sagascope.guarded_client import GuardedClient  # noqa: PLC0415 - imports the driver

        return GuardedClient(
            self._url,
            self._guard,
            timeout=self._timeout,
            connections=self._concurrency,
            ssl_context=self._ssl_context,
            clock=self._clock,
        )

    async def _send_sagas(self, client: GuardedClient, sagas: Iterator[list[SagaEvent]], batch: _Batch) -> None:
        """Send one saga's events after the other's; several tasks of a write share what is left."""
        for saga in sagas:
            for event in saga:
                if batch.over or self._disabled:
                    return
                verdict = await self._send(client, event)
                batch.note(event, verdict)
                if isinstance(verdict.failure, TransientError):
                    break  # what comes after it in the saga waits for it

    async def _send(self, client: GuardedClient, event: SagaEvent) -> _Verdict:
        if event.event_id in self._delivered:
            return _TAKEN
        try:
            body = body_of(event)
            async with client.post(body, lambda: self._headers_of(event, body)) as answer:
                verdict = self._judge(answer)
                if verdict.failure is None:
                    self._remember(event.event_id)
        except TransientError as error:
            return _Verdict(error, of_endpoint=True)
        except PermanentError as error:
            return _Verdict(error)
        return verdict

    def _headers_of(self, event: SagaEvent, body: bytes) -> dict[str, str]:
        return self._headers | headers_of(event, body, int(self._clock()), self._keys)

    def _judge(self, answer: Answer) -> _Verdict:
        status = answer.status
        if 200 <= status < 300:
            return _TAKEN
        if status == _GONE:
            if not self._disabled:
                self._disabled = True
                logger.error("webhook to %s: %s", self.endpoint, _GONE_FOR_GOOD)
            return _Verdict(PermanentError(_GONE_FOR_GOOD))
        message = f"the endpoint answered {answer.reason}"
        if status in _PASSING or status >= 500:
            return _Verdict(TransientError(message, retry_after=answer.retry_after), of_endpoint=status in _OF_ENDPOINT)
        if 300 <= status < 400:
            message += ": redirects are not followed, set webhook_url to where it moved"
        return _Verdict(PermanentError(message))

    def _remember(self, event_id: str) -> None:
        self._delivered[event_id] = None
        if len(self._delivered) > _REMEMBERED:
            del self._delivered[next(iter(self._delivered))]


class _Verdict(NamedTuple):
    """What became of one event."""

    failure: DeliveryError | None
    of_endpoint: bool = False
    """Whether the next request would fail in the same way, so that it is not worth making."""


_TAKEN = _Verdict(None)


class _Batch:
    """What has become of the events of one write so far; what nothing is known of is to be tried again."""

    def __init__(self, events: Sequence[SagaEvent]) -> None:
        self.events = events
        self.over = False
        """Whether the endpoint is in no state to take more of them."""
        self._taken: set[str] = set()
        self._rejected: dict[str, str] = {}
        self._failure: TransientError | None = None
        self._retry_after: float | None = None

    def sagas(self) -> Iterator[list[SagaEvent]]:
        """The events of each saga, in order."""
        sagas: dict[str, list[SagaEvent]] = {}
        for event in self.events:
            sagas.setdefault(event.saga_id, []).append(event)
        return iter(list(sagas.values()))

    def note(self, event: SagaEvent, verdict: _Verdict) -> None:
        """Keep what became of the event."""
        match verdict.failure:
            case None:
                self._taken.add(event.event_id)
            case TransientError() as failure:
                self._failure = self._failure or failure
                if failure.retry_after is not None:
                    self._retry_after = max(failure.retry_after, self._retry_after or 0.0)
            case failure:
                self._rejected[event.event_id] = str(failure)
        self.over = self.over or verdict.of_endpoint

    def reject_the_rest(self, reason: str) -> None:
        """Nothing more can be delivered."""
        for event in self.events:
            if event.event_id not in self._taken:
                self._rejected.setdefault(event.event_id, reason)

    def tell(self, endpoint: str, *, alone: bool) -> None:
        """Return where all was taken, else raise what names the rest.

        Raises:
            PermanentError: the one event of a write was rejected; of several, each has a reason of its own.
            TransientError: nothing was taken.
            PartialError: some were taken or rejected.
        """
        left = [event for event in self.events if event.event_id not in self._taken]
        if not left:
            return
        retry = [event for event in left if event.event_id not in self._rejected]
        rejected = [
            (event, f"webhook to {endpoint}: {self._rejected[event.event_id]}")
            for event in left
            if event.event_id in self._rejected
        ]
        message = f"webhook to {endpoint}: {self._failure or 'not sent'}" if retry else rejected[0][1]
        if alone and rejected:
            raise PermanentError(message)
        if len(retry) == len(self.events):
            raise TransientError(message, retry_after=self._retry_after)
        message += f" ({len(retry)} of {len(self.events)} events were not taken, {len(rejected)} were rejected)"
        raise PartialError(message, retry=retry, rejected=rejected, retry_after=self._retry_after)


def _headers(more: Mapping[str, str], secret: str | None) -> dict[str, str]:
    """The headers of every request. Messages show names only."""
    headers = dict(more)
    for name in headers:
        if not _HEADER_NAME.fullmatch(name) or _OWN_HEADERS.fullmatch(name):
            msg = f"headers: {name!r} can't be set; allowed: any header that the listener does not set itself"
            raise ValueError(msg)
    if secret is not None:
        headers["X-Webhook-Secret"] = secret
    for name, value in headers.items():
        if not _HEADER_VALUE.fullmatch(value):
            msg = f"the value of header {name} is not printable ASCII without spaces around it"
            raise ValueError(msg)
    return headers


def _endpoint(url: str) -> str:
    """Scheme, host and port of a URL that may be requested. Messages show no more of it: the rest is often a secret."""
    wrong = None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        wrong = "no URL"
    else:
        if parts.scheme not in ("http", "https"):
            wrong = "another scheme"
        elif "@" in parts.netloc:
            wrong = "user or password in it (pass headers={'Authorization': …} instead)"
        elif not host or not _URL.fullmatch(url) or parts.fragment:
            wrong = "no host, a fragment, or spaces, control characters or backslashes in it"
        else:
            return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
    msg = f"webhook_url: got one with {wrong}; allowed: http:// or https://, a host, maybe a port, a path and a query"
    raise ValueError(msg)
