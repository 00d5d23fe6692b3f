"""`sagascope relay`, as an operator uses it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from pipelines.ports import free_port
from sagascope import PostgresOutbox, SQLiteOutbox
from tests.pipelines.relay.conftest import Topic, command, process, until
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.events import SagaEvent
    from sagascope.outbox.storage import OutboxStorage

pytestmark = pytest.mark.broker


async def filled(outbox: OutboxStorage, events: list[SagaEvent]) -> None:
    """Committed when this returns."""
    await outbox.open()
    await outbox.append(events)
    await outbox.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with an outbox of one saga."""
    found = tmp_path / "orders.db"
    asyncio.run(filled(SQLiteOutbox(found), a_run("order-1")))
    return found


def refused(home: Path, *arguments: str) -> str:
    """What it says as it ends with an error, within 30 s and in a line."""
    done = command(home, *arguments)
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("sagascope:")]
    assert "Traceback" not in done.stderr
    assert "geheim" not in done.stderr
    return line


def test_what_it_cannot_work_with_is_said(tmp_path: Path, path: Path, topic: Topic, dsn: str) -> None:
    """Unknown schemes, a table, file or topic that is absent, a user that is: each with the cure, none with a password."""
    there = f"sqlite:///{path}"
    assert "Give --from" in refused(tmp_path, "--to", topic.url)
    assert "allowed: postgresql://" in refused(tmp_path, "--from", "mysql://u:geheim@h/db", "--to", topic.url)
    assert "allowed: kafka://" in refused(tmp_path, "--from", there, "--to", "redis://u:geheim@h")
    assert "there is no file" in refused(tmp_path, "--from", f"sqlite:///{tmp_path}/none.db", "--to", topic.url)
    assert "no table sagascope_outbox" in refused(tmp_path, "--from", dsn, "--to", topic.url)
    assert "no table saga_outbox" in refused(tmp_path, "--from", dsn, "--from-sagaz", "--to", topic.url)
    assert "no table outbox_events" in refused(tmp_path, "--from", there, "--from-sagaz", "--to", topic.url)
    stranger = dsn.replace("postgres:let-me-in", "stranger:geheim")
    assert "lets nobody in" in refused(tmp_path, "--from", stranger, "--to", topic.url)
    assert "can't be read" in refused(tmp_path, "--from", "postgresql://u:gehe/im@h:x/db", "--to", topic.url)
    assert "has no topic none" in refused(tmp_path, "--from", there, "--to", f"kafka://{topic.servers}/none")
    assert "no option of kafka-python" in refused(tmp_path, "--from", there, "--to", f"{topic.url}?retrys=1")


def test_a_database_or_a_broker_that_is_down_is_waited_for_and_said(tmp_path: Path, path: Path) -> None:
    """In a line on standard error, at once; the relay does not end, and a stop ends it."""
    port = free_port()
    for arguments, said in (
        (("--from", f"postgresql://u:geheim@127.0.0.1:{port}/db", "--to", "kafka://127.0.0.1:1/t"), "does not answer"),
        (("--from", f"sqlite:///{path}", "--to", f"kafka://127.0.0.1:{port}/t"), "no Kafka answers"),
        (("--from", f"sqlite:///{path}", "--to", f"amqp://u:geheim@127.0.0.1:{port}/"), "RabbitMQ"),
    ):
        began = time.monotonic()
        with process(tmp_path, *arguments) as relay:
            assert relay.stderr
            line = relay.stderr.readline()
            assert "waiting: " in line
            assert said in line
            assert "geheim" not in line
            assert time.monotonic() - began < 30
            relay.terminate()
            assert relay.wait(12) == 0


def test_status_and_parked(tmp_path: Path, dsn: str, topic: Topic) -> None:
    """What waits, what is parked, and how an operator releases it: by retry, or by discarding."""
    poison = make_event(saga_id="poisoned", attributes={"big": "x" * 50_000})
    run = a_run("poisoned")
    asyncio.run(filled(PostgresOutbox(dsn), [run[0], poison, *run[1:]]))
    source = ("--from", dsn)

    def status() -> dict[str, float]:
        done = command(tmp_path, *source, "status", "--format", "json")
        found: dict[str, float] = json.loads(done.stdout)
        assert done.returncode == (found["parked"] > 0), done.stderr
        return found

    waiting = status()
    assert (waiting["depth"], waiting["parked"], waiting["blocked"]) == (5, 0, 0)
    assert waiting["lag_seconds"] > 0

    async def carry(home: Path, depth: int, parked: int) -> None:
        outbox = PostgresOutbox(dsn)
        with process(home, *source, "--to", topic.url) as relay:
            async with asyncio.timeout(30):
                while (await outbox.backlog())[::2] != (depth, parked):  # noqa: ASYNC110 - another process's doing
                    await asyncio.sleep(0.05)
            relay.terminate()
            assert await asyncio.to_thread(relay.wait, 12) == 0
        await outbox.close()

    asyncio.run(carry(tmp_path, 3, 1))
    assert status()["blocked"] == 3
    [listed] = command(tmp_path, "parked", "list", *source, "--format", "json").stdout.splitlines()
    row = json.loads(listed)
    assert (row["event_id"], row["saga_id"]) == (poison.event_id, "poisoned")
    assert "MessageSizeTooLarge" in row["reason"]

    assert "1 events will be tried again" in command(tmp_path, "parked", "retry", poison.event_id, *source).stdout
    assert status()["depth"] == 4
    asyncio.run(carry(tmp_path, 3, 1))
    for arguments in ((), ("--all", "--saga", "x"), ("17",)):
        assert command(tmp_path, "parked", "discard", *arguments, *source).returncode == 2
    assert "1 events are discarded" in command(tmp_path, "parked", "discard", "--saga", "poisoned", *source).stdout
    assert command(tmp_path, "parked", "discard", poison.event_id, *source).returncode == 1
    asyncio.run(carry(tmp_path, 0, 0))
    assert status() == {"depth": 0, "lag_seconds": 0, "parked": 0, "blocked": 0}


def test_metrics_and_the_line(tmp_path: Path, path: Path, topic: Topic) -> None:
    """Served at the port on the loopback interface; the same numbers as a line of JSON at the end."""
    port = free_port()

    def scraped() -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}

    async def main() -> str:
        arguments = ("--from", f"sqlite:///{path}", "--to", topic.url, "--metrics-port", str(port))
        with process(tmp_path, *arguments) as relay:
            await until(lambda: scraped().get("sagascope_relay_sent_total") == 4)
            found = scraped()
            relay.terminate()
            assert await asyncio.to_thread(relay.wait, 12) == 0
            assert relay.stdout
            line = relay.stdout.read()
        assert found["sagascope_relay_batch_size_count"] == found["sagascope_relay_publish_seconds_count"] == 1
        assert found["sagascope_relay_batch_size_sum"] == 4
        names = ("depth", "lag_seconds", "parked", "blocked", "retried_total", "given_up_total", "purged_total")
        assert {f"sagascope_relay_{name}" for name in names} <= set(found)
        return line

    told = json.loads(asyncio.run(main()))["relay"]
    assert (told["sent"], told["depth"], told["parked"], told["batches"]) == (4, 0, 0, 1)


def test_settings_come_from_the_environment(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every command's do; the command line goes before them, and what is no value is named."""
    monkeypatch.setenv("SAGASCOPE_RELAY_FROM", f"sqlite:///{path}")
    monkeypatch.setenv("SAGASCOPE_RELAY_TO", "redis://x")
    assert "allowed: kafka://" in refused(tmp_path)
    assert json.loads(command(tmp_path, "status", "--format", "json").stdout)["depth"] == 4
    assert "there is no file" in refused(tmp_path, "status", "--from", "sqlite:///none.db")
    monkeypatch.setenv("SAGASCOPE_RELAY_PARKED", "maybe")
    assert "SAGASCOPE_RELAY_PARKED='maybe'" in refused(tmp_path)
