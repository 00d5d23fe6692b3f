"""`sagascope dashboard` as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from warehouse.settings import Settings


@contextmanager
def running(settings: Settings, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it has printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines", "dashboard", "--port", "0", *arguments],
        env=os.environ | {"SAGASCOPE_HOME": settings.home, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+:\d+", line)
            assert found, line
            yield process, found[0]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_within_two_seconds(planted: Settings, number: signal.Signals) -> None:
    """Also while somebody follows a stream and somebody asks the history; exit code 0, and nothing more is said."""
    with running(planted) as (process, address):
        with httpx.stream("GET", f"{address}/api/v1/stream", timeout=30) as stream:
            lines = stream.iter_lines()
            while not next(lines).startswith("data: "):
                pass
            began = time.monotonic()
            process.send_signal(number)
            rest = list(lines)
            assert process.wait(5) == 0
            assert time.monotonic() - began < 2
        assert process.stdout
        assert "Traceback" not in process.stdout.read()
        assert rest is not None


def fail(settings: Settings, *arguments: str, **variables: str) -> str:
    """What it says where it can't start."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "dashboard", *arguments],
        env=os.environ | {"SAGASCOPE_HOME": settings.home} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_keeps_it_from_starting_is_one_line(local: Settings) -> None:
    """A port that is taken, a host that is none of this machine, a door that would be open."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is taken: sagascope dashboard --port {port + 1}" in fail(
            local, "--port", str(port)
        )
    assert "--host takes an address of this machine" in fail(local, "--host", "192.0.2.7", "--token", "x" * 20)
    assert "--behind-proxy" in fail(local, "--host", "0.0.0.0")  # noqa: S104
    assert "at least 16" in fail(local, SAGASCOPE_DASHBOARD_TOKEN="short")  # noqa: S106
