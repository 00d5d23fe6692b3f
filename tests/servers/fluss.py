"""A real Fluss cluster for the tests: ZooKeeper, coordinator and one tablet server, out of their Maven jars."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fluss
import msgspec
import pytest

from pipelines import fluss_stack
from pipelines.ports import free_port
from tests.servers.server import CHECKOUT, DOWNLOADS, INSTALL_SECONDS, require_debian, say, state_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

JARS = DOWNLOADS / "fluss"
_POM = Path(__file__).with_name("fluss.pom.xml")
_tables = count()


class FlussServer:
    """The cluster.

    A Fluss client learns the tablet server's address from whichever server it asks, so that a proxy in front of that one
    would not lie on the way of the rows. Here clients are told of a port that only `wire` listens on.
    """

    def __init__(self, settings: fluss_stack.Settings) -> None:
        self._settings = settings
        self._cluster = fluss_stack.start(settings)

    @property
    def port(self) -> int:
        """Where the tablet server listens for clients; they can ask it for the cluster, too."""
        return self._cluster.tablet.port

    @property
    def address_within(self) -> str:
        """For clients that are to reach the servers past `wire`."""
        return f"127.0.0.1:{self._cluster.coordinator.internal_port}"

    @property
    def address(self) -> str:
        """Where clients find the cluster, whose rows go through `wire`."""
        return f"127.0.0.1:{self.port}"

    async def connect(self) -> fluss.FlussConnection:
        """A connection such as a service makes."""
        return await fluss.FlussConnection.create(fluss.Config({"bootstrap.servers": self.address}))

    async def rows(self, table: str, database: str = "saga") -> list[dict[str, Any]]:
        """All rows of a table, each with its bucket, bucket after bucket and in order; read past `wire`."""
        connection = await fluss.FlussConnection.create(fluss.Config({"bootstrap.servers": self.address_within}))
        opened = await connection.get_table(fluss.TablePath(database, table))
        found = []
        for bucket in range(opened.get_table_info().num_buckets):
            scanner = await opened.new_scan().create_record_batch_log_scanner()
            scanner.subscribe(bucket, fluss.EARLIEST_OFFSET)
            found += [row | {"bucket": bucket} for row in (await scanner.to_arrow()).to_pylist()]
        return found

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run it in an event loop, with nothing in the way of the rows."""

        async def wired() -> None:
            async with self.wire(self.port):
                await main()

        asyncio.run(wired())

    @asynccontextmanager
    async def wire(self, port: int) -> AsyncIterator[None]:
        """Lead what clients send to the tablet server's advertised address to this port: its own, or a proxy's."""
        tasks: set[asyncio.Task[None]] = set()
        writers: list[asyncio.StreamWriter] = []

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while chunk := await reader.read(65_536):
                    writer.write(chunk)
                    await writer.drain()
            writer.close()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            try:
                onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.close()
                return
            writers.append(onward_writer)
            tasks.add(asyncio.create_task(carry(reader, onward_writer)))
            tasks.add(asyncio.create_task(carry(onward_reader, writer)))

        listening = await asyncio.start_server(connected, "127.0.0.1", self._settings.advertised_port)
        try:
            yield
        finally:
            listening.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in writers:
                writer.transport.abort()

    def kill_tablet(self) -> None:
        """End the tablet server as a crash does."""
        process = self._cluster.tablet.process
        assert process is not None
        process.kill()
        process.wait()

    def stop_tablet(self) -> None:
        """End the tablet server in good order."""
        fluss_stack.stop_server(self._cluster.tablet)

    def start_tablet(self) -> None:
        """Start it again, on its ports and its data, unless it runs; returns when the coordinator knows it."""
        if self._cluster.tablet.process is None:
            tablet = fluss_stack.start_tablet(self._settings, self._cluster.zookeeper, self._cluster.tablet)
            self._cluster = msgspec.structs.replace(self._cluster, tablet=tablet)
        fluss_stack.await_ready(self._settings, self._cluster)

    @contextmanager
    def hung_tablet(self) -> Iterator[None]:
        """The tablet server does nothing meanwhile, but its machine goes on to accept connections and bytes for it."""
        os.kill(self._cluster.tablet.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._cluster.tablet.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End all of it."""
        fluss_stack.stop(self._cluster)


@pytest.fixture(scope="session")
def fluss_server() -> Iterator[FlussServer]:
    """A Fluss cluster, for the whole test run."""
    java = require_debian("java", "openjdk-17-jre-headless")
    _bring_jars()
    server = FlussServer(
        fluss_stack.Settings(
            jars=JARS,
            home=state_folder("fluss"),
            java=java,
            session_timeout=2,  # a killed tablet server can't come back before its session is over
            advertised_port=free_port(),
        )
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def fluss_table() -> str:
    """The name of a table that does not exist yet."""
    return f"events_{next(_tables)}"


def _bring_jars() -> None:
    """From Maven, unless they are there for this very pom."""
    stamp = JARS / "pom.xml"
    pom = _POM.read_text()
    if stamp.exists() and stamp.read_text() == pom:
        return
    mvn = require_debian("mvn", "maven")
    command = [mvn, "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    say(f"Bringing Fluss for the tests, 85 MB: {' '.join(command)}")
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    if done.returncode:
        pytest.fail(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}", pytrace=False)
    stamp.write_text(pom)
