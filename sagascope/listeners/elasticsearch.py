"""Saga events to an index of Elasticsearch or OpenSearch, one document an event, for search and dashboards.

Needs the extra `sagascope[elasticsearch]` or `sagascope[opensearch]`, whichever client it is given.

    client = AsyncElasticsearch("http://localhost:9200")
    async with ElasticsearchListener(client) as search:
        await OrderSaga(listeners=[search]).run(context)
    await client.close()
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from sagascope.cloudevents import rfc3339
from sagascope.drivers import load
from sagascope.errors import DeliveryError, PartialError, PermanentError, TransientError
from sagascope.events import encode
from sagascope.listener import EventListener
from sagascope.retry_after import seconds_to_wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elasticsearch import AsyncElasticsearch
    from opensearchpy import AsyncOpenSearch

    from sagascope.events import SagaEvent

logger = logging.getLogger(__name__)

TEMPLATE_VERSION = 1
"""Goes up with every change of what `index_template` returns."""
_LONGEST_ID_BYTES = 512
"""Of a document's _id: for one that is longer, the server refuses the whole bulk."""
_LONGEST_KEYWORD = 8191
"""Characters, of up to four bytes each, that fit into one term of the index (32,766 bytes)."""

_MAY_PASS = frozenset({401, 402, 403, 404, 407, 408, 425, 429})
"""Credentials, rights, a block on writes, a missing index: no event's fault, and mended while events wait. Overload."""
_INDEX_NOT_READY = frozenset({"index_closed_exception", "validation_exception"})
"""Come with status 400, and yet no document is at fault: the index is closed, the cluster may not have more shards."""
_MISCONFIGURED = frozenset({"UnsupportedProductError", "ImproperlyConfigured"})


class _Driver(NamedTuple):
    extra: str
    errors: tuple[str, str]
    """The roots of all that it raises for a request."""
    flattened: Mapping[str, Any]
    """The mapping of an object whose keys nobody knows beforehand, as one field."""


_FLATTENED = {"type": "flattened", "ignore_above": _LONGEST_KEYWORD}
_DRIVERS = {
    "AsyncElasticsearch": _Driver("elasticsearch", ("ApiError", "TransportError"), _FLATTENED),
    "AsyncOpenSearch": _Driver("opensearch", ("OpenSearchException", "ImproperlyConfigured"), {"type": "flat_object"}),
}
"""By the name of the client's class."""


class ElasticsearchListener(EventListener):
    """Indexes each event as one document, by the bulk API of Elasticsearch or OpenSearch.

    The document is the event's JSON, so `decode` reads it back, and beside it, for search: `@timestamp`, the event's own
    time; `status` (started, completed, failed, rolled_back); `attempt` and `duration_derived` also where the JSON leaves
    their defaults out. Opening puts the index template that maps them, see `index_template`.

    Guarantee: a document's `_id` is the `event_id`, and the operation is `create`: the server refuses an event that is
    written twice, which counts as success and changes nothing (`index` would write the document anew, and undo what an
    operator added to it). Behind an alias or a data stream, a duplicate is noticed only in the index that is written to
    at the time. What `write` returned from is in the server's transaction log; a search finds it after the index's next
    refresh (1 s by default), which no write waits for. Documents have no order: sort by `run_id` and `sequence`, or by
    `@timestamp`. A sink that is down, overloaded, closed or blocked for writes, that lacks the index or refuses the
    credentials (401, 403) is a TransientError: no event is at fault, and each is indexed once that is mended. A document
    that the index can't map is rejected for good, and no other with it. Where some events were taken, PartialError names
    the others. Nothing is held between writes, so a restart of this process loses nothing that `write` returned from.

    Retries and timeouts are the client's, which remains its owner's to set and to close. opensearch-py does not hand on
    Retry-After, so that a `TransientError` of it never says how long to wait.
    """

    def __init__(
        self,
        es_client: AsyncElasticsearch | AsyncOpenSearch,
        index: str = "saga-events",
        *,
        put_template: bool = True,
        max_request_bytes: int = 1_000_000,
    ) -> None:
        """Do no I/O yet.

        Args:
            es_client: An `AsyncElasticsearch`, or opensearch-py's `AsyncOpenSearch`.
            index: An index, which the server makes where it is missing, or an alias or a data stream.
            put_template: False: templates are yours, and so is the mapping; the right to create documents is enough.
            max_request_bytes: A batch that is longer goes in several requests, an event that is longer in one of its
                own. Both drivers' aiohttp writes a body at one go, and warns above 1 MiB that this holds up the loop.

        Raises:
            TypeError: another kind of client, such as a synchronous one.
            ValueError: a size that is not above 0.
        """
        packages = {c.__name__: c.__module__.partition(".")[0] for c in es_client.__class__.__mro__}
        known = next((name for name in _DRIVERS if name in packages), None)
        if known is None:
            msg = f"es_client: got {type(es_client).__name__}; allowed: {' or '.join(_DRIVERS)}"
            raise TypeError(msg)
        if max_request_bytes <= 0:
            msg = f"max_request_bytes: got {max_request_bytes}; allowed: bytes above 0"
            raise ValueError(msg)
        self.index = index
        self._client: Any = es_client  # the two drivers' signatures agree in what is used here, their types do not
        self._driver = _DRIVERS[known]
        self._package = packages[known]
        self._put_template = put_template
        self._max_request_bytes = max_request_bytes
        self._errors: tuple[type[Exception], ...] = ()
        self._is_open = False

    async def open(self) -> None:
        """Put the index template, unless there is one.

        A newer one, and one that was edited, is left as it is. Templates are for indices to come: an index that exists
        keeps its mapping. Others that match the same index and have a higher priority win.

        Raises:
            ModuleNotFoundError: the client's package is not installed.
            TransientError: the server can't be reached, or does not allow it.
            PermanentError: the server refuses the template, as for a name that no index can have.
        """
        if self._is_open:
            return
        self._errors = self._imported_errors()
        if self._put_template:
            try:
                await self._ensure_template()
            except self._errors as error:
                what = f"index template {self.index} (put_template=False leaves templates to you)"
                raise delivery_error(error, what) from error
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        await self.open()
        outcome = _Outcome(self.index)
        waiting = outcome.without_long_ids(events)
        limit = self._max_request_bytes
        while waiting and not outcome.failure:  # after one, the next request would only add to the server's load
            body, count = _request(waiting, limit)
            try:
                wanted = "items.*.status,items.*.error"  # the rest would be most of the answer
                answer = await self._client.bulk(body=body, index=self.index, filter_path=wanted)
            except self._errors as error:
                if _status(error) == 413 and count > 1:
                    limit = len(body) // 2
                    continue
                outcome.failed(waiting[:count], error)
            else:
                outcome.answered(waiting[:count], answer)
            waiting = waiting[count:]
        outcome.tell(waiting)

    def _imported_errors(self) -> tuple[type[Exception], ...]:
        extra = self._driver.extra
        driver = load(self._package, needed_by="ElasticsearchListener", package=self._package, extra=extra)
        return tuple(getattr(driver, name) for name in self._driver.errors)

    async def _ensure_template(self) -> None:
        wanted = index_template(self.index, self._driver.flattened)
        found = await self._found_template()
        if found is None:
            try:
                await self._client.indices.put_index_template(name=self.index, body=wanted, create=True)
            except self._errors:
                if await self._found_template() is None:  # else another service was faster
                    raise
        elif (version := found.get("version") or 0) < TEMPLATE_VERSION:
            if (found.get("_meta") or {}).get("digest") == _digest(found):
                await self._client.indices.put_index_template(name=self.index, body=wanted)
            else:
                logger.warning("index template %s, version %d, is edited or another's: left alone", self.index, version)

    async def _found_template(self) -> Mapping[str, Any] | None:
        try:
            answer = await self._client.indices.get_index_template(name=self.index)
        except self._errors as error:
            if _status(error) == 404:
                return None
            raise
        try:
            found: Mapping[str, Any] = answer["index_templates"][0]["index_template"]
        except (LookupError, TypeError) as error:
            msg = f"index template {self.index}: answered, but not as a search server does"
            raise TransientError(msg) from error
        return found


class _Outcome:
    """What becomes of the events of one write: taken, to be tried again, or rejected."""

    def __init__(self, index: str) -> None:
        self.failure: TransientError | None = None
        self._index = index
        self._taken = 0
        self._retry: list[SagaEvent] = []
        self._rejected: list[tuple[SagaEvent, str]] = []

    def without_long_ids(self, events: Sequence[SagaEvent]) -> Sequence[SagaEvent]:
        """Reject what would have the others refused, too."""
        fitting = []
        for event in events:
            if len(_id(event).encode()) <= _LONGEST_ID_BYTES:
                fitting.append(event)
            else:
                self._rejected.append((event, f"event_id: allowed: at most {_LONGEST_ID_BYTES} bytes"))
        return fitting

    def failed(self, batch: Sequence[SagaEvent], error: Exception) -> None:
        """A request was not answered, or refused as a whole."""
        meant = delivery_error(error, f"bulk to {self._index}")
        meant.__cause__ = error
        if isinstance(meant, TransientError):
            self._fail(batch, meant)
        else:
            self._rejected += [(event, str(meant)) for event in batch]

    def answered(self, batch: Sequence[SagaEvent], answer: Any) -> None:
        """A request was answered: an item an event, in order."""
        body = getattr(answer, "body", answer)
        items = body.get("items") if isinstance(body, Mapping) else None
        if not items or len(items) != len(batch):
            self._fail(batch, TransientError(f"bulk to {self._index}: answered, but not as a search server does"))
            return
        for event, item in zip(batch, items, strict=True):
            status, error = item["create"]["status"], item["create"].get("error") or {}
            reason = f"{status} {_explained(error)}"
            if status < 300 or error.get("type") == "version_conflict_engine_exception":
                self._taken += 1
            elif _may_pass(status) or error.get("type") in _INDEX_NOT_READY:
                message = f"bulk to {self._index}: {reason}"
                self._fail([event], TransientError(message, retry_after=_retry_after(answer)))
            else:
                self._rejected.append((event, reason))

    def tell(self, unsent: Sequence[SagaEvent]) -> None:
        """Raise what the caller has to know; nothing if all were taken."""
        retry = [*self._retry, *unsent]
        if self._rejected or (retry and self._taken):
            counts = f"{self._taken} events taken, {len(retry)} to be tried again, {len(self._rejected)} rejected"
            message = f"bulk to {self._index}: {counts}; {self._rejected[0][1] if self._rejected else self.failure}"
            retry_after = self.failure.retry_after if self.failure else None
            raise PartialError(message, retry=retry, rejected=self._rejected, retry_after=retry_after) from self.failure
        if self.failure:
            raise self.failure

    def _fail(self, events: Sequence[SagaEvent], why: TransientError) -> None:
        self._retry += events
        self.failure = self.failure or why


def index_template(index: str, flattened: Mapping[str, Any]) -> dict[str, Any]:
    """The index template, for the index and those that it rolls over into.

    `dynamic` is false: a field of a later version of the event is kept in the document and not indexed, where `strict`
    would refuse the event. Attributes are one field, however many names they have. A longer template name is the more
    specific one, hence the priority; it stays below that of built-in templates (100) and of most people's own, which
    are to win. The digest in `_meta` shows later whether anyone has edited it.
    """
    content = {
        "index_patterns": [index, f"{index}-*"],
        "priority": len(index),
        "composed_of": [],
        "template": {"mappings": {"dynamic": False, "properties": _PROPERTIES | {"attributes": flattened}}},
    }
    return content | {"version": TEMPLATE_VERSION, "_meta": {"description": "sagascope", "digest": _digest(content)}}


def document(event: SagaEvent) -> bytes:
    """The event as a document: its own JSON, and what search needs beside it."""
    beside: dict[str, Any] = {"@timestamp": _moment(event.timestamp), "status": event.event_type.partition("_")[2]}
    if event.attempt == 1:
        beside["attempt"] = 1
    if not event.duration_derived:
        beside["duration_derived"] = False
    return b"%b,%b" % (json.dumps(beside).encode()[:-1], encode(event)[1:])


def delivery_error(error: Exception, what: str) -> DeliveryError:
    """What an error of either driver means, by its HTTP status, else by its class.

    Transient: no answer (refused, timed out, TLS), one that can't be read, 5xx, and the statuses in `_MAY_PASS`.
    Permanent: every other status, a server that the client does not support, a client that is set up wrongly.
    """
    status = _status(error)
    if status is None or type(error).__name__ in _MISCONFIGURED:
        message = f"{what}: {type(error).__name__}"  # its text may hold an address, and so a password
    else:
        message = f"{what}: {status} {_explained(_body(error).get('error'))}".rstrip()
    if type(error).__name__ not in _MISCONFIGURED and (status is None or _may_pass(status)):
        return TransientError(message, retry_after=_retry_after(error))
    return PermanentError(message)


def _may_pass(status: int) -> bool:
    return status in _MAY_PASS or status >= 500


def _status(error: Exception) -> int | None:
    """The HTTP status; opensearch-py says "N/A" and "TIMEOUT" where there is none, and may say nothing."""
    status = getattr(error, "status_code", None) if error.args else None
    return status if isinstance(status, int) else None


def _body(error: Any) -> Mapping[str, Any]:
    """The answer's body; opensearch-py leaves it as text."""
    body = error.info
    if body is None:
        with suppress(TypeError, ValueError):
            body = json.loads(error.error)
    return body if isinstance(body, Mapping) else {}


def _explained(error: Any) -> str:
    """Type and reason of an error by the server, and the reason at its bottom; of what is none, nothing."""
    if not isinstance(error, Mapping):
        return ""
    said = f"{error.get('type')}: {error.get('reason')}"[:500]
    cause = error
    while isinstance(cause.get("caused_by"), Mapping):
        cause = cause["caused_by"]
    return said if cause is error else f"{said}; {cause.get('reason')}"[:1000]


def _retry_after(answer: Any) -> float | None:
    meta = getattr(answer, "meta", None)
    return seconds_to_wait(meta.headers.get("retry-after"), time.time()) if meta else None


def _request(events: Sequence[SagaEvent], limit: int) -> tuple[bytes, int]:
    """The body of a bulk that creates as many of these documents, at least one, as `limit` bytes hold; and how many."""
    body = bytearray()
    for count, event in enumerate(events):
        action = json.dumps({"create": {"_id": _id(event)}}).encode()
        operation = b"%b\n%b\n" % (action, document(event))
        if count and len(body) + len(operation) > limit:
            return bytes(body), count
        body += operation
    return bytes(body), len(events)


def _id(event: SagaEvent) -> str:
    return event.event_id.encode("utf-8", "replace").decode()


def _moment(timestamp: int) -> str | int:
    """A date as people read it; or the number, which the servers take, too, where no datetime goes: from year 10000."""
    if timestamp >= 253_402_300_800_000:
        return timestamp
    return rfc3339(timestamp)


def _digest(template: Mapping[str, Any]) -> str:
    """Of what the template does, which the servers keep as it was put; some add dates beside it."""
    content = {k: v for k, v in template.items() if k not in ("version", "_meta") and "_date" not in k}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_IDS = ("event_id", "saga_id", "run_id", "definition_id", "parent_saga_id", "trace_id")
_NAMES = ("event_type", "status", "saga_name", "step_name", "error_type", "context_keys", "service")
_PROPERTIES: dict[str, Mapping[str, Any]] = {
    "@timestamp": {"type": "date"},
    "timestamp": {"type": "date", "format": "epoch_millis"},
    **{name: {"type": "keyword", "ignore_above": _LONGEST_KEYWORD} for name in _IDS + _NAMES},
    **{name: {"type": "long"} for name in ("sequence", "duration_ms", "total_duration_ms")},
    **{name: {"type": "integer"} for name in ("attempt", "schema_version")},
    **{name: {"type": "boolean"} for name in ("compensable", "pivot", "duration_derived")},
    "error_message": {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 1024}}},
}
