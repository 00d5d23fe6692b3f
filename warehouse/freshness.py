"""How fresh the tables are, in numbers and in plain words where they are stale."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from warehouse.claims import job_pid

if TYPE_CHECKING:
    from warehouse.settings import Settings

MISSED_COMMITS = 3
"""So many intervals without a commit are too many where no job is seen to run; one in the midst of a checkpoint is none."""
EMPTY_COMMITS = 10
"""Iceberg's sink leaves out up to so many commits in a row that would hold no event."""
GRACE = timedelta(seconds=5)
"""How long a checkpoint and its commit may take on top."""
QUIET = timedelta(minutes=5)
"""So long without an event is worth a word, though the job commits."""


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    """How old what one sees is."""

    newest_event_at: datetime | None
    newest_event_age_seconds: Annotated[
        float | None, Meta(description="Since the timestamp of the newest event that is stored; null without one.")
    ]
    newest_commit_at: datetime | None
    newest_commit_age_seconds: Annotated[
        float | None, Meta(description="Since the newest commit to `events`; null where there was none.")
    ]
    stale: Annotated[str | None, Meta(description="In plain words what is wrong, and what to do; null: all is well.")]


class JobWatch:
    """Whether the analytics job runs on this machine, and whether it did."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.pid: str | None = None
        self.was_seen = False

    def look(self) -> JobWatch:
        """By the lock that the job holds."""
        self.pid = job_pid(self._settings)
        self.was_seen = self.was_seen or self.pid is not None
        return self


def judge(
    settings: Settings, job: JobWatch, now: datetime, committed_at: datetime | None, event_at: datetime | None
) -> Freshness:
    """How fresh what was committed then is, now.

    Args:
        settings: How often the job commits.
        job: Whether it runs.
        now: The moment; aware.
        committed_at: The newest commit.
        event_at: The timestamp of the newest event.
    """
    commit_age, event_age = (now - moment if moment else None for moment in (committed_at, event_at))
    return Freshness(
        newest_event_at=event_at,
        newest_event_age_seconds=_seconds(event_age),
        newest_commit_at=committed_at,
        newest_commit_age_seconds=_seconds(commit_age),
        stale=_stale(settings, job, commit_age, event_age),
    )


def _stale(settings: Settings, job: JobWatch, commit_age: timedelta | None, event_age: timedelta | None) -> str | None:
    interval = timedelta(milliseconds=settings.checkpoint_interval_ms)
    since = "nothing was ever committed" if commit_age is None else f"no commit for {_told(commit_age)}"
    if job.pid is None:
        if job.was_seen:
            return f"the analytics job has ended; {since}: `sagascope analyze` goes on where it was"
        if commit_age is None or commit_age > MISSED_COMMITS * interval + GRACE:
            return f"{since}: is the analytics job running? None is on this machine; `sagascope analyze` starts one"
    elif commit_age is None or commit_age > (EMPTY_COMMITS + 1) * interval + GRACE:
        log = settings.logs / "analytics.log"
        return f"{since}, though the analytics job runs (pid {job.pid}): see {log}, and `sagascope doctor`"
    if event_age is not None and event_age > QUIET:
        return f"no event for {_told(event_age)}: do your sagas report? `sagascope status` says what the topic holds"
    return None


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else round(max(age.total_seconds(), 0.0), 3)


def _told(age: timedelta) -> str:
    seconds = age.total_seconds()
    for unit, width in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * width:
            return f"{seconds / width:.0f} {unit}"
    return f"{seconds:.0f} s"
