"""Real servers for the tests: installed where that is allowed, started on free ports of the loopback interface, stopped.

A server that is absent is installed where nobody has to be asked (root, or sudo without a password, on Debian or
Ubuntu), which is said in a line. Elsewhere the tests that need it are skipped, naming the command that installs it; with
REQUIRE_SERVERS=1 they fail.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CHECKOUT = Path(__file__).parents[2]
DOWNLOADS = CHECKOUT / ".sagascope" / "servers"
"""Where servers that come as archives are unpacked; kept from one test run to the next."""
READY_SECONDS = 60.0
INSTALL_SECONDS = 600.0


def say(line: str) -> None:
    """Tell whoever runs the tests, past pytest's capturing."""
    print(f"\n{line}", file=sys.__stderr__, flush=True)


ABSENT = "is not installed, so this could not run: "


def absent(what: str, cure: str) -> NoReturn:
    """End the test: skipped with the cure, failed where servers are required."""
    message = f"{what} {ABSENT}{cure}"
    if os.environ.get("REQUIRE_SERVERS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def require_debian(command: str, *packages: str) -> str:
    """The path of a command, out of Debian packages that are installed where that needs no question.

    Args:
        command: A name on the PATH, or an absolute path.
        packages: The packages that bring it.
    """
    if found := shutil.which(command):
        return found
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if prefix := _may_install():
        say(f"Installing {' '.join(packages)} for the tests: {' '.join(install)}")
        said = _run([*prefix, *install])
        if not shutil.which(command):  # the lists of packages may be absent, or old
            said = _run([*prefix, "apt-get", "update"]) + _run([*prefix, *install])
        if found := shutil.which(command):
            return found
        say(f"{' '.join(install)} failed: {said.strip()[-500:]}")
    absent(command, f"sudo {' '.join(install)}")


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        [*command], capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False, timeout=INSTALL_SECONDS
    )
    return done.stdout + done.stderr


def _may_install() -> list[str]:
    """How to run apt without asking anyone, as root or by sudo without a password; empty where that can't be."""
    quietly = ["env", "DEBIAN_FRONTEND=noninteractive"]
    if not shutil.which("apt-get"):
        return []
    if os.geteuid() == 0:
        return quietly
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n", *quietly]
    return []


def state_folder(name: str) -> Path:
    """An empty folder that any user may come to, deleted at the end. pytest's own are for their owner alone."""
    folder = Path(tempfile.mkdtemp(prefix=f"sagascope-{name}-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def answers(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(
    command: Sequence[str],
    *,
    folder: Path,
    ready: Callable[[], bool],
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = READY_SECONDS,
) -> Iterator[subprocess.Popen[bytes]]:
    """The command's process, from when it is ready until it is stopped. `folder` gets its log, and its ownership.

    Args:
        command: What to start, without a shell.
        folder: All that the server keeps; handed to `user`.
        ready: Asked every 50 ms, until it holds; an OSError means not yet.
        user: Who it runs as where the tests run as root: several servers refuse root.
        environment: Added to, or in place of, our own.
        seconds: After so long without being ready the test fails.
    """
    log = folder / "server.log"
    options: dict[str, Any] = {}
    if user and os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            shutil.chown(path, user)
        options = {"user": user, "group": user if user != "nobody" else "nogroup", "extra_groups": []}
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command), cwd=folder, stdout=out, stderr=out, env=os.environ | dict(environment or {}), **options
        )
    try:
        _await_ready(process, ready, log, seconds)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end; kill it after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{process.args!r} ended with {process.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.05)
    pytest.fail(f"{process.args!r} was not ready in {seconds:.0f} s:\n{log.read_text(errors='replace')[-2000:]}")
