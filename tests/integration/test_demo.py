"""The demo as a new user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker]


def demo(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    """Start `sagascope demo` with a home of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "demo", *arguments],
        env=os.environ | {"SAGASCOPE_HOME": settings.home, "SAGASCOPE_WINDOW_SECONDS": "5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ours(settings: Settings) -> list[str]:
    """Processes that have the test's home in their command line or environment."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if settings.home in " ".join(process.info["cmdline"] or []) + str(process.environ()):
                found.append(f"{process.pid} {process.info['cmdline']}")
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def test_demo_shows_statistics_stops_everything_and_misses_nothing(local: Settings) -> None:
    """It ends by itself with a table, the history's answer, equal counts, exit code 0, and no process left; twice."""
    for _ in range(2):
        with demo(local, "--for", "20s", "--rate", "10") as process:
            output, _ = process.communicate(timeout=150)
        assert process.returncode == 0, output
        assert "push_firmware" in output
        assert "slowest" in output
        counts = re.search(r"sent ([\d,]+), stored ([\d,]+), missing 0\s", output)
        assert counts is not None, output
        assert counts[1] == counts[2] != "0"
        assert ours(local) == []


def test_ctrl_c_is_a_normal_end(local: Settings) -> None:
    """Ctrl-C during the load still stores what was sent, says the counts, and leaves nothing running."""
    with demo(local, "--rate", "10") as process:
        _await_load(local)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert re.search(r"missing 0\s", output), output
    assert ours(local) == []


def test_a_demo_that_was_killed_leaves_only_the_broker(local: Settings) -> None:
    """After `kill -9` job and load notice that their parent is gone; the broker stays, for `down` or the next demo."""
    with demo(local, "--rate", "10") as process:
        _await_load(local)
        process.kill()
        process.communicate(timeout=30)
    deadline = time.monotonic() + 60
    while len(ours(local)) > 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    left = ours(local)
    assert len(left) == 1, left
    assert "kafka.Kafka" in left[0]
    with demo(local, "--for", "10s", "--rate", "10") as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "down"],
        env=os.environ | {"SAGASCOPE_HOME": local.home},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Kafka stopped" in done.stdout
    assert ours(local) == []


def _await_load(settings: Settings) -> None:
    """Until sagas run and have run for some seconds."""
    log = settings.logs / "workload.log"
    deadline = time.monotonic() + 90
    while not log.exists():
        assert time.monotonic() < deadline, "the load did not start"
        time.sleep(0.2)
    time.sleep(5)
