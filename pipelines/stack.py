"""The local stack: a real Kafka broker (KRaft, one node) from its Maven jars, as a process of its own.

Its data, configuration and log live under `<home>/kafka` and `<home>/logs/kafka.log`; ports are free ones, kept from
one start to the next where they are still free.
"""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import subprocess
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import psutil
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from pipelines import processes
from pipelines.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from warehouse.settings import Settings

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
HEAP = "384m"
DISK_NEEDED = 1 << 30
STOPPED = 0
"""The pid of a broker that `down` has stopped: only its ports are still of use."""

TOPIC_CONFIG = {
    "retention.ms": "-1",  # by bytes, not by time: history is imported with old timestamps, and outages last
    "retention.bytes": str(8 << 30),
    "segment.bytes": str(256 << 20),
    "message.timestamp.type": "CreateTime",
}
DEFINITIONS_TOPIC_CONFIG = {"cleanup.policy": "compact"}

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""

_LOG4J = """\
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = Console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %m (%c{1})%n%throwable{8}
"""


class StackError(RuntimeError):
    """The stack can't start, or something of it ended; says which, why, and what to do."""


class Broker(msgspec.Struct, frozen=True):
    """The broker that was started last: its process and its ports."""

    pid: int
    began: float
    port: int
    controller_port: int

    @property
    def process(self) -> psutil.Process | None:
        """The running process; None when it has ended."""
        return processes.alive(self.pid, self.began)

    @property
    def bootstrap_servers(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.port}"


def up(settings: Settings) -> Broker:
    """Start the broker unless it runs, wait until it answers a real request, and make the topics unless they exist.

    Raises:
        StackError: no Java, no jars, no disk, or a broker that ended or did not answer; with the log's last lines.
    """
    with _only_one(settings):
        broker = status(settings)
        if broker is None or broker.process is None:
            broker = _start(settings, broker)
        _await_ready(settings, broker)
        make_topic(msgspec.structs.replace(settings, bootstrap_servers=broker.bootstrap_servers))
        return broker


def down(settings: Settings) -> bool:
    """Stop the broker and keep its data; says whether one was running."""
    with _only_one(settings):
        broker = status(settings)
        process = broker.process if broker else None
        if broker is not None and process is not None:
            processes.stop(process, STOP_SECONDS)
            _remember(settings, msgspec.structs.replace(broker, pid=STOPPED))
        return process is not None


def status(settings: Settings) -> Broker | None:
    """The broker started last, running or not; None before the first."""
    try:
        return msgspec.json.decode(_state_file(settings).read_bytes(), type=Broker)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def bootstrap_servers(settings: Settings) -> str:
    """The user's Kafka if the settings name one, else that of the local broker.

    Raises:
        StackError: neither; with the log's last lines where the broker has ended by itself.
    """
    if settings.bootstrap_servers:
        return settings.bootstrap_servers
    broker = status(settings)
    if broker is None:
        msg = "no Kafka: start the local one with `sagascope up`, or set SAGASCOPE_BOOTSTRAP_SERVERS=host:port"
        raise StackError(msg)
    if report := crash_report(settings):
        raise StackError(report)
    return broker.bootstrap_servers


def crash_report(settings: Settings) -> str | None:
    """What to tell of a broker that does not run; None while it does, and before the first."""
    broker = status(settings)
    if broker is None or broker.process is not None:
        return None
    if broker.pid == STOPPED:
        return "the Kafka broker was stopped: `sagascope up` starts it"
    return f"the Kafka broker (pid {broker.pid}) has ended. {_log_says(settings)}"


def _start(settings: Settings, last: Broker | None) -> Broker:
    java, folder = find_java(), settings.root / "kafka"
    jars = settings.jars / "kafka"
    if not any(jars.glob("kafka_*.jar")):
        msg = f"no Kafka jars in {jars}: run `make setup`"
        raise StackError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < DISK_NEEDED:
        msg = (
            f"{free / 2**20:,.0f} MiB free for {folder}, 1024 needed: free some, or set SAGASCOPE_HOME to another disk"
        )
        raise StackError(msg)
    port, controller_port = free_ports(*((last.port, last.controller_port) if last else (0, 0)))
    config, logging = folder / "server.properties", folder / "log4j2.properties"
    config.write_text(_PROPERTIES.format(port=port, controller_port=controller_port, data=folder / "data"))
    logging.write_text(_LOG4J)
    options = [java, f"-Xmx{HEAP}", f"-Xms{HEAP}", f"-Dlog4j2.configurationFile={logging}", "-cp", f"{jars}/*"]
    if not (folder / "data" / "meta.properties").exists():
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [*options, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"Kafka could not format {folder / 'data'}: {(done.stdout + done.stderr).strip()[-800:]}"
            raise StackError(msg)
    with processes.uninterrupted():
        child = processes.start([*options, "kafka.Kafka", str(config)], _log(settings), temporary=settings.temporary)
        broker = Broker(child.pid, psutil.Process(child.pid).create_time(), port, controller_port)
        _remember(settings, broker)
    return broker


def _await_ready(settings: Settings, broker: Broker) -> None:
    deadline = time.monotonic() + READY_SECONDS
    error: Exception | None = None
    while time.monotonic() < deadline:
        if broker.process is None:
            msg = f"the Kafka broker ended while it started. {_log_says(settings)}"
            raise StackError(msg)
        try:
            with _admin(broker.bootstrap_servers) as admin:
                admin.describe_cluster()
        except (KafkaError, OSError) as refused:
            error = refused
            time.sleep(0.2)
        else:
            return
    if process := broker.process:
        processes.stop(process, STOP_SECONDS)
    msg = f"the Kafka broker did not answer within {READY_SECONDS:.0f} s ({error}). {_log_says(settings)}"
    raise StackError(msg)


def make_topic(settings: Settings) -> None:
    """Make the topic of the events, and that of the definitions, at the Kafka of the settings, unless they exist."""
    wanted = (
        NewTopic(settings.topic, settings.partitions, 1, topic_configs=TOPIC_CONFIG),
        NewTopic(settings.definitions_topic, 1, 1, topic_configs=DEFINITIONS_TOPIC_CONFIG),
    )
    with _admin(settings.bootstrap_servers) as admin:
        existing = admin.list_topics()
        for topic in wanted:
            if topic.name in existing:
                continue
            try:
                admin.create_topics([topic])
            except TopicAlreadyExistsError:
                continue
            admin.wait_for_topics([topic.name])


@contextmanager
def _admin(servers: str) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=servers, bootstrap_timeout_ms=2_000, request_timeout_ms=10_000)
    try:
        yield admin
    finally:
        admin.close()


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Two `up`s at once start one broker."""
    settings.root.mkdir(parents=True, exist_ok=True)
    with (settings.root / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_java() -> str:
    """The `java` to run: of JAVA_HOME, else of the PATH.

    Raises:
        StackError: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        where = f"in JAVA_HOME={home}" if home else "on the PATH"
        msg = f"no java {where}: install a JDK 17 (Debian: apt install openjdk-17-jdk-headless)"
        raise StackError(msg)
    return java


def _remember(settings: Settings, broker: Broker) -> None:
    """All or nothing: a reader never finds half a file."""
    file = _state_file(settings)
    half = file.with_suffix(".new")
    half.write_bytes(msgspec.json.encode(broker))
    half.replace(file)


def _state_file(settings: Settings) -> Path:
    return settings.root / "kafka" / "broker.json"


def _log(settings: Settings) -> Path:
    return settings.logs / "kafka.log"


def _log_says(settings: Settings) -> str:
    said = f"Its log {_log(settings)} ends:\n{processes.last_lines(_log(settings))}"
    if "No space left on device" in said:
        return f"The disk of {settings.root} is full: free some, then `sagascope up`. {said}"
    return said
