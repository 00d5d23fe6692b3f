"""Who is at work on the tables: a job claims them by locks on files, which end with the process that holds them."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from warehouse.settings import Settings


def job_lock(settings: Settings) -> Path:
    """What the Python process of the analytics job holds, by `flock`; its text is the pid."""
    return settings.checkpoints / "lock"


def jvm_lock(settings: Settings) -> Path:
    """What its JVM holds, which may outlive it, by a POSIX lock as Java takes them; its text is the pid."""
    return settings.checkpoints / "jvm.lock"


def job_pid(settings: Settings) -> str | None:
    """Of the analytics job that has claimed the tables; None where none has."""
    return _holder(job_lock(settings), fcntl.flock)


def jvm_pid(settings: Settings) -> str | None:
    """Of the JVM that commits to the tables; None where none does."""
    return _holder(jvm_lock(settings), fcntl.lockf)


def _holder(lock: Path, claim: Callable[[int, int], None]) -> str | None:
    try:
        with lock.open() as file:
            try:
                claim(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return file.read().strip() or "unknown"
    except FileNotFoundError:
        pass
    return None
