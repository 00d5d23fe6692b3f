"""One analytics job on the tables."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from jobs.claim import SecondJobError, claim_tables
from warehouse.claims import job_lock, job_pid, jvm_pid

if TYPE_CHECKING:
    from warehouse.settings import Settings

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_who_only_looks_turns_no_job_away(local: Settings) -> None:
    """To see whether a lock is held, one has to hold it for a moment."""
    local.checkpoints.mkdir(parents=True)
    with job_lock(local).open("a+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.3, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        began = time.monotonic()
        claim_tables(local)
        assert time.monotonic() - began > 0.2
    assert job_pid(local) is not None
    assert jvm_pid(local) is None


def test_a_second_job_is_named(local: Settings) -> None:
    """The lock's text is the pid of who holds it."""
    assert job_pid(local) is None
    local.checkpoints.mkdir(parents=True)
    job_lock(local).write_text("4711")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, job_lock(local)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        assert job_pid(local) == "4711"
        with pytest.raises(SecondJobError, match=r"another analytics job \(pid 4711\).*kill 4711"):
            claim_tables(local)
    finally:
        holder.kill()
        holder.communicate()
