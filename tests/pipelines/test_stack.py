"""The local broker: up, down, status, and what is said when it dies. A real one each time."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipelines import processes, stack
from warehouse import parity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warehouse.settings import Settings

pytestmark = pytest.mark.broker


@pytest.fixture
def own(local: Settings) -> Iterator[Settings]:
    """Settings whose broker is stopped afterwards, whatever happened."""
    yield local
    stack.down(local)


def test_up_down_and_up_again_keeps_the_data(own: Settings) -> None:
    """After `up` a real request is answered; after `down` no process and no open port is left; the topic survives."""
    broker = stack.up(own)
    assert broker.process is not None
    at = msgspec.structs.replace(own, bootstrap_servers=stack.bootstrap_servers(own))
    producer = KafkaProducer(bootstrap_servers=at.bootstrap_servers)
    producer.send(own.topic, b"{}", partition=1).get(10)
    producer.close()

    assert stack.up(own) == broker, "a second up starts nothing"
    assert stack.crash_report(own) is None
    assert stack.down(own)
    assert not stack.down(own)
    assert processes.alive(broker.pid, broker.began) is None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", broker.port)) != 0
    with pytest.raises(stack.StackError, match="sagascope up"):
        stack.bootstrap_servers(own)

    again = stack.up(own)
    assert (again.port, again.controller_port) == (broker.port, broker.controller_port)
    assert parity.read_ends(at) == {0: 0, 1: 1}


def test_two_ups_at_once_start_one_broker(own: Settings) -> None:
    """Both return the same process."""
    found: list[stack.Broker] = []
    threads = [threading.Thread(target=lambda: found.append(stack.up(own))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_crash_is_reported_with_the_end_of_the_log(own: Settings) -> None:
    """A broker that was killed is named with its pid and its log's last lines, and `up` starts a new one."""
    broker = stack.up(own)
    assert broker.process is not None
    broker.process.kill()
    deadline = time.monotonic() + 10
    while broker.process is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    report = stack.crash_report(own)
    assert report is not None
    assert f"(pid {broker.pid}) has ended" in report
    assert "QuorumController" in report
    with pytest.raises(stack.StackError, match="has ended"):
        stack.bootstrap_servers(own)
    assert stack.up(own).pid != broker.pid


def test_a_port_that_was_taken_is_left_to_its_owner(own: Settings) -> None:
    """Where another process took the broker's port meanwhile, the broker moves to a free one."""
    first = stack.up(own)
    stack.down(own)
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind(("127.0.0.1", first.port))
        taker.listen()
        second = stack.up(own)
        assert second.port != first.port


def test_a_broker_that_can_not_start_says_why(own: Settings) -> None:
    """Data that is no Kafka's: one error with what Kafka said, and nothing left running."""
    stack.up(own)
    stack.down(own)
    data = own.root / "kafka" / "data"
    (data / "meta.properties").write_text("version=1\ncluster.id=someone-elses\nnode.id=9\n")
    with pytest.raises(stack.StackError, match="ended while it started") as caught:
        stack.up(own)
    assert "node.id" in str(caught.value) or "node id" in str(caught.value).lower()
    broker = stack.status(own)
    assert broker is not None
    assert broker.process is None


def test_what_is_missing_is_named_with_its_cure(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No jars, no Java, no room on the disk: each one line with what to do."""
    settings = local
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(stack.StackError, match=r"no java in JAVA_HOME=/nowhere: install a JDK 17"):
        stack.up(settings)
    monkeypatch.setattr(stack, "find_java", lambda: "java")  # wherever this machine has it
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 5 << 20))
        with pytest.raises(stack.StackError, match=r"5 MiB free for .*, 1024 needed: free some"):
            stack.up(settings)
    monkeypatch.setattr(type(settings), "jars", settings.root / "no-jars")
    with pytest.raises(stack.StackError, match=r"no Kafka jars in .*: run `make setup`"):
        stack.up(settings)


def test_the_topic_keeps_by_bytes(settings: Settings) -> None:
    """Old timestamps are no reason to delete: a record of 1970 is still there."""
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    producer.send(settings.topic, b"old", partition=0, timestamp_ms=1).get(10)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False)
    consumer.assign([TopicPartition(settings.topic, 0)])
    consumer.seek_to_beginning()
    deadline = time.monotonic() + 10
    records: list[bytes] = []
    while not records and time.monotonic() < deadline:
        records = [record.value for batch in consumer.poll(timeout_ms=500).values() for record in batch]
    consumer.close()
    assert records == [b"old"]
