"""Saga events to a Fluss table, one row each: a log that jobs and queries read within milliseconds.

Needs the extra `sagascope[fluss]` (pyfluss, which brings pyarrow).

    listener = FlussAnalyticsListener("localhost:9123")
    async with FanOut([listener]) as fan_out:
        await OrderSaga(listeners=[fan_out]).run(context)
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from sagascope.drivers import load
from sagascope.errors import DeliveryError, PartialError, PermanentError, TransientError
from sagascope.listener import EventListener
from sagascope.listeners.fluss_rows import BUCKET_KEY, COLUMNS, batches_of, table_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from fluss import AppendWriter, FlussAdmin, FlussConnection, FlussError, FlussTable, TablePath

    from sagascope.events import SagaEvent

_SETTLE_SECONDS = 2.0
"""How long an open waits for what a server that just started, or a table that is just being made, lacks for a moment."""
_POLL_SECONDS = 0.05
_CLOSE_SECONDS = 5.0
_HELD_BATCHES = 4
"""How many batches of writes that were cancelled may be in a connection that is not ours, which keeps them. At its default
settings each takes 4 MB of 64."""
_MESSAGE_CHARACTERS = 300
_CLIENT_OPTIONS = {
    "writer.retries": "3",  # a batch that is tried again for ever is never heard of, and keeps a core busy meanwhile
    "connect-timeout": "5000",
    "writer.batch-size": "262144",  # what each bucket's share of a batch reserves at least, of 64 MB in all
    "writer.buffer.wait-timeout-ms": "100",  # it waits with Python's lock held: the whole process stands still
}
_PERMANENT = {
    "UNSUPPORTED_VERSION",
    "RECORD_TOO_LARGE_EXCEPTION",
    "INVALID_DATABASE_EXCEPTION",
    "INVALID_REQUIRED_ACKS",
    "INVALID_TARGET_COLUMN",
    "INVALID_CONFIG_EXCEPTION",
    "LAKE_STORAGE_NOT_CONFIGURED_EXCEPTION",
    "AUTHENTICATE_EXCEPTION",
    "SECURITY_DISABLED_EXCEPTION",
    "AUTHORIZATION_EXCEPTION",
    "BUCKET_MAX_NUM_EXCEPTION",
}
"""Names of error codes after which the same rows fail again. All other codes may pass, also those of a later server, and
that of the driver's own errors, which tells a buffer that is full from an address that is none only by its text."""


class FlussAnalyticsListener(EventListener):
    """Appends each event to a log table, `saga.events_in` unless named otherwise; database and table are made if absent.

    Guarantee: at least once. `write` returns when the server has acknowledged all rows (by all replicas in sync). The
    table is bucketed by saga_id, and a saga's events lie in their bucket in the order written. An event written twice is
    two rows, also after an acknowledgement that was lost: readers tell them by event_id. While Fluss is down nothing is
    held here: `write` raises TransientError, and whoever calls tries again. What the server acknowledged is as safe as its
    replicas: one replica alone (Fluss's default, see `table_properties`) loses the rows of its last seconds where its
    server is killed, because Fluss then cuts the log to the mark it noted last (`log.replica.high-watermark.checkpoint-interval`).

    Given an address, the listener owns the connection: it makes a new one after each failure, as one that hangs never
    recovers. Given a connection, which stays its owner's, it gets the table anew after a failure; pyfluss reconnects where
    the server closed the connection, and goes on to deliver the batches it holds, as long as its `writer.retries` (for
    ever by default) last. Give such a connection `writer.batch-timeout-ms` 0, or each write takes 100 ms longer, and a
    short `writer.buffer.wait-timeout-ms`: where its buffer is full, pyfluss waits with Python's lock held.
    """

    def __init__(
        self,
        fluss_client: FlussConnection | str,
        *,
        database: str = "saga",
        table: str = "events_in",
        buckets: int = 2,
        table_properties: Mapping[str, str] | None = None,
        client_options: Mapping[str, str] | None = None,
    ) -> None:
        """Do no I/O yet.

        Args:
            fluss_client: Bootstrap servers, one or more host:port with commas between, or a connection of pyfluss.
            database: Made if absent.
            table: Made if absent. One that exists must be a log table with the columns of `COLUMNS`, bucketed by
                saga_id and not partitioned; further columns that allow NULL are left NULL.
            buckets: How many the table is made with; all events of a saga go to one.
            table_properties: What else it is made with, such as `table.replication.factor` or `table.log.ttl`.
            client_options: With an address: more of pyfluss's `Config`, such as `security.sasl.password`.

        Raises:
            ValueError: client_options for a connection that is there already, or no bucket.
        """
        if client_options and not isinstance(fluss_client, str):
            msg = "client_options are for an address: a connection has its own"
            raise ValueError(msg)
        if buckets < 1:
            msg = f"buckets: got {buckets}; allowed: from 1"
            raise ValueError(msg)
        self._client = fluss_client
        self._database = database
        self._table = table
        self._buckets = buckets
        self._table_properties = dict(table_properties or {})
        self._client_options = dict(client_options or {})
        self._session: _Session | None = None
        self._held: set[asyncio.Future[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        """Writes of several tasks follow one another: that keeps the order, and bounds what the driver holds."""

    async def open(self) -> None:
        """Connect, make what is absent, and see that each bucket has a server that takes rows.

        Raises:
            ModuleNotFoundError: pyfluss is not installed.
            TransientError: Fluss does not answer, or lacks a server.
            PermanentError: not allowed to, or a table of that name that is another's.
        """
        async with self._one_at_a_time:
            self._session = self._session or await self._connect()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        async with self._one_at_a_time:
            session = self._session = self._session or await self._connect()
            batches, rejected = batches_of(events, session.schema)
            for number, (_, batch) in enumerate(batches):
                try:
                    await self._append(session, batch)
                except BaseException as error:
                    self._session = None  # a batch that hangs would hold up all that follow
                    if not isinstance(error, DeliveryError) or (number == 0 and not rejected):
                        raise
                    left = [event for later, _ in batches[number:] for event in later]
                    raise _partial(error, left, rejected) from error
        if rejected:
            if len(rejected) == len(events):
                raise PermanentError(rejected[0][1])
            msg = f"{len(rejected)} of {len(events)} events can't be rows, the first: {rejected[0][1]}"
            raise PartialError(msg, rejected=rejected)

    async def close(self) -> None:
        """Close the connection, unless it is the caller's; all that `write` returned from is acknowledged already."""
        session, self._session = self._session, None
        for acknowledged in list(self._held):
            acknowledged.cancel()
        if session and session.owned:
            with suppress(TimeoutError, session.error):  # nothing is left in it that could be lost
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await session.connection.close()

    async def _append(self, session: _Session, batch: pa.RecordBatch) -> None:
        """Write the rows; returns when they are acknowledged."""
        if len(self._held) >= _HELD_BATCHES:
            msg = (
                f"{len(self._held)} batches of earlier writes wait in the connection's buffer for their acknowledgement"
            )
            raise TransientError(msg)
        try:
            handle = session.writer.write_arrow_batch(batch)
            if session.owned:
                await session.writer.flush()  # sends at once, not after writer.batch-timeout-ms
                await handle.wait()
            else:
                await self._acknowledged(asyncio.ensure_future(handle.wait()))
        except session.error as error:
            raise self._failure(error, session.names, "writing to") from error

    async def _acknowledged(self, acknowledged: asyncio.Future[None]) -> None:
        """Wait for it; where the wait is cancelled, remember that its batch is still in a buffer that is not ours."""
        try:
            await asyncio.shield(acknowledged)
        except asyncio.CancelledError:
            self._held.add(acknowledged)
            acknowledged.add_done_callback(self._let_go)
            raise

    def _let_go(self, acknowledged: asyncio.Future[None]) -> None:
        self._held.discard(acknowledged)
        if not acknowledged.cancelled():
            acknowledged.exception()  # nobody waits for it any more: no complaint

    def _failure(self, error: FlussError, names: Mapping[int, str], doing: str) -> DeliveryError:
        return delivery_error(error, names, f"{doing} table {self._database}.{self._table}")

    async def _connect(self) -> _Session:
        fluss = await asyncio.to_thread(_driver)  # the import takes half a second, and sagas run on
        names = {code: name for name, code in vars(fluss.ErrorCode).items() if name.isupper()}
        owned = isinstance(self._client, str)
        deadline = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        connection = await self._own(fluss, names) if isinstance(self._client, str) else self._client
        while True:
            try:
                table = await self._open_table(fluss, connection, names)
                writer = table.new_append().create_writer()
            except fluss.FlussError as error:
                failure = self._failure(error, names, "opening")
                if isinstance(failure, PermanentError) or asyncio.get_running_loop().time() >= deadline:
                    raise failure from error
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return _Session(connection, owned, writer, table.arrow_schema, fluss.FlussError, names)

    async def _own(self, fluss: Any, names: Mapping[int, str]) -> FlussConnection:
        options = _CLIENT_OPTIONS | self._client_options | {"bootstrap.servers": self._client}
        try:
            config = fluss.Config(options)
        except (fluss.FlussError, TypeError) as error:
            msg = f"client_options: pyfluss does not take them: {sorted(self._client_options)}"
            raise PermanentError(msg) from error
        try:
            connection: FlussConnection = await fluss.FlussConnection.create(config)
        except fluss.FlussError as error:
            raise self._failure(error, names, "connecting for") from error
        return connection

    async def _open_table(self, fluss: Any, connection: FlussConnection, names: Mapping[int, str]) -> FlussTable:
        """The table, made if absent, once each of its buckets has a leader that answers.

        A batch for a bucket without one would stay in the driver, which asks for a leader without a pause.
        """
        admin = connection.get_admin()
        path = fluss.TablePath(self._database, self._table)
        if not (await admin.database_exists(self._database) and await admin.table_exists(path)):
            await self._make(fluss, admin, path, names)
        table = await connection.get_table(path)
        self._check(table)
        buckets = list(range(table.get_table_info().num_buckets))
        await admin.list_offsets(path, buckets, fluss.OffsetSpec.latest())
        return table

    async def _make(self, fluss: Any, admin: FlussAdmin, path: TablePath, names: Mapping[int, str]) -> None:
        """Make database and table. Where another service does so at the same time, one of the two fails, and looks again."""
        descriptor = fluss.TableDescriptor(
            fluss.Schema(table_schema()),
            bucket_count=self._buckets,
            bucket_keys=[BUCKET_KEY],
            comment="Events of sagas, one row each; the same event may be there twice, told by event_id.",
            properties=self._table_properties,
        )
        try:
            await admin.create_database(self._database, ignore_if_exists=True)
            await admin.create_table(path, descriptor, ignore_if_exists=True)
        except fluss.FlussError as error:
            if names.get(error.error_code) == "INVALID_TABLE_EXCEPTION":  # elsewhere one that is not known yet
                raise PermanentError(str(self._failure(error, names, "making"))) from error
            raise

    def _check(self, table: FlussTable) -> None:
        """Refuse a table that events can't be rows of."""
        info = table.get_table_info()
        problems = []
        if table.has_primary_key():
            problems.append("it has a primary key, so is no log")
        if info.is_partitioned():
            problems.append("it is partitioned")
        if not table.has_primary_key() and info.get_bucket_keys() != [BUCKET_KEY]:
            problems.append(f"its bucket key is {info.get_bucket_keys()}, so a saga's order would be lost")
        schema: pa.Schema = table.arrow_schema
        for field in table_schema():
            index = schema.get_field_index(field.name)
            if index < 0:
                problems.append(f"it has no column {field.name} {COLUMNS[field.name]}")
            elif schema.field(index).type != field.type:
                problems.append(f"its column {field.name} is {schema.field(index).type}, not {field.type}")
        problems += [
            f"its column {field.name} is not of events, and allows no NULL"
            for field in schema
            if field.name not in COLUMNS and not field.nullable
        ]
        if problems:
            msg = f"table {self._database}.{self._table} is not for events: {'; '.join(problems)}"
            raise PermanentError(msg)


class _Session(NamedTuple):
    """What is open: after a failure a new one is made."""

    connection: FlussConnection
    owned: bool
    """The connection is the listener's own."""
    writer: AppendWriter
    schema: pa.Schema
    error: type[FlussError]
    names: Mapping[int, str]
    """Of the error codes."""


def _driver() -> Any:
    load("pyarrow", needed_by="FlussAnalyticsListener", package="pyarrow", extra="fluss")  # here, as it takes its time
    return load("fluss", needed_by="FlussAnalyticsListener", package="pyfluss", extra="fluss")


def _partial(
    error: DeliveryError, left: Sequence[SagaEvent], rejected: Sequence[tuple[SagaEvent, str]]
) -> PartialError:
    if isinstance(error, PermanentError):
        return PartialError(str(error), rejected=[*rejected, *((event, str(error)) for event in left)])
    return PartialError(str(error), retry=left, rejected=rejected)


def delivery_error(error: FlussError, names: Mapping[int, str], doing: str) -> DeliveryError:
    """What an error of pyfluss means for the events; `names` are those of the error codes."""
    name = names.get(error.error_code, "an error of a later server")
    said = error.message.partition("\n")[0][:_MESSAGE_CHARACTERS]  # the rest is the server's stack trace
    text = f"Fluss, {doing}: {name} ({error.error_code}): {said}"
    return PermanentError(text) if name in _PERMANENT else TransientError(text)
