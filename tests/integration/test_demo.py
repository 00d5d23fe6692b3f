"""The demo as a new user runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import psutil
import pytest

if TYPE_CHECKING:
    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker]

DEMO = [sys.executable, "-m", "pipelines", "demo", "--rate", "10"]


def environment(settings: Settings) -> dict[str, str]:
    """A home of its own, and short windows."""
    return os.environ | {"SAGASCOPE_HOME": settings.home, "SAGASCOPE_WINDOW_SECONDS": "5", "TERM": "xterm"}


def demo(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    """Start `sagascope demo`."""
    return subprocess.Popen(
        [*DEMO, *arguments],
        env=environment(settings),
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


def test_demo_misses_nothing_and_a_second_run_goes_on(local: Settings) -> None:
    """It ends by itself with statistics, the history's answer, equal counts, exit code 0, and no process left; twice."""
    for seconds in ("20s", "5s"):
        with demo(local, "--for", seconds) as process:
            output, _ = process.communicate(timeout=150)
        assert process.returncode == 0, output
        assert "slowest" in output
        counts = re.search(r"sent ([\d,]+), stored ([\d,]+), missing 0\s", output)
        assert counts is not None, output
        assert counts[1] == counts[2] != "0"
        assert ours(local) == []
        if seconds == "20s":
            assert re.search(r"loan-origination +\w+ +\d+ +\d+\.\d%", output.split("DuckDB over")[0]), output


def _live(address: str) -> dict[str, Any]:
    """The newest frame of the dashboard, once it holds an event."""
    deadline = time.monotonic() + 30
    while True:
        with suppress(OSError), urlopen(f"{address}/api/v1/live", timeout=5) as answer:  # noqa: S310 - this machine's
            frame: dict[str, Any] = json.load(answer)
            if frame["freshness"]["newest_event_at"]:
                return frame
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_a_terminal_shows_the_live_table_and_ctrl_c_ends_it(local: Settings) -> None:
    """In a terminal the table is redrawn; Ctrl-C still stores what was sent, says the counts, leaves nothing running."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        DEMO, env=environment(local), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        shown = _read_until(master, process, b"First statistics after", 120)
        assert b"Ctrl-C ends it" in shown
        address = re.search(rb"Dashboard: \S*?(http://127.0.0.1:\d+)", shown)
        assert address, shown
        assert _live(address[1].decode())["series"]["started"]
        with demo(local, "--for", "5s") as second:
            refused, _ = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"a demo (pid {process.pid}) runs in" in refused
        process.send_signal(signal.SIGINT)
        shown = _read_until(master, process, b"Events of this run", 120) + _read_until(master, process, None, 60)
        assert process.wait(30) == 0, shown.decode()
    os.close(master)
    assert re.search(r"missing 0\s", re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()))
    assert ours(local) == []


def test_ctrl_c_during_set_up_leaves_nothing(local: Settings) -> None:
    """Before there is anything to account for, Ctrl-C stops what was started and exits with 130."""
    with demo(local) as process:
        log = local.logs / "kafka.log"
        deadline = time.monotonic() + 60
        while not log.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert ours(local) == []


def test_a_demo_that_was_killed_leaves_only_the_broker(local: Settings) -> None:
    """After `kill -9` job and load notice that their parent is gone; the broker stays, for `down` or the next demo."""
    with demo(local) as process:
        deadline = time.monotonic() + 90
        while not any("jobs.analytics" in found for found in ours(local)):
            assert time.monotonic() < deadline, "the job did not start"
            time.sleep(0.2)
        time.sleep(10)
        process.kill()
        process.communicate(timeout=30)
    deadline = time.monotonic() + 90
    while len(ours(local)) > 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    left = ours(local)
    assert len(left) == 1, left
    assert "kafka.Kafka" in left[0]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "down"],
        env=environment(local),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Kafka stopped" in done.stdout
    assert ours(local) == []


def _read_until(terminal: int, process: subprocess.Popen[bytes], mark: bytes | None, seconds: float) -> bytes:
    """What is shown until `mark` appears; with None, until the process has closed the terminal."""
    shown, deadline = b"", time.monotonic() + seconds
    while mark is None or mark not in shown:
        assert time.monotonic() < deadline, shown.decode(errors="replace")
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                assert mark is None, shown.decode(errors="replace")
                return shown
        elif mark is None and process.poll() is not None:
            return shown
    return shown
