"""PostgreSQL for the tests: one cluster a session, a database of its own for each test that wants one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest

from pipelines.ports import free_port
from tests.servers.server import answers, require_debian, running, state_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BINARIES = "/usr/lib/postgresql/15/bin"
USER = "postgres"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
}


class PostgresServer:
    """A cluster that can be stopped and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder
        self._binaries = os.path.dirname(require_debian(f"{BINARIES}/postgres", "postgresql-15"))  # noqa: PTH120 - a str

    def initialise(self) -> None:
        """Make the cluster's files."""
        options = {}
        if os.geteuid() == 0:
            shutil.chown(self._folder, USER)
            options = {"user": USER, "group": USER, "extra_groups": []}
        encoding = ["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        command = [f"{self._binaries}/initdb", "-D", str(self._folder / "data"), *encoding]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, **options)  # type: ignore[call-overload] # of a dict

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answering, until the block ends."""
        command = [f"{self._binaries}/postgres", "-D", str(self._folder / "data"), "-k", "", "-p", str(self.port)]
        for name, value in SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with running(command, folder=self._folder, ready=self._is_ready, user=USER) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGINT)  # ends sessions, where SIGTERM waits for them
                process.wait(30)

    def _is_ready(self) -> bool:
        """Whether it lets us in: it listens before it does."""
        return answers(self.port) and asyncio.run(self._lets_in())

    async def _lets_in(self) -> bool:
        try:
            connection = await asyncpg.connect(self.dsn(USER))
        except asyncpg.CannotConnectNowError:
            return False
        await connection.close()
        return True

    def dsn(self, database: str, port: int | None = None) -> str:
        """Of a database, also by way of a proxy's port."""
        return f"postgresql://{USER}:let-me-in@127.0.0.1:{port or self.port}/{database}"

    def create_database(self) -> str:
        """A new, empty database's name."""
        name = f"test_{uuid.uuid4().hex[:12]}"

        async def main() -> None:
            connection = await asyncpg.connect(self.dsn(USER))
            await connection.execute(f"CREATE DATABASE {name}")
            await connection.close()

        asyncio.run(main())
        return name


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests of a session."""
    server = PostgresServer(state_folder("pg"), free_port())
    server.initialise()
    with server.running():
        yield server
