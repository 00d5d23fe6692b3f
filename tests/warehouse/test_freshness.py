"""How fresh the tables are, in plain words."""

from __future__ import annotations

import fcntl
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.warehouse.planted import NOON
from warehouse.claims import job_lock
from warehouse.freshness import JobWatch, judge
from warehouse.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def stale(watch: JobWatch, settings: Settings, commit: float | None, event: float | None) -> str | None:
    """What is said where the newest commit and the newest event are so many seconds old."""
    moments = [None if age is None else NOON - timedelta(seconds=age) for age in (commit, event)]
    return judge(settings, watch.look(), NOON, *moments).stale


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A commit is due every five seconds."""
    return Settings(home=str(tmp_path / "home"))


def test_without_a_job_three_commits_may_be_missed(settings: Settings) -> None:
    """Twenty seconds are enough to ask whether it runs."""
    watch = JobWatch(settings)
    assert stale(watch, settings, 19, 19) is None
    assert stale(watch, settings, 42, 42) == (
        "no commit for 42 s: is the analytics job running? None is on this machine; `sagascope analyze` starts one"
    )
    assert "no commit for 3 h" in str(stale(watch, settings, 3 * 3600, 1))
    assert "nothing was ever committed" in str(stale(watch, settings, None, None))


def test_a_job_may_leave_out_empty_commits_and_its_end_is_told_at_once(settings: Settings) -> None:
    """By the lock that it holds."""
    watch, lock = JobWatch(settings), job_lock(settings)
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(str(os.getpid()))
        held.flush()
        assert stale(watch, settings, 59, 59) is None
        said = stale(watch, settings, 61, 61)
        assert f"no commit for 61 s, though the analytics job runs (pid {os.getpid()})" in str(said)
        assert "no event for 10 min: do your sagas report?" in str(stale(watch, settings, 1, 600))
    assert stale(watch, settings, 1, 1) == (
        "the analytics job has ended; no commit for 1 s: `sagascope analyze` goes on where it was"
    )


def test_ages_are_never_negative(settings: Settings) -> None:
    """A service's clock may be ahead."""
    told = judge(settings, JobWatch(settings), NOON, NOON, NOON + timedelta(seconds=30))
    assert (told.newest_event_age_seconds, told.newest_commit_age_seconds, told.stale) == (0.0, 0.0, None)
