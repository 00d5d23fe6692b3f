"""A broker that is away, topics that are set otherwise, clocks that run ahead: found, and the cure that is printed cures."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, NewTopic
from typer.testing import CliRunner

from pipelines import stack
from pipelines.cli import app
from pipelines.doctor import kafka
from pipelines.doctor.findings import Finding, Level
from tests.pipelines.doctor.conftest import event, faults, found, look, make_tables, send, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warehouse.settings import Settings

pytestmark = pytest.mark.broker


@pytest.fixture
def admin(broker: str) -> Iterator[KafkaAdminClient]:
    """To change topics at the broker."""
    with closing(KafkaAdminClient(bootstrap_servers=broker)) as client:
        yield client


def test_a_kafka_that_does_not_answer(local: Settings) -> None:
    """The user's own, at an address where nothing listens: what is wrong is the setting or that Kafka."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        away = msgspec.structs.replace(local, bootstrap_servers=address)
        found(away, "kafka", Level.FAULT, f"SAGASCOPE_BOOTSTRAP_SERVERS={address} does not answer", "start it, or set")


def test_the_local_broker_stopped_and_killed(local: Settings) -> None:
    """What `sagascope down` stopped is no fault; what ended by itself is."""
    broker = stack.up(local)
    try:
        found(local, "kafka", Level.OK, f"the local broker .pid {broker.pid}, port {broker.port}. answers", "")
        stack.down(local)
        found(local, "kafka", Level.WARNING, "was stopped", "`sagascope up` starts it")
        broker = stack.up(local)
        os.kill(broker.pid, signal.SIGKILL)
        while broker.process:
            time.sleep(0.05)
        found(
            local,
            "kafka",
            Level.FAULT,
            rf"\(pid {broker.pid}\) has ended by itself",
            "read .*kafka.log; `sagascope up`",
        )
    finally:
        stack.down(local)


@pytest.mark.parametrize(
    ("change", "level", "what"),
    [
        ("retention.ms=3600000", Level.FAULT, "retention.ms=3600000: brokers delete by the records' own timestamps"),
        ("retention.ms=604800000", Level.WARNING, "retention.ms=604800000: brokers delete"),
        ("cleanup.policy=compact", Level.FAULT, "cleanup.policy=compact: of each saga only its last event stays"),
        ("message.timestamp.type=LogAppendTime", Level.WARNING, "message.timestamp.type=LogAppendTime"),
        ("max.message.bytes=1000", Level.WARNING, "max.message.bytes=1000: larger records"),
    ],
)
def test_a_topic_set_otherwise(
    settings: Settings, admin: KafkaAdminClient, change: str, level: Level, what: str
) -> None:
    """Each setting is found, and its cure, typed as it is printed, sets it right."""
    key, value = change.split("=")
    admin.alter_configs([ConfigResource("TOPIC", settings.topic, {key: value})])
    one = found(settings, "topic", level, what, rf"configs alter -r topic -n {settings.topic} -c {key}=")
    run_cure(one)
    assert not [other for other in kafka.topics(settings) if key in other.what]


def test_a_definitions_topic_that_forgets(settings: Settings, admin: KafkaAdminClient) -> None:
    """Definitions are sent once: the topic has to be compacted."""
    own = msgspec.structs.replace(settings, definitions_topic=f"{settings.topic}-definitions")
    found(own, "topic", Level.FAULT, f"there is no topic {own.definitions_topic}", "`sagascope up` makes it")
    admin.create_topics([NewTopic(own.definitions_topic, 1, 1)])
    admin.wait_for_topics([own.definitions_topic])
    one = found(own, "topic", Level.WARNING, "cleanup.policy=delete: definitions", "cleanup.policy=compact")
    run_cure(one)
    found(own, "topic", Level.OK, f"{own.definitions_topic}: 1 partition, compacted", "")


def test_a_topic_that_is_not_there(settings: Settings) -> None:
    """One fault, and its cure makes it."""
    other = msgspec.structs.replace(settings, topic=f"{settings.topic}-2")
    make_tables(other)
    found(other, "topic", Level.FAULT, f"there is no topic {other.topic}", "`sagascope up` makes it")
    assert len(faults(look(other)[1])) == 1
    done = CliRunner().invoke(app, ["up"], env=other.environment())
    assert done.exit_code == 0
    assert look(other)[0] == 0


def run_cure(one: Finding) -> None:
    """Type the command of a cure."""
    [command] = re.findall("`(.*)`", one.cure)
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def test_records_deleted_before_they_were_stored(settings: Settings, admin: KafkaAdminClient) -> None:
    """A fault where the tables end before the topic begins; with empty tables, it may be meant."""
    make_tables(settings)
    send(settings, *(event(0, "orders") for _ in range(10)))
    admin.delete_records({TopicPartition(settings.topic, 0): 8})
    found(settings, "topic", Level.WARNING, "partition 0 of .* begins at offset 8: what was before", "import it")
    store(settings, 0, 1, 2, 3)
    what = "begins at offset 8, and the tables end at 3: 4 records were deleted unseen"
    found(settings, "topic", Level.FAULT, what, "raise retention.bytes")
    store(settings, 7)
    assert [one.level for one in kafka.offsets(settings)] == [Level.OK]


def test_a_topic_that_keeps_less_than_is_still_to_be_stored(settings: Settings, admin: KafkaAdminClient) -> None:
    """Before it is too late."""
    make_tables(settings)
    admin.alter_configs([ConfigResource("TOPIC", settings.topic, {"retention.bytes": "100000"})])
    send(settings, *(os.urandom(10_000) for _ in range(9)))
    what = r"about 8\d\.\d KiB of partition 0 .* are not stored yet, and the topic keeps 97\.7 KiB"
    found(settings, "topic", Level.WARNING, what, "sagascope analyze.*retention.bytes=-1")
    store(settings, *range(9))
    assert [one.level for one in kafka.offsets(settings)] == [Level.OK]


def test_a_clock_that_runs_ahead(settings: Settings) -> None:
    """The services are named; where their events are already rejected it is a fault."""
    make_tables(settings)
    send(settings, event(0, "orders"), event(-100, "slow"), b"no event")
    found(settings, "clock", Level.OK, "the newest 2 events of .*: none is more than 5 s ahead", "")
    send(settings, event(60, "stock"))
    found(
        settings,
        "clock",
        Level.WARNING,
        r"1 are ahead, by up to \d\d s, and close windows too early \(stock\)$",
        "by NTP",
    )
    send(settings, event(600, "payments"))
    found(settings, "clock", Level.FAULT, r"1 are over 5 minutes ahead .* rejected \(payments\)$", "by NTP")
