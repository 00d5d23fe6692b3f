"""Jobs of `jobs/` as processes, followed through Dagster Pipes: what they say while they run, and why they failed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from warehouse.settings import CHECKOUT, Settings

LOOK_SECONDS = 0.2
STOP_SECONDS = 30.0

Said = Mapping[str, Any]
"""One message of a job: what it would print as a line of JSON."""


def follow(context: dg.OpExecutionContext, settings: Settings, module: str, *arguments: str) -> Iterator[Said]:
    """Run `python -m <module> <arguments>`, and yield each message as it comes.

    What the job writes is the step's output in the UI. It is stopped where the run is canceled, or the caller stops to look.

    Raises:
        dagster.Failure: the job's exit code was not 0; says which reasons it gave. It may be retried, unless the job
            refused.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    context.log.info("$ python -m %s %s", module, " ".join(arguments))
    reasons: list[str] = []
    refused = False
    seen = 0
    with dg.open_pipes_session(
        context=context,
        context_injector=dg.PipesTempFileContextInjector(),
        message_reader=dg.PipesTempFileMessageReader(),
    ) as session:
        environment = os.environ | settings.environment() | dict(session.get_bootstrap_env_vars())
        child = subprocess.Popen(command, cwd=CHECKOUT, env=environment)
        try:
            while child.poll() is None:
                for said in session.get_custom_messages()[seen:]:
                    seen += 1
                    yield said
                time.sleep(LOOK_SECONDS)
        finally:
            _stop(child)
    for said in session.get_custom_messages()[seen:]:  # also those of its last moment
        yield said
    for said in session.get_custom_messages():
        refused = refused or said.get("status") == "refused"
        if said.get("reason") and said["reason"] not in reasons:
            reasons.append(said["reason"])
    if child.returncode:
        why = (
            "; ".join(reasons)
            or f"it ended with exit code {child.returncode}: its output is this step's stdout and stderr"
        )
        msg = f"{module} did not do all it was to do: {why}"
        raise dg.Failure(msg, allow_retries=not refused)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
