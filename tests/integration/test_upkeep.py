"""Upkeep beside the real stream: appends every second, a kill, a restart, and nobody is the wiser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from bench.fault_stage import Stage, Verdict
from warehouse import parity, windows

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
        assert parity.audit(stage.settings).is_whole
        assert windows.compare(stage.settings).is_whole
