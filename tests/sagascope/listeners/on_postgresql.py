"""What the listeners that write to PostgreSQL have in common: the laws of every listener, each test in a database of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sagascope.listeners.contract import NetworkedContract

if TYPE_CHECKING:
    from tests.servers.postgresql import PostgresServer

NOBODY = "postgresql://nobody@127.0.0.1:1/nowhere"
"""Where no server is."""


class PostgresContract(NetworkedContract):
    """The laws of every listener, with a real server."""

    drivers = ("asyncpg",)
    extra = "postgres"

    @pytest.fixture(autouse=True)
    def server(self, postgresql: PostgresServer) -> int:
        self.postgresql = postgresql
        self.database = postgresql.create_database()
        return postgresql.port

    def dsn(self, port: int | None = None) -> str:
        """The test's database, by way of this port."""
        return self.postgresql.dsn(self.database, port)
