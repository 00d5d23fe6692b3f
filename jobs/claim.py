"""One analytics job on the tables: this process's lock, and that of its JVM, which may outlive it."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

ORPHAN_SECONDS = 20.0
"""How long a JVM whose Python process was killed may take to see that and end."""


class SecondJobError(RuntimeError):
    """Another job writes the same tables; two of them would store every event twice."""


def claim_tables(settings: Settings) -> None:
    """Be the only analytics job on these tables, until this process ends.

    Raises:
        SecondJobError: there is another one, or the JVM of one that was killed does not end.
    """
    settings.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = os.open(settings.checkpoints / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode().strip()
        msg = f"another analytics job (pid {pid}) writes the tables of {settings.root}: stop it first (kill {pid})"
        raise SecondJobError(msg) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    _await_orphan(settings)


def claim_jvm(settings: Settings, jvm: Any) -> Any:
    """Lock the tables for the JVM itself, too; returns what has to be kept for as long as it runs.

    Raises:
        SecondJobError: another JVM holds them.
    """
    file = jvm.java.io.RandomAccessFile(str(_jvm_lock(settings)), "rw")
    held = file.getChannel().tryLock()
    if held is None:
        msg = f"the JVM of another analytics job writes the tables of {settings.root}: stop it first"
        raise SecondJobError(msg)
    file.setLength(0)
    file.writeBytes(str(jvm.java.lang.ProcessHandle.current().pid()))
    return held


def _await_orphan(settings: Settings) -> None:
    deadline = time.monotonic() + ORPHAN_SECONDS
    with _jvm_lock(settings).open("a+") as lock:
        while True:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # POSIX's, as Java's are
            except (BlockingIOError, PermissionError):
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                lock.seek(0)
                pid = lock.read().strip()
                msg = (
                    f"the JVM (pid {pid}) of an analytics job that was killed still writes the tables of {settings.root}: "
                    f"end it first (kill {pid})"
                )
                raise SecondJobError(msg) from None
            return


def _jvm_lock(settings: Settings) -> Path:
    return settings.checkpoints / "jvm.lock"
