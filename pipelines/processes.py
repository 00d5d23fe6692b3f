"""Processes that Sagascope starts: each has a log, is known by its pid and the moment it began, and is stopped by both."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class ProcessFailedError(RuntimeError):
    """A process ended by itself; the message has the last lines of its log."""


def start(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches only us, with all its output appended to `log`.

    Its standard input is a pipe that nobody writes to: a child that watches it notices when this process is gone.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )


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


def stop(process: psutil.Process, seconds: float) -> None:
    """Ask it to end, with all that it started; after `seconds` make it."""
    try:
        family = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    _, left = psutil.wait_procs(family, timeout=seconds)
    for straggler in left:
        try:
            straggler.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)


def last_lines(log: Path, number: int = 12) -> str:
    """The end of a log, for an error message."""
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=number)).rstrip()
    except FileNotFoundError:
        return "(no log)"
