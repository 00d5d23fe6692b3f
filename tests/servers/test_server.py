"""How the tests bring the servers that they need."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipelines.ports import free_port
from tests.servers.server import CHECKOUT, answers, running

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_A_SERVER = """
from tests.servers.server import require_debian

def test_one():
    require_debian("no-such-server", "no-such-package")
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A test that needs a server which nobody has."""
    file = tmp_path / "test_planted.py"
    file.write_text(NEEDS_A_SERVER)
    return file


def run(suite: Path, **environment: str) -> str:
    """What pytest says of it where nothing can be installed: no apt on the PATH."""
    options = ["-q", "-p", "no:cacheprovider", "-c", str(CHECKOUT / "pyproject.toml"), "-p", "tests.conftest"]
    command = [sys.executable, "-m", "pytest", *options, str(suite)]
    variables = os.environ | {"PATH": str(suite.parent), "REQUIRE_SERVERS": ""} | environment
    done = subprocess.run(
        command, cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout + done.stderr


def test_what_is_absent_is_named_with_its_cure_and_its_tests(suite: Path) -> None:
    """Where it can't be installed, the test is skipped; the summary names server, command and test."""
    said = run(suite)
    assert "1 skipped" in said
    assert "1 tests could not run" in said
    cure = "sudo apt-get install --yes --no-install-recommends no-such-package"
    assert f"no-such-server is not installed, so this could not run: {cure}" in said
    assert "::test_one" in said.split(cure, 1)[1]


def test_where_servers_are_required_absence_fails(suite: Path) -> None:
    """With REQUIRE_SERVERS=1, as in CI, no gap is hidden."""
    said = run(suite, REQUIRE_SERVERS="1")
    assert "1 failed" in said
    assert "no-such-server is not installed" in said


def test_a_server_that_ends_at_once_fails_with_its_own_words(tmp_path: Path) -> None:
    """Not after a timeout, and not without its log."""
    with (
        pytest.raises(pytest.fail.Exception, match=r"(?s)ended with 3.*no room"),
        running(
            [sys.executable, "-c", "import sys; print('no room', flush=True); sys.exit(3)"],
            folder=tmp_path,
            ready=lambda: False,
        ),
    ):
        pass


def test_a_server_is_stopped_and_its_port_free_again(tmp_path: Path) -> None:
    """Also one that has to be asked twice is gone when the test ends."""
    port = free_port()
    stubborn = "import http.server, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit())"
    serve = f"{stubborn}; http.server.test(port={port}, bind='127.0.0.1', HandlerClass=http.server.SimpleHTTPRequestHandler)"
    with running([sys.executable, "-c", serve], folder=tmp_path, ready=lambda: answers(port)) as process:
        assert process.poll() is None
    assert process.poll() is not None
    assert not answers(port)
