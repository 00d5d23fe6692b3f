"""One analytics job on the tables: this process's lock, and that of its JVM, which may outlive it."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Any

from warehouse.claims import job_lock, jvm_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

ORPHAN_SECONDS = 20.0
"""How long a JVM whose Python process was killed may take to see that and end."""
LOOK_SECONDS = 1.0
"""Longer than anybody takes to see whether a lock is held, which holds it for a moment."""


class SecondJobError(RuntimeError):
    """Another job writes the same tables; two of them would store every event twice."""


def claim_tables(settings: Settings) -> None:
    """Be the only analytics job on these tables, until this process ends.

    Raises:
        SecondJobError: there is another one, or the JVM of one that was killed does not end.
    """
    settings.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = os.open(job_lock(settings), os.O_RDWR | os.O_CREAT, 0o644)
    if not _claim(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), LOOK_SECONDS):
        pid = os.read(lock, 32).decode().strip()
        os.close(lock)
        msg = f"another analytics job (pid {pid}) writes the tables of {settings.root}: stop it first (kill {pid})"
        raise SecondJobError(msg)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    _await_orphan(settings)


def claim_jvm(settings: Settings, jvm: Any) -> Any:
    """Lock the tables for the JVM itself, too; returns what has to be kept for as long as it runs.

    Raises:
        SecondJobError: another JVM holds them.
    """
    file = jvm.java.io.RandomAccessFile(str(jvm_lock(settings)), "rw")
    held: list[Any] = []

    def lock() -> None:
        held.append(file.getChannel().tryLock())
        if held[-1] is None:
            raise BlockingIOError

    if not _claim(lock, LOOK_SECONDS):
        msg = f"the JVM of another analytics job writes the tables of {settings.root}: stop it first"
        raise SecondJobError(msg)
    file.setLength(0)
    file.writeBytes(str(jvm.java.lang.ProcessHandle.current().pid()))
    return held[-1]


def _await_orphan(settings: Settings) -> None:
    with jvm_lock(settings).open("a+") as lock:
        # POSIX's, as Java's are
        if not _claim(lambda: fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB), ORPHAN_SECONDS):
            lock.seek(0)
            pid = lock.read().strip()
            msg = (
                f"the JVM (pid {pid}) of an analytics job that was killed still writes the tables of {settings.root}: "
                f"end it first (kill {pid})"
            )
            raise SecondJobError(msg)


def _claim(lock: Callable[[], None], seconds: float) -> bool:
    """Try to get a lock for so long; whether it was got."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            lock()
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        else:
            return True
