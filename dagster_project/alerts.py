"""Tells of runs that failed: as JSON, whose `text` chat programs show, posted to SAGASCOPE_ALERT_URL."""

import json
import os
from urllib.error import URLError
from urllib.request import Request, urlopen

import dagster as dg

from warehouse.settings import PREFIX, Settings

SECONDS = 10


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Posts what failed, why, and what to do, to {PREFIX}ALERT_URL; where that is empty, nothing.",
)
def failed_runs(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """One post a failed run."""
    url = Settings.from_environment(os.environ).alert_url
    run = context.dagster_run
    if not url:
        return dg.SkipReason(f"{PREFIX}ALERT_URL is empty: nobody is told that {run.job_name} {run.run_id} failed")
    reasons = [_reason(event) for event in context.get_step_failure_events()] or [
        context.failure_event.message or "no reason was given"
    ]
    body = {
        "text": f"Dagster run of {run.job_name} failed: {'; '.join(reasons)}",
        "job": run.job_name,
        "run_id": run.run_id,
        "reasons": reasons,
        "tags": {key: value for key, value in run.tags.items() if "partition" in key},
    }
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - the operator's
    try:
        with urlopen(request, timeout=SECONDS):  # noqa: S310 - see above
            return None
    except (URLError, TimeoutError, ValueError) as error:
        msg = f"{PREFIX}ALERT_URL did not take the alert of run {run.run_id} ({error}): is it right, and is it up?"
        raise RuntimeError(msg) from error


def _reason(event: dg.DagsterEvent) -> str:
    """What the step said, without the stack."""
    data = event.step_failure_data
    failure = data.user_failure_data
    if failure and failure.description:
        return failure.description
    return data.error.message.strip() if data.error else event.message or "no reason was given"
