"""What changed at a moment: both tests of significance against plain Python, which compares all pairs."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import msgspec
import pytest

from tests.warehouse.test_reports import MIDDLE, at, grouped, quantile, reporting, rows_of, runs, share_failed
from tests.warehouse.test_reports import duck as duck  # noqa: PLC0414 - a fixture
from tests.warehouse.test_saga_runs import START_MS, opened, told
from warehouse import reports

if TYPE_CHECKING:
    from sagascope.events import SagaEvent

HOUR_MS = 3_600_000


def p_of_z(z: float) -> float:
    """Two-sided."""
    return math.erfc(abs(z) / math.sqrt(2))


def p_of_shares(failed: tuple[int, int], sizes: tuple[int, int]) -> float:
    """The two-proportion z-test, pooled."""
    pooled = sum(failed) / sum(sizes)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
    return p_of_z((failed[1] / sizes[1] - failed[0] / sizes[0]) / spread)


def mann_whitney(before: list[int], after: list[int]) -> tuple[float, float]:
    """The share of pairs in which the later one is longer, ties half; and p, from all pairs one by one."""
    u = sum((b < a) + (b == a) / 2 for b in before for a in after)
    n, m = len(before), len(after)
    ties = sum(t**3 - t for t in Counter(before + after).values())
    variance = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
    return u / (n * m), p_of_z(max(abs(u - n * m / 2) - 0.5, 0) / math.sqrt(variance))


def test_before_after_equals_the_tests_done_by_hand(duck: duckdb.DuckDBPyConnection) -> None:
    """Rates, medians and both p of each kind; a saga belongs to the side on which it ended."""
    got = {row["saga_name"]: row for row in rows_of(duck, "before_after")}
    kinds = grouped(runs(), lambda run: run["saga_name"])
    assert got.keys() == kinds.keys()
    for kind, its in kinds.items():
        row = got[kind]
        sides = [run for run in its if run["last_at"] < MIDDLE], [run for run in its if run["last_at"] >= MIDDLE]
        sizes, rates = [len(side) for side in sides], [share_failed(side) for side in sides]
        assert [row["sagas_before"], row["sagas_after"]] == sizes
        assert [row["failure_rate_before"], row["failure_rate_after"]] == pytest.approx(rates)
        failed = [round(rate * size) for rate, size in zip(rates, sizes, strict=True)]
        assert row["failure_p"] == pytest.approx(p_of_shares((failed[0], failed[1]), (sizes[0], sizes[1])), rel=1e-6)
        before, after = ([run["total_ms"] for run in side if run["outcome"] == "completed"] for side in sides)
        slower, p = mann_whitney(before, after)
        assert (row["slower"], row["duration_p"]) == (pytest.approx(slower), pytest.approx(p, rel=1e-6))
        assert [row["p50_ms_before"], row["p50_ms_after"]] == [quantile(before, 0.5), quantile(after, 0.5)]
        assert row["duration_changed"] is (p < 0.05)


def deployed(failing: tuple[float, float], slower: float, number: int = 400) -> list[SagaEvent]:
    """Sagas of six hours; from the third on others fail, and all take so many times as long."""
    rng = random.Random(3)
    events = []
    for run in range(number):
        is_after = run % 2 == 1
        end = "! charge|= rolled_back" if rng.random() < failing[is_after] else "+ charge|= completed"
        shift = rng.randrange(3 * HOUR_MS - 10_000) + (3 * HOUR_MS if is_after else 0)
        for one in told(*f"> |{end}".split("|"), run=f"r{run}"):
            changes: dict[str, Any] = {"timestamp": one.timestamp + shift}
            if one.event_type not in ("saga_started", "step_failed", "step_completed"):
                changes["total_duration_ms"] = round(rng.lognormvariate(6, 0.5) * (slower if is_after else 1))
            events.append(msgspec.structs.replace(one, **changes))
    return events


@pytest.mark.parametrize(
    ("failing", "slower", "changed"),
    [((0.1, 0.1), 1.0, (False, False)), ((0.05, 0.2), 1.0, (True, False)), ((0.1, 0.1), 1.5, (False, True))],
)
def test_a_planted_change_is_found_and_none_is_made_up(
    failing: tuple[float, float], slower: float, changed: tuple[bool, bool]
) -> None:
    """What changed is significant, what did not is not."""
    moment = at(START_MS + 3 * HOUR_MS)
    with opened(deployed(failing, slower)) as connection:
        query, parameters = reports.ask("before_after", moment=moment)
        answer = reporting(connection).sql(query, params=parameters)
        [row] = [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]
    assert (row["failure_rate_changed"], row["duration_changed"]) == changed
    assert (row["sagas_before"], row["sagas_after"]) == (200, 200)


def test_too_few_tell_nothing() -> None:
    """Fewer than five expected failures, fewer than eight durations, or nothing on a side: NULL, not a number."""
    with opened(deployed((0.1, 0.1), 1.0, number=14)) as connection:
        duck = reporting(connection)
        for moment in (at(START_MS + 3 * HOUR_MS), at(START_MS - 1), at(START_MS + 7 * HOUR_MS)):
            query, parameters = reports.ask("before_after", moment=moment)
            answer = duck.sql(query, params=parameters)
            [row] = [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]
            assert (row["failure_p"], row["duration_p"], row["duration_changed"]) == (None, None, None)


def test_the_macro_asks_for_its_moment(duck: duckdb.DuckDBPyConnection) -> None:
    """In SQL, too."""
    with pytest.raises(duckdb.Error, match="compares before with after a moment"):
        duck.sql("FROM before_after()").fetchall()
    assert duck.sql(f"FROM before_after(moment := TIMESTAMPTZ '{MIDDLE.isoformat()}', span := NULL)").fetchall()
    assert timedelta(0) < MIDDLE - at(START_MS)
