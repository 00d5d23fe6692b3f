"""A Fluss cluster of one on this machine: ZooKeeper, coordinator and tablet server, each a process of its own.

All three come out of the jar `fluss-server`. Data and configuration live under `home`, logs under `home/logs`; ports are
free ones, kept from one start to the next.

Each Fluss server has two listeners: FLUSS is for clients, INTERNAL for the servers among themselves. A client learns the
tablet server's address from whichever server it asks first, and for the listener through which it asked.
"""

from __future__ import annotations

import asyncio
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import psutil

from pipelines import processes
from pipelines.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

STOP_SECONDS = 20.0
_ZOOKEEPER = "org.apache.fluss.shaded.zookeeper3.org.apache.zookeeper.server.quorum.QuorumPeerMain"
_COORDINATOR = "org.apache.fluss.server.coordinator.CoordinatorServer"
_TABLET = "org.apache.fluss.server.tablet.TabletServer"

_ZOO_CFG = """\
clientPort={port}
clientPortAddress=127.0.0.1
dataDir={data}
tickTime={tick_ms}
admin.enableServer=false
"""
_SERVER_YAML = """\
zookeeper.address: 127.0.0.1:{zookeeper}
zookeeper.client.session-timeout: {session_ms}ms
bind.listeners: FLUSS://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal}
advertised.listeners: FLUSS://127.0.0.1:{advertised},INTERNAL://127.0.0.1:{internal}
internal.listener.name: INTERNAL
remote.data.dir: {remote}
"""
# There is no other replica. So at a stop no other server can take over, and after a crash the log is cut to the mark of
# what was replicated, which is noted every 5 s by default: rows that came after it are lost though acknowledged.
_TABLET_YAML = """\
tablet-server.id: 0
tablet-server.controlled-shutdown.max-retries: 1
tablet-server.controlled-shutdown.retry-interval: 10ms
log.replica.high-watermark.checkpoint-interval: 500ms
data.dir: {data}
"""


class FlussStackError(RuntimeError):
    """The cluster can't start; says which server, why, and shows the end of its log."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the cluster runs."""

    jars: Path
    """The folder of `fluss-server` and its loggers."""
    home: Path
    java: str = "java"
    heap: str = "256m"
    """Of each of the three."""
    session_timeout: float = 30.0
    """Seconds after which a tablet server that went away without a word counts as gone."""
    advertised_port: int = 0
    """Where clients are told to reach the tablet server, where that is not its own port: a proxy in front of it."""
    ready_timeout: float = 60.0
    """Seconds until all three have to answer."""


class Server(msgspec.Struct, frozen=True):
    """A server that was started: its process and its ports. ZooKeeper has one port only."""

    name: str
    pid: int
    began: float
    port: int
    internal_port: int = 0

    @property
    def process(self) -> psutil.Process | None:
        """The running process; None when it has ended."""
        return processes.alive(self.pid, self.began)


class Cluster(msgspec.Struct, frozen=True):
    """The three servers, as they were started last."""

    zookeeper: Server
    coordinator: Server
    tablet: Server

    @property
    def bootstrap_servers(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.coordinator.port}"


def start(settings: Settings, last: Cluster | None = None) -> Cluster:
    """Start all three, and wait until they answer. On the ports of `last`, if given.

    Raises:
        FlussStackError: no jars, or a server that ended or did not answer; then none is left running.
    """
    if not any(settings.jars.glob("fluss-server-*.jar")):
        msg = f"no Fluss jars in {settings.jars}"
        raise FlussStackError(msg)
    (settings.home / "logs").mkdir(parents=True, exist_ok=True)
    started: list[Server] = []
    try:
        started.append(start_zookeeper(settings, last.zookeeper if last else None))
        started.append(_start_coordinator(settings, started[0], last.coordinator if last else None))
        started.append(start_tablet(settings, started[0], last.tablet if last else None))
        cluster = Cluster(*started)
        await_ready(settings, cluster)
    except BaseException:
        for server in reversed(started):
            stop_server(server)
        raise
    return cluster


def stop(cluster: Cluster) -> None:
    """Stop all three, and keep their data."""
    both = (cluster.tablet, cluster.coordinator)
    for process in filter(None, (server.process for server in both)):
        process.terminate()  # each takes two seconds to say farewell to its connections
    for server in (*both, cluster.zookeeper):
        stop_server(server)


def stop_server(server: Server) -> None:
    """Stop one of them, if it runs."""
    if process := server.process:
        processes.stop(process, STOP_SECONDS)


def start_zookeeper(settings: Settings, last: Server | None = None) -> Server:
    """Start ZooKeeper, and wait until it listens: the others give up early on one that does not."""
    (port,) = free_ports(last.port if last else 0)
    config = settings.home / "zoo.cfg"
    tick_ms = int(settings.session_timeout * 1000 / 4)  # it allows sessions of 2 to 20 ticks
    config.write_text(_ZOO_CFG.format(port=port, data=settings.home / "zookeeper", tick_ms=tick_ms))
    server = _launch(settings, "zookeeper", [_ZOOKEEPER, str(config)], port, 0)
    _await(settings, server, partial(_listens, port))
    return server


def _start_coordinator(settings: Settings, zookeeper: Server, last: Server | None = None) -> Server:
    port, internal = free_ports(*((last.port, last.internal_port) if last else (0, 0)))
    folder = _configured(settings, "coordinator", _server_yaml(settings, zookeeper, port, internal, port))
    return _launch(settings, "coordinator", [_COORDINATOR, "--configDir", str(folder)], port, internal)


def start_tablet(settings: Settings, zookeeper: Server, last: Server | None = None) -> Server:
    """Start the tablet server; `await_ready` says when the coordinator knows it."""
    port, internal = free_ports(*((last.port, last.internal_port) if last else (0, 0)))
    yaml = _server_yaml(settings, zookeeper, port, internal, settings.advertised_port or port)
    yaml += _TABLET_YAML.format(data=settings.home / "data")
    folder = _configured(settings, "tablet", yaml)
    return _launch(settings, "tablet", [_TABLET, "--configDir", str(folder)], port, internal)


def await_ready(settings: Settings, cluster: Cluster) -> None:
    """Wait until coordinator and tablet server answer a real request, and know each other.

    Raises:
        FlussStackError: one of them ended, or that took longer than `ready_timeout`.
    """
    both = {cluster.coordinator.internal_port, cluster.tablet.internal_port}
    for server in (cluster.coordinator, cluster.tablet):
        _await(settings, server, partial(_listens, server.internal_port))
        _await(settings, server, partial(_knows, server.internal_port, both))


def _knows(port: int, ports: set[int]) -> bool:
    """Whether the server at this port knows of the servers at those."""
    return ports <= asyncio.run(_known_to(port))


async def _known_to(port: int) -> set[int]:
    """The ports of all servers that the server at this one knows; none if it can't say."""
    import fluss  # noqa: PLC0415 - pandas comes with it

    try:
        async with asyncio.timeout(5):
            connection = await fluss.FlussConnection.create(fluss.Config({"bootstrap.servers": f"127.0.0.1:{port}"}))
            return {node.port for node in await connection.get_admin().get_server_nodes()}
    except (fluss.FlussError, TimeoutError):
        return set()


def _server_yaml(settings: Settings, zookeeper: Server, port: int, internal: int, advertised: int) -> str:
    return _SERVER_YAML.format(
        zookeeper=zookeeper.port,
        session_ms=int(settings.session_timeout * 1000),
        port=port,
        internal=internal,
        advertised=advertised,
        remote=settings.home / "remote",
    )


def _configured(settings: Settings, name: str, yaml: str) -> Path:
    folder = settings.home / name
    folder.mkdir(exist_ok=True)
    (folder / "server.yaml").write_text(yaml)
    return folder


def _launch(settings: Settings, name: str, main: Sequence[str], port: int, internal: int) -> Server:
    options = [f"-Xmx{settings.heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    opened = "--add-opens=java.base/java.nio=ALL-UNNAMED"  # Arrow in the tablet server
    logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
    command = [settings.java, *options, opened, *logging, "-cp", f"{settings.jars}/*", *main]
    child = processes.start(command, _log(settings, name), temporary=settings.home / "tmp")
    return Server(name, child.pid, psutil.Process(child.pid).create_time(), port, internal)


def _await(settings: Settings, server: Server, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + settings.ready_timeout
    while time.monotonic() < deadline:
        if server.process is None:
            msg = f"Fluss's {server.name} ended while it started. {_log_says(settings, server.name)}"
            raise FlussStackError(msg)
        if ready():
            return
        time.sleep(0.05)
    msg = f"Fluss's {server.name} was not ready in {settings.ready_timeout:g} s. {_log_says(settings, server.name)}"
    raise FlussStackError(msg)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _log(settings: Settings, name: str) -> Path:
    return settings.home / "logs" / f"{name}.log"


def _log_says(settings: Settings, name: str) -> str:
    log = _log(settings, name)
    return f"Its log {log} ends:\n{processes.last_lines(log)}"
