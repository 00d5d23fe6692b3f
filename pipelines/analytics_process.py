"""The analytics job as a process of its own: PyFlink brings a JVM, and the command line stays light."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from pipelines import processes
from warehouse.claims import job_pid

if TYPE_CHECKING:
    import subprocess

    from warehouse.settings import Settings

STOP_SECONDS = 60.0


class JobStatus(msgspec.Struct, frozen=True):
    """One line that the job wrote: where it is, and why, where something went wrong."""

    status: str = ""
    chore: str = ""
    """What it did, or could not do, beside the stream; it has no status then."""
    reason: str | None = None
    resumes_from: str | None = None


class AnalyticsProcess:
    """`python -m jobs.analytics`, started with the given settings; its output is in `<home>/logs/analytics.log`."""

    def __init__(self, settings: Settings, *, bounded: bool = False, rebase: bool = False) -> None:
        self._settings = settings
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "jobs.analytics",
            "--with-parent",
            *(["--bounded"] if bounded else []),
            *(["--rebase"] if rebase else []),
        ]
        self._child: subprocess.Popen[bytes] | None = None
        self.log = settings.logs / "analytics.log"

    @property
    def pid(self) -> int | None:
        """Of the Python process; the JVM is its child."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start it; it resumes from its newest checkpoint by itself.

        Raises:
            ProcessFailedError: another one writes the same tables; its log is left alone.
        """
        if holder := job_pid(self._settings):
            msg = f"another analytics job (pid {holder}) writes the tables of {self._settings.root}: stop it first"
            raise processes.ProcessFailedError(msg)
        self._child = processes.start(
            self._command, self.log, temporary=self._settings.temporary, environment=self._settings.environment()
        )

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll() if self._child else None

    def said(self) -> list[JobStatus]:
        """Every line that it wrote, in order."""
        said: list[JobStatus] = []
        with suppress(FileNotFoundError, msgspec.DecodeError):  # half a line: the rest is being written
            for line in self.log.read_bytes().splitlines():
                if line.startswith((b'{"job"', b'{"chore"')):
                    said.append(msgspec.json.decode(line, type=JobStatus))  # noqa: PERF401 - what is before a half line counts
        return said

    def status(self) -> JobStatus:
        """What it said last, and what it resumed from."""
        last = JobStatus("starting")
        for said in self.said():
            if not said.chore:
                last = msgspec.structs.replace(said, resumes_from=said.resumes_from or last.resumes_from)
        return last

    def failure(self) -> str:
        """Why it ended: the reason it gave, else the end of its log."""
        reason = self.status().reason
        return f"{reason} (log: {self.log})" if reason else f"log {self.log} ends:\n{processes.last_lines(self.log)}"

    def stop(self) -> int | None:
        """Ask it to stop with a savepoint; after a minute end it, with its JVM. Its exit code, if it ran."""
        return None if self._child is None else processes.stop_child(self._child, STOP_SECONDS)
