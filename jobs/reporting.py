"""What a batch job says: one line of JSON on standard output, and to Dagster, if that started it with Pipes."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PIPES = "DAGSTER_PIPES_CONTEXT"
"""In the environment of a process that Dagster started with Pipes."""


@contextmanager
def reporting(job: str, environ: Mapping[str, str] = os.environ) -> Iterator[Callable[..., None]]:
    """What to call to say something: `say("finished", rows=3)`.

    Dagster gets the same object as a custom message (`PipesClientCompletedInvocation.get_custom_messages`), in order.

    Args:
        job: Who says it.
        environ: Where Dagster has left word.
    """
    if PIPES not in environ:
        yield lambda status, **facts: _write({"job": job, "status": status} | facts)
        return
    from dagster_pipes import open_dagster_pipes  # noqa: PLC0415 - only there

    with open_dagster_pipes() as pipes:

        def say(status: str, **facts: object) -> None:
            told = {"job": job, "status": status} | facts
            _write(told)
            pipes.report_custom_message(msgspec.to_builtins(told))

        yield say


def _write(told: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    sys.stdout.flush()
