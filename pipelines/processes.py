"""Processes that Sagascope starts: each has a log, is known by its pid and the moment it began, and is stopped by both."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

LOGS_KEPT = 3
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ProcessFailedError(RuntimeError):
    """A process ended by itself; the message has the last lines of its log."""


def start(
    command: Sequence[str], log: Path, *, temporary: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches only us, with all its output in a new `log`.

    The log of the run before is kept as `log.1`, and so on. Temporary files go to the folder `temporary`. Standard input
    is a pipe that nobody writes to: a child that watches it notices when this process is gone.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(parents=True, exist_ok=True)
    rotate(log)
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(temporary)} | dict(environment or {}),
            start_new_session=True,
        )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that end a process wait until the block is done: what it starts is noted before a handler may raise."""
    if threading.current_thread() is not threading.main_thread():  # no handler runs there
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda one, _: came.append(one)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for one in came:
            signal.raise_signal(one)


def rotate(log: Path) -> None:
    """Make room for a new log; the newest ones before it are kept as .1, .2 and .3."""
    for number in range(LOGS_KEPT, 0, -1):
        older = log.with_name(f"{log.name}.{number - 1}") if number > 1 else log
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number}"))


def alive(pid: int, began: float) -> psutil.Process | None:
    """The process of that pid if it is still the one that began then: pids are used again."""
    if not pid:
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - began) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def stop(process: psutil.Process, seconds: float) -> bool:
    """Ask it to end; after `seconds` end it and all that it started. Says whether it ended by itself."""
    try:
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return True
    _, left = psutil.wait_procs(family, timeout=seconds)
    _kill(left)
    return not left


def stop_child(child: subprocess.Popen[bytes], seconds: float) -> int:
    """The same for a child of this process; returns its exit code, negative where it had to be killed."""
    if child.poll() is None:
        descendants = psutil.Process(child.pid).children(recursive=True)
        child.terminate()
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
        _, left = psutil.wait_procs(descendants, timeout=5)
        _kill(left)
    return child.wait()


def last_lines(log: Path, number: int = 12) -> str:
    """The end of a log, for an error message."""
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=number)).rstrip()
    except FileNotFoundError:
        return "(no log)"


def _kill(stragglers: Sequence[psutil.Process]) -> None:
    for straggler in stragglers:
        try:
            straggler.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(stragglers, timeout=5)
