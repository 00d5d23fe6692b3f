"""FlussAnalyticsListener against a real Fluss cluster."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import fluss
import pytest

from sagascope.delivery import TimeoutWrappedListener
from sagascope.errors import PermanentError, TransientError
from sagascope.listeners.fluss import FlussAnalyticsListener, delivery_error
from tests.sagascope.listeners.contract import TIMEOUT_MS, NetworkedContract, a_run, exceptions_of
from tests.servers.proxy import Fault, Proxy
from tests.servers.server import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sagascope.events import SagaEvent
    from sagascope.listener import EventListener
    from tests.servers.fluss import FlussServer


class TestFlussAnalyticsListener(NetworkedContract):
    """The laws of every listener."""

    name = "FlussAnalyticsListener"
    drivers = ("fluss", "pyarrow", "pandas")
    extra = "fluss"
    idempotent = False
    fluss: FlussServer
    table: str

    @pytest.fixture(autouse=True)
    def server(self, fluss_server: FlussServer, fluss_table: str) -> int:
        self.fluss, self.table = fluss_server, fluss_table
        return fluss_server.port

    def unopened(self, tmp_path: Path) -> EventListener:
        return FlussAnalyticsListener("127.0.0.1:1")

    @asynccontextmanager
    async def at(self, port: int) -> AsyncIterator[EventListener]:
        async with self.fluss.wire(port):
            listener = FlussAnalyticsListener(f"127.0.0.1:{port}", table=self.table)
            yield listener
            await listener.close()

    async def stored(self, port: int) -> list[str]:
        return [row["event_id"] for row in await self.fluss.rows(self.table)]


async def written(listener: EventListener, events: Sequence[SagaEvent]) -> None:
    """Tried again until it is written, as a fan-out does; only what may pass is tried again."""
    async with asyncio.timeout(60):
        while True:
            try:
                await TimeoutWrappedListener(listener, timeout_ms=5_000).write(events)
            except TransientError:
                await asyncio.sleep(0.1)
            else:
                return


@pytest.mark.parametrize("client", ["address", "connection"])
@pytest.mark.parametrize("how", ["killed", "stopped", "hung"])
def test_it_outlives_the_tablet_server(fluss_server: FlussServer, fluss_table: str, how: str, client: str) -> None:
    """A server that crashes, stops or hangs makes writes fail as transient, in time; when it is back they succeed."""
    before, during = a_run("order-0"), a_run("order-1")

    async def main() -> None:
        handed_over = fluss_server.address if client == "address" else await fluss_server.connect()
        listener = FlussAnalyticsListener(handed_over, table=fluss_table)
        await listener.write(before)
        impatient = TimeoutWrappedListener(listener, timeout_ms=TIMEOUT_MS)
        with ExitStack() as then:
            match how:
                case "killed":
                    fluss_server.kill_tablet()
                case "stopped":
                    await asyncio.to_thread(fluss_server.stop_tablet)
                case "hung":
                    then.enter_context(fluss_server.hung_tablet())
            for _ in range(3):
                async with asyncio.timeout(TIMEOUT_MS / 1000 + 5):
                    with pytest.raises(TransientError):
                        await impatient.write(during)
        await asyncio.to_thread(fluss_server.start_tablet)
        await written(listener, during)
        found = {row["event_id"] for row in await fluss_server.rows(fluss_table)}
        assert found >= {event.event_id for event in during}
        if how != "killed":  # a single replica that crashes loses its newest rows, see the docstring
            assert found >= {event.event_id for event in before}
        async with asyncio.timeout(10):
            await listener.close()

    try:
        fluss_server.run(main)
    finally:
        fluss_server.start_tablet()


def test_a_hung_server_does_not_stop_the_event_loop(fluss_server: FlussServer, fluss_table: str) -> None:
    """While a write waits for a server that hangs, other tasks run."""

    async def main() -> None:
        async with FlussAnalyticsListener(fluss_server.address, table=fluss_table) as listener:
            await listener.write(a_run("order-0"))
            with fluss_server.hung_tablet():
                write = asyncio.create_task(listener.write(a_run("order-1")))
                for _ in range(1_000):
                    await asyncio.sleep(0.0005)
                assert not write.done()
                write.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await write
            await asyncio.to_thread(fluss_server.start_tablet)

    fluss_server.run(main)


@pytest.mark.parametrize("client", ["address", "connection"])
def test_an_interpreter_can_end_amid_a_write(fluss_server: FlussServer, fluss_table: str, client: str) -> None:
    """A service that ends without closing, a write under way to a server that hangs, ends at once and quietly."""
    program = f"""
import asyncio, sys
import fluss
from sagascope import FlussAnalyticsListener
from tests.sagascope.listeners.contract import a_run

async def main():
    address = {fluss_server.address_within!r}
    client = address
    if {client!r} == "connection":
        client = await fluss.FlussConnection.create(fluss.Config({{"bootstrap.servers": address}}))
    listener = FlussAnalyticsListener(client, table={fluss_table!r})
    await listener.write(a_run("order-0"))
    print("written", flush=True)
    sys.stdin.readline()
    write = asyncio.create_task(listener.write(a_run("order-1")))
    await asyncio.sleep(0.2)
    assert not write.done()

asyncio.run(main())
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT, text=True, **pipes) as service:  # type: ignore[call-overload] # mypy does not look into the dict
        assert service.stdout.readline() == "written\n"
        with fluss_server.hung_tablet():
            said = service.communicate("go on\n", timeout=30)
    assert (service.returncode, *said) == (0, "", "")
    fluss_server.start_tablet()


def test_a_connection_that_was_handed_over_stays_open(fluss_server: FlussServer, fluss_table: str) -> None:
    """`close` leaves the caller's connection alone: it can be used on, by the listener too."""

    async def main() -> None:
        connection = await fluss_server.connect()
        listener = FlussAnalyticsListener(connection, table=fluss_table)
        await listener.write(a_run("order-1"))
        await listener.close()
        assert await connection.get_admin().table_exists(fluss.TablePath("saga", fluss_table))
        await listener.write(a_run("order-2"))
        await listener.close()
        await connection.close()
        assert len(await fluss_server.rows(fluss_table)) == 8

    fluss_server.run(main)


def test_it_does_not_fill_the_buffer_of_a_connection_that_was_handed_over(
    fluss_server: FlussServer, fluss_table: str
) -> None:
    """Cancelled writes stay in the driver's buffer, and a full one stops the whole process: few may be there."""
    batch = a_run("order-1")

    async def main() -> None:
        async with Proxy(fluss_server.port) as proxy, fluss_server.wire(proxy.port):
            connection = await fluss_server.connect()
            listener = FlussAnalyticsListener(connection, table=fluss_table)
            refused = None
            for _ in range(20):
                await listener.open()
                proxy.fault = Fault.HALF_OPEN
                try:
                    async with asyncio.timeout(0.3):
                        await listener.write(batch)
                except TimeoutError:
                    pass
                except TransientError as error:
                    refused = error
                    break
                proxy.fault = Fault.NONE
            assert refused is not None
            assert "earlier writes" in str(refused)
            await listener.close()

    asyncio.run(main())


def test_options_are_for_an_address() -> None:
    """A connection has its options already."""
    with pytest.raises(ValueError, match="client_options"):
        FlussAnalyticsListener(object(), client_options={"writer.acks": "all"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="buckets"):
        FlussAnalyticsListener("127.0.0.1:9123", buckets=0)


@pytest.mark.parametrize(
    "options",
    [
        {"no.such.option": "hunter2"},
        {"writer.retries": "hunter2"},
        {"security.protocol": "sasl", "security.sasl.username": "me", "security.sasl.password": "hunter2"},
    ],
    ids=["unknown", "no number", "not accepted"],
)
def test_options_that_do_not_work_are_no_secrets_told(
    fluss_server: FlussServer, fluss_table: str, options: dict[str, str]
) -> None:
    """What pyfluss or the server does not accept fails for good, without the values."""

    async def main() -> None:
        listener = FlussAnalyticsListener(fluss_server.address, table=fluss_table, client_options=options)
        with pytest.raises(PermanentError) as caught:
            await listener.open()
        assert "hunter2" not in str(caught.value)

    fluss_server.run(main)


PERMANENT = {
    "UNSUPPORTED_VERSION": "the client is too old or too new",
    "RECORD_TOO_LARGE_EXCEPTION": "the event stays large",
    "INVALID_DATABASE_EXCEPTION": "no name for a database",
    "INVALID_REQUIRED_ACKS": "a setting",
    "INVALID_TARGET_COLUMN": "the schema",
    "INVALID_CONFIG_EXCEPTION": "a property of the table",
    "LAKE_STORAGE_NOT_CONFIGURED_EXCEPTION": "a property of the table that the cluster can't have",
    "AUTHENTICATE_EXCEPTION": "who we are",
    "SECURITY_DISABLED_EXCEPTION": "a setting",
    "AUTHORIZATION_EXCEPTION": "what we may",
    "BUCKET_MAX_NUM_EXCEPTION": "a setting",
}
TRANSIENT = [
    "CLIENT_ERROR",
    "UNKNOWN_SERVER_ERROR",
    "NETWORK_EXCEPTION",
    "CORRUPT_MESSAGE",
    "CORRUPT_RECORD_EXCEPTION",
    "REQUEST_TIME_OUT",
    "LOG_STORAGE_EXCEPTION",
    "KV_STORAGE_EXCEPTION",
    "STORAGE_EXCEPTION",
    "STORAGE_BACKPRESSURE_EXCEPTION",
    "NOT_LEADER_OR_FOLLOWER",
    "LEADER_NOT_AVAILABLE_EXCEPTION",
    "FENCED_LEADER_EPOCH_EXCEPTION",
    "INVALID_COORDINATOR_EXCEPTION",
    "INVALID_UPDATE_VERSION_EXCEPTION",
    "INELIGIBLE_REPLICA_EXCEPTION",
    "OPERATION_NOT_ATTEMPTED_EXCEPTION",
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND_EXCEPTION",
    "NOT_ENOUGH_REPLICAS_EXCEPTION",
    "INVALID_REPLICATION_FACTOR",
    "OUT_OF_ORDER_SEQUENCE_EXCEPTION",
    "DUPLICATE_SEQUENCE_EXCEPTION",
    "UNKNOWN_WRITER_ID_EXCEPTION",
    "DATABASE_NOT_EXIST",
    "TABLE_NOT_EXIST",
    "SCHEMA_NOT_EXIST",
    "UNKNOWN_TABLE_OR_BUCKET_EXCEPTION",
    "INVALID_TABLE_EXCEPTION",
    "DATABASE_ALREADY_EXIST",
    "TABLE_ALREADY_EXIST",
    "LAKE_TABLE_ALREADY_EXIST",
    "SECURITY_TOKEN_EXCEPTION",
    "RETRIABLE_AUTHENTICATE_EXCEPTION",
]
"""Servers come back, leaders are elected, tables made; INVALID_TABLE_EXCEPTION is also said of a table that a server that
just started does not know yet."""
NOT_OURS = [
    "NONE",
    "DATABASE_NOT_EMPTY",
    "LOG_OFFSET_OUT_OF_RANGE_EXCEPTION",
    "NON_PRIMARY_KEY_TABLE_EXCEPTION",
    "INVALID_COLUMN_PROJECTION",
    "PARTITION_NOT_EXISTS",
    "TABLE_NOT_PARTITIONED_EXCEPTION",
    "INVALID_TIMESTAMP_EXCEPTION",
    "KV_SNAPSHOT_NOT_EXIST",
    "PARTITION_ALREADY_EXISTS",
    "PARTITION_SPEC_INVALID_EXCEPTION",
    "PARTITION_MAX_NUM_EXCEPTION",
    "FENCED_TIERING_EPOCH_EXCEPTION",
    "INVALID_SERVER_RACK_INFO_EXCEPTION",
    "LAKE_SNAPSHOT_NOT_EXIST",
    "INVALID_ALTER_TABLE_EXCEPTION",
    "DELETION_DISABLED_EXCEPTION",
]
"""Of reading, partitions, keys, tiering, and of servers among themselves: should one come all the same, it is transient."""


def test_each_error_of_the_driver_is_judged() -> None:
    """Every error code that pyfluss knows is in one of these tables and treated so; one that it gains fails this test."""
    codes = {name: code for name, code in vars(fluss.ErrorCode).items() if name.isupper()}
    assert sorted(codes) == sorted([*PERMANENT, *TRANSIENT, *NOT_OURS])
    assert exceptions_of(fluss) == {fluss.FlussError}
    names = {code: name for name, code in codes.items()}
    for name, code in codes.items():
        error = delivery_error(fluss.FlussError("told by the server", code), names, "writing")
        assert type(error) is (PermanentError if name in PERMANENT else TransientError)
        assert name in str(error)
    assert type(delivery_error(fluss.FlussError("of a later server", 999), names, "writing")) is TransientError
