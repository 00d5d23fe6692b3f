"""Jobs of `jobs/` as processes, followed through Dagster Pipes: what they say while they run, and why they failed."""

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster_pipes import PipesContextData

from warehouse.settings import CHECKOUT, Settings

LOOK_SECONDS = 0.2
STOP_SECONDS = 30.0

Said = Mapping[str, Any]
"""One message of a job: what it would print as a line of JSON."""


def follow(context: dg.OpExecutionContext, settings: Settings, module: str, *arguments: str) -> Iterator[Said]:
    """Run `python -m <module> <arguments>`, and yield each message as it comes.

    What the job writes is the step's output in the UI. It is stopped where the run is canceled, or the caller stops to look.

    Raises:
        dagster.Failure: the job's exit code was not 0; says which reasons it gave. Only where it gave none, because it was
            killed, may it be tried again by itself.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    context.log.info("$ python -m %s %s", module, " ".join(arguments))
    reasons: list[str] = []
    seen = 0
    with _session(context) as session:
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
        if said.get("reason") and said["reason"] not in reasons:
            reasons.append(said["reason"])
    if child.returncode:
        why = (
            "; ".join(reasons)
            or f"it ended with exit code {child.returncode}: its output is this step's stdout and stderr"
        )
        msg = f"{module} did not do all it was to do: {why}"
        raise dg.Failure(msg, allow_retries=not reasons)


@contextmanager
def _session(context: dg.OpExecutionContext) -> Iterator[dg.PipesSession]:
    """Dagster's `open_pipes_session`, but that it would have the step yield one result an asset, for all days at once."""
    told = PipesContextData(
        asset_keys=None,
        code_version_by_asset_key=None,
        provenance_by_asset_key=None,
        partition_key=None,
        partition_key_range=None,
        partition_time_window=None,
        run_id=context.run_id,
        job_name=context.job_name,
        retry_number=context.retry_number,
        extras={},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # what the reader of messages says of itself
        messages = dg.PipesMessageHandler(context, dg.PipesTempFileMessageReader())
        with dg.PipesTempFileContextInjector().inject_context(told) as place, messages.handle_messages() as way:
            yield dg.PipesSession(told, messages, place, way, context)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
