"""Batch jobs of `jobs/`, run as processes to their end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pipelines import processes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from warehouse.settings import Settings

STOP_SECONDS = 30.0


class Ended(NamedTuple):
    """How a job ended."""

    code: int
    """Its exit code."""
    said: list[dict[str, Any]]
    """The lines of JSON that it wrote, among what its JVM may have written."""
    log: Path


def run(settings: Settings, console: Console, name: str, arguments: Sequence[str], *, status: str) -> Ended:
    """Run `python -m jobs.<name>` with these settings, its output in `logs/<name>.log`; it is stopped where we are.

    Args:
        settings: The job's.
        console: Shows `status` meanwhile.
        name: Of the module in `jobs/`.
        arguments: The job's.
        status: What is being done.
    """
    log = settings.logs / f"{name}.log"
    child = processes.start(
        [sys.executable, "-P", "-m", f"jobs.{name}", *arguments],
        log,
        temporary=settings.temporary,
        environment=settings.environment(),
    )
    try:
        with console.status(status):
            code = child.wait()
    finally:
        processes.stop_child(child, STOP_SECONDS)
    lines = log.read_bytes().splitlines()
    return Ended(code, [msgspec.json.decode(line) for line in lines if line.startswith(b'{"job"')], log)
