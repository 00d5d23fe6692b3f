"""The reports over runs: each row against plain Python over the same runs, whole and sliced."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sagascope.definitions import SagaDefinition, StepDefinition
from tests.warehouse.runs_oracle import run_of
from tests.warehouse.test_saga_runs import MIDNIGHT, START_MS, opened, told
from warehouse import reports
from warehouse.settings import Settings
from warehouse.statistics import query as query_of
from warehouse.tables import STATISTICS
from warehouse.targets import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import duckdb

    from sagascope.events import SagaEvent

Row = dict[str, Any]
SETTINGS = Settings()
NOW = MIDNIGHT + timedelta(days=3)
MIDDLE = MIDNIGHT + timedelta(hours=36)
TARGETS = [
    Target(saga="order*", percentile=90.0, max_ms=1_000.0, max_failure_rate=0.5),
    Target(saga="*", step="res*", percentile=50.0, max_ms=40_000.0),
]
DEFINITIONS = [
    SagaDefinition(
        saga_name=kind,
        steps=tuple(StepDefinition(step_name=step, compensable=True) for step in ("reserve", "charge", "ship")),
    )
    for kind in ("order", "order-express", "refund")
]
STORIES = (
    "> |( reserve|+ reserve|( charge|+ charge|= completed",
    "> |( reserve|+ reserve|( charge|+ charge|= completed",
    "> |( reserve|+ reserve|( charge|+ charge|= completed",
    "> |( reserve|! reserve|= rolled_back",
    "> |( reserve|! reserve|+ reserve|( charge|+ charge|= completed",
    "> |( reserve|+ reserve|( charge|! charge|[ reserve|- reserve|= rolled_back",
    "> |( reserve|+ reserve|( charge|! charge|[ reserve|? reserve|= failed",
    "> |( reserve|+ reserve|( charge|! charge|[ reserve",
    "> |( reserve|+ reserve|( charge",
)


def make_events(seed: int = 7, number: int = 300) -> list[SagaEvent]:
    """Runs of three kinds over three days, a few of them still open, of two tenants or of none."""
    rng = random.Random(seed)
    events = []
    for run in range(number):
        shift = rng.randrange(3 * 86_400_000 - 20_000)
        tenant: dict[str, str] = rng.choice([{"tenant": "acme", "region": "eu"}, {"tenant": "blue"}, {}])
        kind = rng.choice(["order", "order-express", "refund"])
        for one in told(*rng.choice(STORIES).split("|"), run=f"r{run}", saga_name=kind, attributes=tenant):
            changes: Row = {"timestamp": one.timestamp + shift}
            if one.duration_ms is not None:
                changes["duration_ms"] = rng.choice([rng.randrange(1_000), rng.randrange(50_000)])
            if one.event_type in ("saga_completed", "saga_failed", "saga_rolled_back"):
                changes["total_duration_ms"] = round(rng.lognormvariate(6, 1))
            if one.error_type:
                changes["error_type"] = rng.choice(["Oops", "TimeoutError"])
                changes["error_message"] = (
                    f"order {rng.randrange(1, 9_999)} of 'c{rng.randrange(9)}' {one.step_name} broke"
                )
            events.append(msgspec.structs.replace(one, **changes))
    rng.shuffle(events)
    return events


EVENTS = make_events()


def at(milliseconds: int) -> datetime:
    """The moment of an event's timestamp."""
    return MIDNIGHT + timedelta(milliseconds=milliseconds - START_MS)


def runs(keep: Callable[[Row], bool] = lambda run: True, *, ended: bool = True) -> list[Row]:
    """The runs that ended, or the open ones, told by plain Python."""
    by_run: dict[str, list[SagaEvent]] = defaultdict(list)
    for one in EVENTS:
        by_run[one.run_id].append(one)
    found = []
    for run_id, its in by_run.items():
        its.sort(key=lambda one: one.sequence)
        row = run_of(its) | {"run_id": run_id, "saga_id": its[0].saga_id, "saga_name": its[0].saga_name}
        row |= {"started_at": at(its[0].timestamp), "last_at": at(its[-1].timestamp), "last": its[-1]}
        if (row["outcome"] is not None) is ended and keep(row):
            found.append(row)
    return found


def steps(phase: str) -> list[SagaEvent]:
    """The events that end an execution of a step or of its undoing."""
    kinds = {f"{phase}_completed", f"{phase}_failed"}
    return [one for one in EVENTS if one.event_type in kinds]


def grouped(rows: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Rows by key."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def quantile(numbers: Iterable[float], share: float) -> float:
    """Exact and interpolated."""
    ordered: list[float] = sorted(numbers)
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def nearest_rank(its: list[SagaEvent], percent: int) -> int:
    """The smallest duration that so many of all are not longer than."""
    ordered = sorted(one.duration_ms or 0 for one in its)
    return ordered[-(-len(ordered) * percent // 100) - 1]


def share_failed(rows: list[Row]) -> float:
    """Of runs that ended."""
    return len([row for row in rows if row["outcome"] != "completed"]) / len(rows)


def reporting(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """The connection, with the statistics, as if all windows were open, and the reports."""
    connection.execute("CREATE VIEW run_events AS FROM events")
    connection.execute("CREATE VIEW known_definitions AS FROM saga_definitions")
    for table in STATISTICS:
        connection.execute(f'CREATE VIEW "{table.name}" AS SELECT *, TRUE AS "open" FROM ({query_of(SETTINGS, table)})')
    for statement in reports.macros(SETTINGS).values():
        connection.execute(statement)
    return connection


@pytest.fixture(scope="module")
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    """The reports over those runs, as of three days after the first."""
    with opened(EVENTS, *DEFINITIONS, until=NOW) as connection:
        yield reporting(connection)


def rows_of(duck: duckdb.DuckDBPyConnection, name: str, saga: str = "*", **attributes: str) -> list[Row]:
    """The report's rows, by column; as for targets and the moment, they are the tests'."""
    takes = reports.load(name).takes
    more: Row = {"moment": MIDDLE} if takes == "moment" else {"targets": TARGETS} if takes == "targets" else {}
    query, parameters = reports.ask(name, saga, attributes, **more)
    answer = duck.sql(query, params=parameters)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


def by(rows: list[Row], *keys: str) -> dict[Any, Row]:
    """Rows by their key, which no two share."""
    found = {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_every_report_has_a_file_a_title_and_rows(duck: duckdb.DuckDBPyConnection) -> None:
    """Each name is a SQL file and each file a name; its first sentence says what it tells."""
    assert {file.stem for file in reports.SQL.glob("*.sql")} == set(reports.NAMES)
    for name in reports.NAMES:
        report = reports.load(name)
        assert 10 < len(report.title) < 130
        assert report.span >= timedelta(minutes=1)
        rows = rows_of(duck, name)
        assert rows, name
        drawn = {*report.chart.x, *report.chart.y, report.chart.color, report.chart.z} - {None}
        assert drawn <= rows[0].keys(), name


def test_an_unknown_report_is_refused() -> None:
    """The error names those there are."""
    with pytest.raises(LookupError, match="no report 'nope'; there are running_sagas, "):
        reports.load("nope")
    with pytest.raises(ValueError, match="before_after needs moment"):
        reports.ask("before_after")
    with pytest.raises(ValueError, match="variants takes no moment"):
        reports.ask("variants", moment=NOW)
    with pytest.raises(LookupError, match="no order 'size'; there are started, ended, duration"):
        reports.ask_runs(["open"], "size", 1)


def test_running_sagas(duck: duckdb.DuckDBPyConnection) -> None:
    """How many are open, undoing, how old, by kind."""
    got = by(rows_of(duck, "running_sagas"), "saga_name")
    expected = grouped(runs(ended=False), lambda run: run["saga_name"])
    assert got.keys() == expected.keys()
    for kind, its in expected.items():
        ages = [(NOW - run["started_at"]) / timedelta(milliseconds=1) for run in its]
        oldest = min(its, key=lambda run: run["started_at"])
        assert got[kind]["running"] == len(its)
        assert got[kind]["undoing"] == sum(run["last"].event_type == "compensation_started" for run in its)
        assert (got[kind]["oldest_age_ms"], got[kind]["median_age_ms"]) == (max(ages), quantile(ages, 0.5))
        assert (got[kind]["oldest_saga_id"], got[kind]["oldest_last_step"]) == (
            oldest["saga_id"],
            oldest["last"].step_name,
        )


def test_failure_rate(duck: duckdb.DuckDBPyConnection) -> None:
    """Ended and failed by kind; as a macro over its own five minutes or over any other span."""
    got = by(rows_of(duck, "failure_rate"), "saga_name")
    for kind, its in grouped(runs(), lambda run: run["saga_name"]).items():
        assert (got[kind]["ended"], got[kind]["failure_rate"]) == (len(its), pytest.approx(share_failed(its)))
    for span, text in ((timedelta(minutes=5), ""), (timedelta(hours=7), "span := INTERVAL 7 HOUR")):
        recent = runs(lambda run, span=span: run["last_at"] >= NOW - span)  # type: ignore[misc]
        rows = duck.sql(f"SELECT saga_name, ended FROM failure_rate({text})").fetchall()
        assert dict(rows) == Counter(run["saga_name"] for run in recent)
    assert recent


def test_duration_percentiles(duck: duckdb.DuckDBPyConnection) -> None:
    """Exact and interpolated, by kind, of all that ended and of those that completed."""
    got = by(rows_of(duck, "duration_percentiles"), "saga_name")
    expected = grouped(runs(), lambda run: run["saga_name"])
    assert got.keys() == expected.keys()
    for kind, its in expected.items():
        totals = [run["total_ms"] for run in its]
        figures = [got[kind][name] for name in ("avg_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")]
        assert figures == pytest.approx([mean(totals), *(quantile(totals, q) for q in (0.5, 0.95, 0.99)), max(totals)])
        completed = [run["total_ms"] for run in its if run["outcome"] == "completed"]
        assert got[kind]["completed_p50_ms"] == pytest.approx(quantile(completed, 0.5))


def test_most_failing_steps(duck: duckdb.DuckDBPyConnection) -> None:
    """An attempt that was overcome is a failure of the step's, and of no saga."""
    got = by(rows_of(duck, "most_failing_steps"), "saga_name", "step_name")
    sagas = Counter((run["saga_name"], run["failing_step"]) for run in runs() if run["failing_step"])
    executions = grouped(steps("step"), lambda one: (one.saga_name, one.step_name))
    assert len(got) == 6
    for key, row in got.items():
        failed = sum(one.event_type == "step_failed" for one in executions[key])
        assert (row["executions"], row["failed"], row["sagas_failed"]) == (len(executions[key]), failed, sagas[key])
        assert row["failure_rate"] == pytest.approx(failed / len(executions[key]))
    assert list(got) == sorted(got, key=lambda key: (-got[key]["sagas_failed"], -got[key]["failed"], key))


def test_compensations(duck: duckdb.DuckDBPyConnection) -> None:
    """Undoing that succeeded, failed or has not ended, and in how many failed sagas the effect stands."""
    got = by(rows_of(duck, "compensations"), "saga_name", "step_name")
    for (kind, step), row in got.items():
        its = [one for one in EVENTS if one.saga_name == kind and one.step_name == step]
        count = Counter(str(one.event_type) for one in its)
        ended = count["compensation_completed"] + count["compensation_failed"]
        left = [run for run in runs() if run["saga_name"] == kind and step in str(run["residual_effects"])]
        assert row["completed"] == count["compensation_completed"]
        assert row["failed"] == count["compensation_failed"]
        assert row["unfinished"] == count["compensation_started"] - ended
        assert row["left_standing"] == len(left)
        durations = [one.duration_ms for one in its if one in steps("compensation") and one.duration_ms is not None]
        assert row["p95_ms"] == pytest.approx(quantile(durations, 0.95))
    assert {step for _, step in got} == {"reserve"}


def test_daily_trend(duck: duckdb.DuckDBPyConnection) -> None:
    """By the UTC day of the end; the change is against the day before."""
    got = by(rows_of(duck, "daily_trend"), "day", "saga_name")
    expected = grouped(runs(), lambda run: (run["last_at"].astimezone(UTC).date(), run["saga_name"]))
    assert got.keys() == expected.keys()
    for (day, kind), its in expected.items():
        row, before = got[day, kind], expected.get((day - timedelta(days=1), kind))
        assert (row["ended"], row["failure_rate"]) == (len(its), pytest.approx(share_failed(its)))
        assert row["change"] == (pytest.approx(share_failed(its) - share_failed(before)) if before else None)
        assert row["avg_ms"] == pytest.approx(mean(run["total_ms"] for run in its))
        assert row["max_ms"] == max(run["total_ms"] for run in its)
    assert len({day for day, _ in got}) == 3
    assert min(got)[0] == date(2026, 11, 20)


def test_failure_patterns(duck: duckdb.DuckDBPyConnection) -> None:
    """Errors that differ in numbers and quoted values only are one."""
    rows = rows_of(duck, "failure_patterns")
    failed = runs(lambda run: run["outcome"] != "completed")
    expected = Counter((run["error_type"], re.sub(r"[0-9]+|'c[0-9]'", "#", run["error_message"])) for run in failed)
    assert {(row["error_type"], row["pattern"]): row["sagas"] for row in rows} == expected
    assert len(rows) == 4
    assert "order # of # reserve broke" in {row["pattern"] for row in rows}
    assert sum(row["share"] for row in rows) == pytest.approx(1)


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        ("device 0017 sent 12.5 of 1,000 bytes", "device # sent # of # bytes"),
        ("""no 'red shoe' in "Berlin" """, "no # in # "),
        ("run 019b82b4-5540-7a93-8805-f1a39104027d is gone", "run # is gone"),
        ("at 0xDEADBEEF: bad face added", "at #: bad face added"),
        ("order-17 of deadbeef01", "# of #"),
        ("HTTP 503", "HTTP #"),
        ("it can't; won't", "it can't; won't"),
    ],
)
def test_fingerprints(message: str, pattern: str) -> None:
    """What names one thing among many is `#`; a word stays a word."""
    events = [msgspec.structs.replace(one, error_message=message) for one in told("> ", "! reserve", "= failed")]
    with opened(events) as duck:
        reporting(duck)
        assert [row["pattern"] for row in rows_of(duck, "failure_patterns")] == [pattern]


def test_slowest_sagas(duck: duckdb.DuckDBPyConnection) -> None:
    """The twenty longest, each against the median of its kind and with its longest step."""
    rows = rows_of(duck, "slowest_sagas")
    expected = sorted(runs(), key=lambda run: (-run["total_ms"], run["run_id"]))[:20]
    assert [row["run_id"] for row in rows] == [run["run_id"] for run in expected]
    kinds = grouped(runs(), lambda run: run["saga_name"])
    for row in rows:
        middle = median(run["total_ms"] for run in kinds[row["saga_name"]])
        assert row["times_median"] == pytest.approx(row["total_ms"] / middle)
        assert row["slowest_step_ms"] is not None


def test_stuck_sagas(duck: duckdb.DuckDBPyConnection) -> None:
    """Open ones silent for longer than a minute and than nearly all of their kind took."""
    fresh = told("> ", "( reserve", run="fresh", timestamp=START_MS + 3 * 86_400_000 - 59_000)
    kinds = grouped(runs(), lambda run: run["saga_name"])
    with opened([*EVENTS, *fresh], until=NOW) as more:
        reporting(more)
        got = rows_of(more, "stuck_sagas")
    limits = {kind: max(60_000, quantile([run["total_ms"] for run in its], 0.99)) for kind, its in kinds.items()}
    expected = {
        run["run_id"]
        for run in runs(ended=False)
        if (NOW - run["last_at"]) / timedelta(milliseconds=1) > limits[run["saga_name"]]
    }
    assert expected
    assert {row["run_id"] for row in got} == expected
    assert [row["silent_ms"] for row in got] == sorted((row["silent_ms"] for row in got), reverse=True)


def test_variants_and_branches(duck: duckdb.DuckDBPyConnection) -> None:
    """Each way and its share of the kind; each failing step's outcomes and their shares."""

    def variant(run: Row) -> tuple[str, str, str]:
        failing = [f"!{run['failing_step']}"] if run["failing_step"] else []
        way = " > ".join([*run["steps_done"], *failing, *(f"-{step}" for step in run["steps_undone"])])
        return run["saga_name"], way, run["outcome"]

    kinds = Counter(run["saga_name"] for run in runs())
    ways = Counter(map(variant, runs()))
    got = by(rows_of(duck, "variants"), "saga_name", "variant", "outcome")
    assert {key: row["sagas"] for key, row in got.items()} == ways
    assert {key: row["share"] for key, row in got.items()} == {
        k: pytest.approx(n / kinds[k[0]]) for k, n in ways.items()
    }
    failed = grouped(
        runs(lambda run: run["failing_step"] is not None),
        lambda run: (run["saga_name"], run["failing_step"], run["outcome"]),
    )
    given = Counter((run["saga_name"], run["failing_step"]) for run in runs() if run["failing_step"])
    branches = by(rows_of(duck, "branches"), "saga_name", "failing_step", "outcome")
    assert branches.keys() == failed.keys()
    for key, its in failed.items():
        assert branches[key]["share"] == pytest.approx(len(its) / given[key[:2]])
        assert branches[key]["avg_wasted_ms"] == pytest.approx(mean(run["wasted_ms"] for run in its))


def test_outliers(duck: duckdb.DuckDBPyConnection) -> None:
    """Modified z-scores above 3.5 among at least ten of the kind with that outcome."""
    expected: dict[str, float] = {}
    for its in grouped(runs(), lambda run: (run["saga_name"], run["outcome"])).values():
        middle = median(run["total_ms"] for run in its)
        mad = median(abs(run["total_ms"] - middle) for run in its)
        scores = {run["run_id"]: 0.6745 * (run["total_ms"] - middle) / mad for run in its if mad and len(its) >= 10}
        expected |= {run: score for run, score in scores.items() if abs(score) > 3.5}
    assert len(expected) > 5
    assert {row["run_id"]: row["score"] for row in rows_of(duck, "outliers")} == pytest.approx(expected)


def test_duration_heatmap(duck: duckdb.DuckDBPyConnection) -> None:
    """Each step's executions by the UTC hour of their end."""
    expected = grouped(steps("step"), lambda one: (one.saga_name, one.step_name, at(one.timestamp).hour))
    days = grouped(steps("step"), lambda one: (one.saga_name, one.step_name))
    got = by(rows_of(duck, "duration_heatmap"), "saga_name", "step_name", "hour")
    assert got.keys() == expected.keys()
    for key, its in expected.items():
        assert got[key]["executions"] == len(its)
        p50 = nearest_rank(its, 50)
        assert got[key]["p50_ms"] == pytest.approx(p50, rel=0.0101)
        assert got[key]["p95_ms"] == pytest.approx(nearest_rank(its, 95), rel=0.0101)
        assert got[key]["times_median"] == pytest.approx(p50 / nearest_rank(days[key[:2]], 50), rel=0.021)


@pytest.mark.parametrize("name", reports.NAMES)
def test_each_report_can_be_sliced(duck: duckdb.DuckDBPyConnection, name: str) -> None:
    """A slice tells what the report tells of the slice's events alone, by pattern of the name and by all attributes."""

    def is_asked(one: SagaEvent) -> bool:
        return one.saga_name.startswith("order") and one.attributes.get("tenant") == "acme"

    sliced = rows_of(duck, name, "order*", tenant="acme", region="eu")
    with opened([one for one in EVENTS if is_asked(one)], *DEFINITIONS, until=NOW) as alone:
        reporting(alone)
        assert sliced == rows_of(alone, name)
    assert sliced != rows_of(duck, name)
    nothing = rows_of(duck, name, "order*", tenant="acme", region="mars")
    if name == "sla_compliance":  # a target with nothing to judge by is told all the same
        assert [(row["ended"], row["is_met"]) for row in nothing] == [(0, None), (0, None)]
    else:
        assert nothing == []


def test_runs_are_listed_and_counted(duck: duckdb.DuckDBPyConnection) -> None:
    """By status, in the order asked for, and no more than asked for."""
    query, parameters = reports.ask_runs(["completed", "open"], "duration", 7, "refund")
    rows = duck.sql(query, params=parameters).fetchall()
    refunds = [run for run in runs() + runs(ended=False) if run["saga_name"] == "refund"]
    ages = {run["run_id"]: (NOW - run["started_at"]) / timedelta(milliseconds=1) for run in refunds}
    asked = [run for run in refunds if run["outcome"] in ("completed", None)]
    longest = sorted(asked, key=lambda run: -(run["total_ms"] if run["outcome"] else ages[run["run_id"]]))[:7]
    assert [row[-1] for row in rows] == [run["run_id"] for run in longest]
    query, parameters = reports.count_runs(["completed", "open"])
    counted = {row[:2]: row[2] for row in duck.sql(query, params=parameters).fetchall()}
    everything = runs(lambda run: run["outcome"] == "completed") + runs(ended=False)
    assert counted == Counter((run["saga_name"], run["outcome"] or "open") for run in everything)
