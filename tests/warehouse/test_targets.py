"""Targets out of a YAML file, and sagas and steps judged by them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.warehouse.test_reports import TARGETS, nearest_rank, rows_of, runs, steps
from tests.warehouse.test_reports import duck as duck  # noqa: PLC0414 - a fixture
from warehouse import reports, targets
from warehouse.targets import InvalidTargetsError, Target

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

FILE = """\
- saga: order*             # a comment
  percentile: 95
  max_duration: 30s
  max_failure_rate: 0.02
- step: charge
  max_duration: 1.5m
"""


def written(tmp_path: Path, text: str) -> Path:
    """A file with that text."""
    file = tmp_path / "targets.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_targets_are_read(tmp_path: Path) -> None:
    """In their order; what is left out is any saga, the saga itself, and the 99th percentile."""
    assert targets.load(written(tmp_path, FILE)) == [
        Target(saga="order*", percentile=95.0, max_ms=30_000.0, max_failure_rate=0.02),
        Target(saga="*", step="charge", percentile=99.0, max_ms=90_000.0),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no targets; write a list, each like"),
        ("saga: order", "no targets; write a list"),
        ("- order", "line 1: 'order' is not a target; allowed: keys and values"),
        (
            "- saga: a\n  max_duration: 1s\n- saga: b\n  latency: 1s",
            "line 4: 'latency' is not a key; allowed: saga, step,",
        ),
        (
            "- saga: a\n  max_duration: soon",
            "line 2: 'soon' is not max_duration; allowed: a number with ms, s, m, h or d",
        ),
        ("- max_duration: 5", "line 1: '5' is not max_duration"),
        ("- max_failure_rate: 2", "line 1: '2' is not max_failure_rate; allowed: a number from 0 to 1"),
        ("- max_failure_rate: .nan", "line 1: '.nan' is not max_failure_rate"),
        ("- max_failure_rate: nan", "line 1: 'nan' is not max_failure_rate"),
        ("- percentile: 0\n  max_duration: 1s", "line 1: '0' is not percentile; allowed: a number above 0, up to 100"),
        ("- saga: a\n  saga: b\n  max_duration: 1s", "line 2: 'saga' is not a key of its own: it is there twice"),
        ("- saga: [a, b]\n  max_duration: 1s", "line 1: a sequence is not saga"),
        ("- saga: a", "line 1: a mapping is not a target; allowed: max_duration, max_failure_rate or both"),
        ("- saga: 'a", "no YAML: while scanning a quoted scalar"),
        ("- !!python/object/apply:os.system ['true']", "line 1: a sequence is not a target"),
    ],
)
def test_what_is_no_target_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With the file, the line, what is there and what is allowed."""
    file = written(tmp_path, text)
    with pytest.raises(InvalidTargetsError, match=re.escape(said)) as caught:
        targets.load(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """By its name."""
    with pytest.raises(InvalidTargetsError, match=r"gone.yaml: the targets can't be read: .*No such file"):
        targets.load(tmp_path / "gone.yaml")


def test_sla_compliance(duck: duckdb.DuckDBPyConnection) -> None:
    """Each kind of saga, and each of its steps, against each target of its name: counted in plain Python."""
    got = {(row["saga_name"], row["step_name"]): row for row in rows_of(duck, "sla_compliance")}
    of_sagas, of_steps = TARGETS
    for kind in ("order", "order-express"):
        its = runs(lambda run, kind=kind: run["saga_name"] == kind)  # type: ignore[misc]
        totals = sorted(run["total_ms"] for run in its)
        row = got.pop((kind, None))
        within = sum(total <= (of_sagas.max_ms or 0) for total in totals) / len(totals)
        failed = sum(run["outcome"] != "completed" for run in its) / len(its)
        assert (row["ended"], row["within"], row["failure_rate"]) == (
            len(its),
            pytest.approx(within),
            pytest.approx(failed),
        )
        assert row["at_percentile_ms"] == totals[-(-len(totals) * 90 // 100) - 1]
        assert row["is_met"] is (within >= 0.9 and failed <= 0.5)
    for kind in ("order", "order-express", "refund"):
        ended = [one for one in steps("step") if (one.saga_name, one.step_name) == (kind, "reserve")]
        row = got.pop((kind, "reserve"))
        assert (row["ended"], row["target"], row["max_failure_rate"]) == (len(ended), "*", None)
        assert row["at_percentile_ms"] == nearest_rank(ended, 50)
        assert row["is_met"] is (nearest_rank(ended, 50) <= (of_steps.max_ms or 0))
    assert got == {}


@pytest.mark.parametrize(
    ("target", "is_met"),
    [
        (Target(saga="refund", max_failure_rate=1.0), True),
        (Target(saga="refund", max_failure_rate=0.01), False),
        (Target(saga="refund", percentile=100.0, max_ms=10.0**9), True),
        (Target(saga="refund", percentile=100.0, max_ms=10.0**9, max_failure_rate=0.01), False),
        (Target(saga="refund", percentile=1.0, max_ms=1.0), False),
        (Target(saga="nope", max_ms=1.0), None),
        (Target(saga="refund", step="nope", max_ms=1.0), None),
    ],
)
def test_a_target_is_met_where_all_it_asks_holds(
    duck: duckdb.DuckDBPyConnection,
    target: Target,
    is_met: bool | None,  # noqa: FBT001 - a parameter of the test
) -> None:
    """What it does not ask holds; where nothing ended nobody knows."""
    query, parameters = reports.ask("sla_compliance", targets=[target])
    answer = duck.sql(query, params=parameters)
    [row] = [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]
    assert row["is_met"] is is_met
