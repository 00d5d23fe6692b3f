"""The load's fan-out: the sinks whose server is there take part, and what became of the events is told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import redis

from pipelines.fan_out_view import FanOutView, print_sinks
from pipelines.ports import free_port
from pipelines.terminal import make_console
from warehouse.settings import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

pytestmark = pytest.mark.broker


def ask(url: str) -> str:
    """What a page of the load says; tried until it answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http, and our own
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_who_is_there_takes_part_and_who_is_not_is_named(
    settings: Settings, redis_server: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Topic, metrics, audit log and Redis get every event; a server that is named and absent is said, and stops nothing."""
    named = msgspec.structs.replace(
        settings, redis_url=f"redis://127.0.0.1:{redis_server}/0", elasticsearch_url="http://u:s3cret@127.0.0.1:1"
    )
    port, report = free_port(), tmp_path / "report.json"
    options = ["--for", "5s", "--rate", "10", "--fan-out", str(port), "--report", str(report)]
    command = [sys.executable, "-P", "-m", "pipelines", "workload", *options]
    load = subprocess.Popen(command, cwd=CHECKOUT, env={"PATH": "/usr/bin", **named.environment()}, text=True)
    metrics = ask(f"http://127.0.0.1:{port}/metrics")
    line = FanOutView(port).line().plain
    assert load.wait(120) == 0

    assert "sagascope_listener_events_total" in metrics
    assert "Kafka " in line
    assert "RedisCache " in line
    facts = json.loads(report.read_text())
    sinks: dict[str, Any] = {sink["listener"]: sink for sink in facts["sinks"] if "listener" in sink}
    assert set(sinks) == {"KafkaListener", "MetricsSagaListener", "AuditLogListener", "RedisCacheListener"}
    assert {(sink["accepted"], sink["delivered"]) for sink in sinks.values()} == {(facts["sent"], facts["sent"])}
    with redis.Redis(port=redis_server) as client:
        assert sum(1 for _ in client.scan_iter("saga:*")) >= facts["sagas"]["completed"]
    audit = [sys.executable, "-P", "-m", "pipelines", "audit", "verify", str(named.fan_out / "audit.jsonl")]
    verified = subprocess.run(audit, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (verified.returncode, f"whole: {facts['sent']:,} entries" in verified.stdout) == (0, True)

    print_sinks(make_console(), report)
    shown = capsys.readouterr().out
    assert "RedisCache" in shown
    assert "not there: elasticsearch: ConnectionError at http://127.0.0.1:1; SAGASCOPE_ELASTICSEARCH_URL" in shown
    assert "s3cret" not in shown + report.read_text()
