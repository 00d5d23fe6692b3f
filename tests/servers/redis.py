"""A real Redis server for the tests; and a cluster of three."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import redis

from pipelines.ports import free_port
from tests.servers.server import answers, require_debian, running, state_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def redis_at(port: int, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Redis server that keeps nothing on disk, with more options in the words of its command line."""
    command = require_debian("redis-server", "redis-server")
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with running([command, *arguments, *options], folder=folder, ready=lambda: answers(port)) as process:
        yield process


@pytest.fixture(scope="session")
def redis_server() -> Iterator[int]:
    """Its port."""
    port = free_port()
    with redis_at(port, state_folder("redis")):
        yield port


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[int]:
    """The port of one of three nodes, which share the slots."""
    ports = [free_port() for _ in range(3)]  # no fewer make a cluster
    with ExitStack() as nodes:
        for port in ports:
            folder = state_folder("redis-node")
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            nodes.enter_context(redis_at(port, folder, *options))
        addresses = [f"127.0.0.1:{port}" for port in ports]
        command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
        made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert made.returncode == 0, made.stdout + made.stderr
        for port in ports:
            await_cluster(port)
        yield ports[0]


def await_cluster(port: int) -> None:
    """Wait until the node has heard of all others."""
    deadline = time.monotonic() + 30
    with redis.Redis(port=port, decode_responses=True) as client:
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def flush(port: int) -> None:
    """Empty it."""
    with redis.Redis(port=port) as client:
        client.flushall()
