"""Upkeep beside the real stream: appends every second, a kill, a restart, and nobody is the wiser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from bench.fault_stage import Stage, Verdict
from warehouse import parity, windows
from warehouse.catalog import open_catalog, row_count
from warehouse.tables import STATISTICS

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.broker, pytest.mark.timeout(600)]

IN_DAYS = """
import sys
from datetime import timedelta
import jobs.upkeep
upkeep = jobs.upkeep.upkeep
jobs.upkeep.upkeep = lambda settings, now, *a, **k: upkeep(settings, now + timedelta(days={days}), *a, **k)
sys.argv[1:] = {actions}
jobs.upkeep.main()
"""


def tidy(settings: Settings, days: int, *actions: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Upkeep in a process of its own, by a clock that is so many days ahead: by age alone nothing would be kept."""
    done = subprocess.run(
        [sys.executable, "-c", IN_DAYS.format(days=days, actions=list(actions))],
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {(line["action"], line["table"]): line for line in map(json.loads, done.stdout.splitlines())}


def test_upkeep_beside_the_stream(broker_home: Settings, tmp_path: Path) -> None:
    """Small files are compacted while it appends; what a job that was killed still has to commit is never deleted."""
    with closing(Stage(broker_home, tmp_path / "home", "upkeep", seed=7, rate=100, changes={})) as stage:
        stage.begin()
        compacted, expired = 0, 0
        for _ in range(2):
            stage.moment(3.0)
            told = tidy(stage.settings, 30)
            of_events = told["compact", "events"]
            compacted += of_events["files_before"] - of_events["files_after"]
            expired += told["expire", "events"]["snapshots_expired"]
        stage.moment(1.0)
        stage.jvm().kill()
        tidy(stage.settings, 1_000)  # as if it had been dead for years
        stage.recover(0.0, count=False)
        verdict = stage.settle()
        assert verdict.events > 500
        assert verdict == Verdict(events=verdict.events), verdict
        assert compacted > 0
        assert expired > 0
        assert windows.compare(stage.settings).is_whole
        assert_known_as_deleted(stage.settings)


def assert_known_as_deleted(settings: Settings) -> None:
    """Parity calls none of the events lost that retention has deleted, their statistics stay, and no recompute may clear them."""
    statistics = counts(settings)
    before = parity.balance(settings)
    told = tidy(msgspec.structs.replace(settings, events_kept_days=7), 30, "retain")
    assert told["retain", "events"]["rows_deleted"] == sum(one.stored for one in before)
    account = parity.audit(settings)
    assert account.is_whole
    assert parity.balance(settings) == account.partitions
    assert sum(one.expired for one in account.partitions) == sum(one.stored + one.duplicates for one in before)
    assert [one.rejected for one in account.partitions] == [one.rejected for one in before]
    assert windows.compare(settings).is_whole
    refused = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "jobs.recompute",
            "--from",
            f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:00Z}",
        ],
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "were deleted by age (SAGASCOPE_EVENTS_KEPT_DAYS)" in refused.stdout
    assert counts(settings) == statistics


def counts(settings: Settings) -> list[int]:
    """Rows of each statistic."""
    with closing(open_catalog(settings)) as catalog:
        return [row_count(catalog, table) for table in STATISTICS]
