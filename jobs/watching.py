"""Watches a running job: says each change and each stall, stops it with a savepoint, and tells why it ended."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sqlite3
import sys
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from jobs.flink import flink_log, root_cause
from jobs.resume import completed_checkpoints

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from warehouse.settings import Settings

POLL_SECONDS = 0.25
LOOK_SECONDS = 2.0
"""How often it is looked at what Flink does not tell: whether Kafka is there, whether checkpoints complete."""
SAVEPOINT_SECONDS = 30
STALL_SECONDS = 30.0
"""After how long without a checkpoint the job is said to be stalled; ten intervals, where that is longer."""
STALLS = 3
"""After how many times that long it is given up: it may have lost its task manager, which a mini cluster does not replace."""
FIRST_SECONDS = 600.0
"""How long the first checkpoint may take: a job that restores a large state completes none before."""
LEAST_FREE_BYTES = 16 << 20
RESTARTING = ("restarting", "failing")
RESTORING = ("restor", "magic number", "state handle", "failed to load")
"""What Flink's exceptions speak of where a checkpoint can't be read."""
CAUSE_BYTES = 64 * 1024
"""At the end of the log, where the last root cause is looked for."""
EXCEPTION = re.compile(r"^(?:Caused by: )?((?:\w+\.)+[\w$]*(?:Exception|Error)\b.*)$", re.MULTILINE)
OUT_OF_RANGE = "OffsetOutOfRangeException"
"""Kafka's, where the records to be read next are deleted."""


class CanNotRestoreError(RuntimeError):
    """Flink can't read the checkpoint that the job was to resume from; says why."""


class StalledError(RuntimeError):
    """The job runs, but completes no checkpoint any more; says for how long, and why, where that is known."""


class UnreadDeletedError(RuntimeError):
    """The topic no longer has what the job was to read next; says which partition and offset, and the cure."""


class Watch:
    """Over one run of the job, from one checkpoint."""

    def __init__(self, client: Any, settings: Settings, checkpoint: Path | None) -> None:
        self._client = client
        self._settings = settings
        self._checkpoint = checkpoint
        self._log = flink_log(settings)
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        self._outcome = client.get_job_execution_result()
        self._told = ""
        self._newest = checkpoint
        self._completed = time.monotonic()
        self._stall_seconds = max(STALL_SECONDS, settings.checkpoint_interval_ms / 100)
        self._look_at = 0.0
        self._hindrance = ("", "")

    def until(self, stop: threading.Event) -> None:
        """Say each change of the job's status until it is finished, or stop it when it is time.

        Raises:
            CanNotRestoreError: the checkpoint is damaged, and Flink tries it over and over; the job is cancelled.
            StalledError: it completes no checkpoint any more.
            UnreadDeletedError: retention has deleted records that it has not read yet; the job is cancelled.
            Exception: PyFlink's or Py4J's, with the Java stack trace as its text: it failed.
        """
        while not self._outcome.done() and not stop.wait(POLL_SECONDS):
            try:
                status = self._client.get_job_status().result().name.lower()
            except Exception:  # noqa: BLE001, S112 - the mini cluster goes away with its job, perhaps just now
                continue
            if status in RESTARTING:
                self._judge_restart()
            self._tell(status)
        if stop.is_set() and not self._outcome.done():
            self._stop()
            return
        self._outcome.result()
        say("finished")

    def _judge_restart(self) -> None:
        """Cancel the job, and raise, where it would restart for ever."""
        if OUT_OF_RANGE in (cause := last_cause(self._log, self._begin)):
            self._cancel()
            msg = (
                f"records were deleted from the topic before the job has read them ({cause}): keep it longer "
                "(retention.bytes); `sagascope analyze --rebase` goes on without them"
            )
            raise UnreadDeletedError(msg)
        if damage := self._damage():
            self._cancel()
            raise CanNotRestoreError(damage)

    def _tell(self, status: str) -> None:
        """Say a new status, or what hinders a job that runs."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._hindrance = self._hinders()
        hindrance, reason = self._hindrance
        if status == "running" and hindrance:
            status = hindrance
        if status in RESTARTING:
            reason = last_cause(self._log, self._begin)
        if status != self._told:
            with suppress(OSError):  # a disk that is full: it is said as soon as there is room
                say(status, **({"reason": reason} if reason else {}))
                self._told = status

    def _hinders(self) -> tuple[str, str]:
        """What a status that says `running` does not tell, and why; empty where nothing does.

        Raises:
            StalledError: it has been so for too long.
        """
        newest = next(iter(completed_checkpoints(self._settings.checkpoints)), None)
        if newest != self._newest:
            self._newest, self._completed = newest, time.monotonic()
        seconds = time.monotonic() - self._completed
        if seconds > self._stall_seconds:
            why = self._stalled_by() or last_cause(self._log, self._begin) or f"why is not known; {self._log} may tell"
            msg = f"no checkpoint completed for {seconds:.0f} s: {why}"
            at_first = FIRST_SECONDS if newest == self._checkpoint else 0.0
            if seconds > max(STALLS * self._stall_seconds, at_first):
                self._cancel()
                raise StalledError(msg)
            return "stalled", msg
        unreachable = unreachable_kafka(self._settings.bootstrap_servers)
        return ("waiting", unreachable) if unreachable else ("", "")

    def _stalled_by(self) -> str:
        """What on this machine lets no commit through; empty where nothing does."""
        settings = self._settings
        if shutil.disk_usage(settings.root).free < LEAST_FREE_BYTES:
            return f"the disk of {settings.root} is full"
        with closing(sqlite3.connect(settings.catalog_file, timeout=0.0, isolation_level=None)) as catalog:
            try:
                catalog.execute("BEGIN IMMEDIATE")
                catalog.execute("ROLLBACK")
            except sqlite3.OperationalError as error:
                return f"the catalog {settings.catalog_file} can't be written ({error}): stop what holds it"
        return ""

    def _stop(self) -> None:
        """Stop with a savepoint and without draining: a drained half window would be emitted a second time."""
        from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set

        jvm = get_gateway().jvm
        native = jvm.org.apache.flink.core.execution.SavepointFormatType.NATIVE
        folder = self._settings.checkpoints.as_uri()
        try:
            # PyFlink's own method lets no format be chosen; the canonical one writes every key by itself.
            stopping = self._client._j_job_client.stopWithSavepoint(False, folder, native)  # noqa: FBT003, SLF001
            path = stopping.get(SAVEPOINT_SECONDS, jvm.java.util.concurrent.TimeUnit.SECONDS)
            self._outcome.result()
            say("stopped", savepoint=str(path).removeprefix("file:"))
        except Exception as error:  # noqa: BLE001 - it may be restarting, the disk may be full
            self._cancel()
            say("stopped", reason=f"without a savepoint ({root_cause(str(error))}): the newest checkpoint stands")

    def _cancel(self) -> None:
        with suppress(
            Exception
        ):  # it may have ended meanwhile, or hang; the process is about to end, and its JVM with it
            self._client.cancel()
            deadline = time.monotonic() + SAVEPOINT_SECONDS
            while not self._outcome.done() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def _damage(self) -> str:
        """Why the job, which restarts, can't read its checkpoint; empty where that is not why."""
        if self._checkpoint is None:
            return ""
        trace = _logged(self._log, self._begin)
        return root_cause(trace) if is_of_restoring(self._settings, self._checkpoint, trace) else ""


def is_of_restoring(settings: Settings, checkpoint: Path, trace: str) -> bool:
    """The exceptions tell of reading a checkpoint, and the job has completed none of its own since it began."""
    own = completed_checkpoints(settings.checkpoints)[:1] != [checkpoint]
    told = "\n".join(
        line for line in trace.lower().splitlines() if "exception" in line and not line.startswith("\tat ")
    )
    return not own and any(word in told for word in RESTORING)


def last_cause(log: Path, begin: int) -> str:
    """The last root cause that the JVM's log tells of from byte `begin` on: of a restart Flink's client says nothing.

    Empty where it tells of no exception.
    """
    causes = EXCEPTION.findall(_logged(log, begin, CAUSE_BYTES))
    return causes[-1] if causes else ""


def _logged(log: Path, begin: int, most: int = 1 << 30) -> str:
    with log.open("rb") as file:
        size = log.stat().st_size
        file.seek(max(begin if size >= begin else 0, size - most))  # a smaller one was rolled over
        return file.read().decode("utf-8", "replace")


def unreachable_kafka(servers: str) -> str:
    """Why no broker can be reached; empty where one can. Flink's client waits for it for ever, and says nothing."""
    reason = ""
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
        except (OSError, ValueError) as error:
            reason = f"Kafka at {server.strip()} can't be reached ({error}): the job waits for it"
        else:
            return ""
    return reason


def say(status: str, **facts: object) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(json.dumps({"job": "analytics", "status": status} | facts) + "\n")
    sys.stdout.flush()
