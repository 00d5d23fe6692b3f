"""What a live frame must say, by plain Python over the events; and stories to tell such events."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest

from tests.warehouse.planted import Rows, event
from warehouse.live_figures import SPANS, window_of

if TYPE_CHECKING:
    from warehouse.live_frame import Frame

SCRIPT = "<script>alert('x')</script>"
"""A name that must come back as it is."""


def story(
    run: int, begin: datetime, steps: list[str], end: str | None, *, name: str = "order", wait: float = 1.0
) -> Rows:
    """Events of a run, one every `wait` seconds: `pay` completes, `pay!` fails, `-pay` is undone; `end` ends it."""
    told: list[tuple[str, str | None]] = [("saga_started", None)]
    step: str | None
    for step in steps:
        phase = "compensation" if step.startswith("-") else "step"
        told += [(f"{phase}_started", step), (f"{phase}_{'failed' if step.endswith('!') else 'completed'}", step)]
    if end:
        told.append((end, None))
    rows = []
    for n, (kind, step) in enumerate(told):
        fields: dict[str, Any] = {"saga_name": name, "step_name": step.strip("-!") if step else None}
        if kind.endswith(("completed", "failed")) and step:
            fields["duration_ms"] = (run * 37 + n * 11) % 900
        if kind == end:
            fields["total_duration_ms"] = round(n * wait * 1000)
        rows.append(event(run, n, kind, begin + timedelta(seconds=n * wait), **fields))
    return rows


def nearest_rank(durations: list[int], percent: int) -> float | None:
    """By the definition."""
    return sorted(durations)[math.ceil(len(durations) * percent / 100) - 1] if durations else None


def assert_durations(figures: Any, durations: list[int]) -> None:
    """The mean is exact, percentiles are at most 1 % off."""
    assert figures.avg_ms == (pytest.approx(sum(durations) / len(durations), abs=0.001) if durations else None)
    for percent in (50, 95, 99):
        exact = nearest_rank(durations, percent)
        got = getattr(figures, f"p{percent}_ms")
        assert got == (None if exact is None else pytest.approx(exact, abs=exact * 0.01 + 0.001)), percent


def assert_equals_oracle(frame: Frame, rows: Rows) -> None:
    """Every figure of every sliding window, from plain Python over the events."""
    events = list({row["event_id"]: row for row in rows}.values())
    for window in frame.windows:
        assert window.since == window_of(frame.made_at - SPANS[window.name])
        within = [row for row in events if window.since <= row["timestamp"] < window.until]
        minutes = (frame.made_at - window.since).total_seconds() / 60
        ended = [
            (row["saga_name"], row["step_name"], row["event_type"].split("_")[0], row)
            for row in within
            if row["event_type"] in {"step_completed", "step_failed", "compensation_completed", "compensation_failed"}
        ]
        expected = {key: [one[3] for one in some] for key, some in groupby(sorted(ended, key=str), lambda one: one[:3])}
        assert [(s.saga_name, s.step_name, s.phase) for s in window.steps] == sorted(expected)
        for step in [*window.steps, window.all_steps]:
            of_step = expected.get(
                (step.saga_name or "", step.step_name or "", step.phase or ""), [one[3] for one in ended]
            )
            failed = sum(row["event_type"].endswith("_failed") for row in of_step)
            assert (step.completed, step.failed) == (len(of_step) - failed, failed)
            assert step.failure_rate == (pytest.approx(failed / len(of_step), abs=1e-6) if of_step else None)
            assert step.failed_per_minute == pytest.approx(failed / minutes, abs=1e-3)
            assert_durations(step, [row["duration_ms"] for row in of_step if row.get("duration_ms") is not None])
        for saga in [*window.sagas, window.all_sagas]:
            of_saga = [row for row in within if saga.saga_name in {None, row["saga_name"]}]
            kinds = [row["event_type"] for row in of_saga]
            counts = [kinds.count(f"saga_{kind}") for kind in ("started", "completed", "rolled_back", "failed")]
            assert [saga.started, saga.completed, saga.rolled_back, saga.failed] == counts
            bad = counts[2] + counts[3]
            assert saga.failure_rate == (pytest.approx(bad / (bad + counts[1]), abs=1e-6) if bad + counts[1] else None)
            assert_durations(
                saga, [row["total_duration_ms"] for row in of_saga if row.get("total_duration_ms") is not None]
            )
    runs = {row["run_id"] for row in events}
    over = {
        row["run_id"] for row in events if row["event_type"] in {"saga_completed", "saga_rolled_back", "saga_failed"}
    }
    assert frame.active == len(runs - over)
    hour = [row for row in events if row["timestamp"] >= frame.series.first]
    for n, started in enumerate(frame.series.started):
        begin = frame.series.first + n * timedelta(seconds=10)
        of_window = [row for row in hour if window_of(row["timestamp"]) == begin]
        kinds = [row["event_type"] for row in of_window]
        assert started == kinds.count("saga_started")
        assert frame.series.completed[n] == kinds.count("saga_completed")
        assert frame.series.failed[n] == kinds.count("saga_rolled_back") + kinds.count("saga_failed")
        timed = [row["duration_ms"] for row in of_window if row.get("duration_ms") is not None]
        exact = nearest_rank(timed, 95)
        assert frame.series.p95_ms[n] == (None if exact is None else pytest.approx(exact, abs=exact * 0.01 + 0.001))
