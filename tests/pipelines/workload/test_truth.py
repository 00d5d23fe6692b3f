"""That the truth is what the plans hold, what statistics over a run find, and what `--describe` prints."""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from statistics import median
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from pipelines.workload import Truth, draw_plan, print_truth
from sagascope.events import EventType
from tests.pipelines.workload.conftest import SCALE, STEP_ENDS

if TYPE_CHECKING:
    from pipelines.workload import WorkloadReport
    from tests.pipelines.workload.conftest import Recorder


def within(failed: int, of: int, rate: float) -> bool:
    """Is that count likely by a binomial law: in 4.5 standard deviations, and one for the discrete steps?"""
    return abs(failed - of * rate) <= 4.5 * math.sqrt(of * rate * (1 - rate)) + 1


def test_one_step_is_slow_and_one_is_flaky_beyond_doubt() -> None:
    """The slow step's median is four times any other's or more, the flaky one's failure rate eight times."""
    truth = Truth()
    rows = truth.describe()
    medians, rates = sorted(row.median_seconds for row in rows), sorted(row.failure_rate for row in rows)
    assert medians[-1] >= 4 * medians[-2]
    assert rates[-1] >= 8 * rates[-2]
    assert rates[-2] <= 0.02
    assert (truth.slow.step_name, truth.flaky.step_name) == ("underwrite", "push_firmware")


def test_the_truth_is_scaled() -> None:
    """Milliseconds pass faster by the scale, seconds and rates stay; an unknown step is refused."""
    plain, scaled = Truth().describe(1.0), Truth().describe(20.0)
    for a, b in zip(plain, scaled, strict=True):
        assert (a.failure_rate, a.median_seconds) == (b.failure_rate, b.median_seconds)
        assert a.median_ms == pytest.approx(20.0 * b.median_ms)
        assert a.median_ms == pytest.approx(1000.0 * a.median_seconds)
    assert Truth().step("loan-origination", "underwrite", 20.0).median_ms == pytest.approx(700.0)
    with pytest.raises(LookupError, match="underwrit'"):
        Truth().step("loan-origination", "underwrit")


def test_plans_reveal_the_truth() -> None:
    """Over many sagas the mix, every failure rate and every median are those of the truth, compensations' too."""
    drawn = defaultdict(list)
    for number in range(20_000):
        plan = draw_plan(11, number)
        drawn[plan.model.name].append(plan)
    assert all(within(len(drawn[name]), 20_000, share) for name, share in Truth().shares.items())
    for row in Truth().describe():
        fates = [plan.steps[row.step_name] for plan in drawn[row.saga_name]]
        assert within(sum(f.error is not None for f in fates), len(fates), row.failure_rate), row
        assert median(f.seconds for f in fates) == pytest.approx(row.median_seconds, rel=0.05), row
        below_p95 = sum(f.seconds * 1000 <= row.p95_ms for f in fates)
        assert within(below_p95, len(fates), 0.95), row
        if row.compensation_failure_rate is not None:
            undos = [plan.compensations[row.step_name] for plan in drawn[row.saga_name]]
            assert within(sum(u.error is not None for u in undos), len(undos), row.compensation_failure_rate), row


def test_statistics_over_the_events_find_the_slow_and_the_flaky_step(modest: tuple[WorkloadReport, Recorder]) -> None:
    """Of the steps that ran, the flaky one fails most, as often as the truth says, and the slow one has the largest p50."""
    durations: dict[tuple[str, str], list[int]] = defaultdict(list)
    failures: Counter[tuple[str, str]] = Counter()
    for event in modest[1].events:
        if event.event_type in STEP_ENDS:
            key = (event.saga_name, event.step_name or "")
            durations[key].append(event.duration_ms or 0)
            failures[key] += event.event_type is EventType.STEP_FAILED
    for row in Truth().describe(SCALE):
        key = (row.saga_name, row.step_name)
        assert within(failures[key], len(durations[key]), row.failure_rate), row
    slow, flaky = Truth().slow, Truth().flaky
    assert max(durations, key=lambda key: median(durations[key])) == (slow.saga_name, slow.step_name)
    assert max(durations, key=lambda key: failures[key] / len(durations[key])) == (flaky.saga_name, flaky.step_name)


@pytest.mark.parametrize("width", [80, 160])
def test_describe_shows_every_step_and_marks_the_slow_and_the_flaky_one(width: int) -> None:
    """Every saga and step is there uncut, in a terminal of 80 columns too, and the two to be found are named."""
    text = io.StringIO()
    print_truth(Console(file=text, width=width), Truth(), 20.0)
    printed = text.getvalue()
    words = set(printed.split())
    assert all(row.step_name in words and row.saga_name in words for row in Truth().describe())
    assert "…" not in printed
    assert "loan-origination.underwrite" in printed
    assert "iot-device-orchestration.push_firmware" in printed
