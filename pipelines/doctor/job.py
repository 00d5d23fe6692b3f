"""The analytics job: is it running, does it fit its checkpoints, is anything of it left over or owed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
from pyiceberg.expressions.parser import parse

from pipelines.analytics_process import AnalyticsProcess
from pipelines.doctor.findings import Finding, counted, fault, ok, warning
from pipelines.doctor.tables import reading
from warehouse.catalog import row_count
from warehouse.claims import job_pid, jvm_pid
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from warehouse.settings import Settings

HINDERED = ("restarting", "failing", "stalled", "waiting")
FINGERPRINT_SECONDS = 60
REBASE = "`sagascope analyze --rebase` goes on from what the tables hold"


class _Fingerprint(msgspec.Struct, frozen=True):
    """What `python -m jobs.analytics --fingerprint` says."""

    status: str
    reason: str = ""
    now: dict[str, Any] | None = None
    noted: dict[str, Any] | None = None
    checkpoints: int = 0
    newest: str | None = None
    differing: tuple[str, ...] = ()


class _Owed(msgspec.Struct, frozen=True):
    """What a rebase has left to be recomputed; see `jobs.chores`."""

    since: str
    until: str


def running(settings: Settings) -> list[Finding]:
    """Whether a job writes the tables, or a JVM that has outlived its job."""
    job, jvm = job_pid(settings), jvm_pid(settings)
    if job is not None:
        told = AnalyticsProcess(settings).status()
        if told.status in HINDERED:
            what = f"the analytics job (pid {job}) is {told.status}: {told.reason or 'why is not known'}"
            return [fault("job", what, f"see {settings.logs}; what it can't do now it does once it can")]
        return [ok("job", f"the analytics job runs (pid {job}{f', its JVM {jvm}' if jvm else ', starting'})")]
    if jvm is not None:
        what = f"no job runs, but the JVM (pid {jvm}) of one that was killed still holds the tables: no other can start"
        return [fault("job", what, f"it should end within 20 s; if not, `kill {jvm}`")]
    return [ok("job", "no analytics job runs", "`sagascope analyze` runs one")]


def fingerprint(settings: Settings) -> list[Finding]:
    """Whether the next job can go on from the checkpoints: as it would ask itself, in a process of its own, without a JVM."""
    command = [sys.executable, "-P", "-m", "jobs.analytics", "--fingerprint"]
    environment = os.environ | settings.environment()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=FINGERPRINT_SECONDS
    )
    said = [line for line in done.stdout.splitlines() if line.startswith('{"job"')]
    answer = msgspec.json.decode(said[-1], type=_Fingerprint) if said else _Fingerprint("failed")
    if answer.status != "fingerprint":
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        what = f"what the checkpoints were made for can't be compared: {answer.reason or lines[-1]}"
        cure = (
            f"should {settings.checkpoints / 'made_for.json'} be damaged, remove it; if SQL or settings have changed since the "
            f"last run, {REBASE}"
        )
        return [fault("fingerprint", what, cure)]
    return [_judged(settings, answer)]


def _judged(settings: Settings, answer: _Fingerprint) -> Finding:
    area, of = (
        "fingerprint",
        f"{counted(answer.checkpoints, 'checkpoint')} in {settings.checkpoints}",
    )
    if not answer.checkpoints:
        if rows := _rows(settings):
            what = f"the tables hold {rows:,} events, but there is no checkpoint: the job refuses to start"
            return fault(area, what, f"bring the checkpoints back; or {REBASE}")
        return ok(area, "no checkpoint yet: the job will read the topic from its start")
    if answer.noted is None:
        what = f"{of}, and nobody has noted what they were made for: the next job takes them for its own"
        return warning(area, what, f"if SQL or settings have changed since, {REBASE}")
    if answer.differing:
        now = answer.now or {}
        said = ", ".join(f"{name} was {answer.noted.get(name)!r}, is {now.get(name)!r}" for name in answer.differing)
        elsewhere = {"kafka_cluster", "topic"} & set(answer.differing)
        cure = "set it back, or use another SAGASCOPE_HOME" if elsewhere else f"set it back; or {REBASE}"
        return fault(area, f"{of}, made for another job, so the next one refuses to start: {said}", cure)
    return ok(area, f"{of}, made for this very job; the newest is {answer.newest}")


def owed(settings: Settings) -> list[Finding]:
    """Whether hours are still to be recomputed after a rebase."""
    file = settings.checkpoints / "recompute.json"
    if not file.exists():
        return []
    try:
        hours = msgspec.json.decode(file.read_bytes(), type=_Owed)
    except msgspec.DecodeError as error:
        what = f"{file}, which tells what is still to be recomputed, is damaged: {error}"
        return [fault("job", what, "remove it; `sagascope parity --mend` recomputes the hours that need it")]
    what = (
        f"after a rebase, statistics from {hours.since} to {hours.until} are still to be recomputed, and may be too low"
    )
    return [
        warning(
            "job", what, "none, while the job runs: it does so when its stream is past them; else `sagascope analyze`"
        )
    ]


def _rows(settings: Settings) -> int:
    if not settings.catalog_file.exists():
        return 0
    with reading(settings) as catalog:
        if not catalog.table_exists(EVENTS.identifier):
            return 0
        of_topic = catalog.load_table(EVENTS.identifier).scan(row_filter=parse(f"source_topic = '{settings.topic}'"))
        return row_count(catalog, EVENTS) if any(of_topic.plan_files()) else 0  # what is imported came from no topic
