"""A query that takes too long is ended by Ctrl-C, as a user does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil

from warehouse.catalog import open_catalog

if TYPE_CHECKING:
    from warehouse.settings import Settings

ENDLESS = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3"


def test_a_long_query_ends_at_once_when_it_is_interrupted(local: Settings) -> None:
    """Also one that would compute for hours in one piece: no traceback, and an exit code that is not 0."""
    open_catalog(local).close()
    asked = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "sql", ENDLESS],
        env=os.environ | local.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _await_computing(asked.pid)
        asked.send_signal(signal.SIGINT)
        out, errors = asked.communicate(timeout=60)
    finally:
        asked.kill()
    assert asked.returncode not in {0, -signal.SIGKILL}
    assert "Traceback" not in out + errors
    assert out == ""


def _await_computing(pid: int) -> None:
    """Wait until a second of its time went by in which it only computed: it opens no file any more."""
    process, deadline = psutil.Process(pid), time.monotonic() + 120
    since, files = 0.0, -1
    while process.cpu_times().user < since + 1 or files < 0:
        if (now := process.io_counters().read_count) != files:
            since, files = process.cpu_times().user, now
        assert time.monotonic() < deadline
        time.sleep(0.02)
