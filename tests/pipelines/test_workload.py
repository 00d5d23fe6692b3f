"""What `pipelines.workload` promises: real sagas, drawn from a seed, at a rate, with a truth that statistics can find."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
import sagaz
from rich.console import Console

from pipelines.workload import (
    ModelledSaga,
    SagaCounts,
    Truth,
    WorkloadReport,
    WorkloadSettings,
    print_truth,
    run_workload,
    saga_class,
)
from pipelines.workload_sagas import (
    SAGAS,
    CompensationModel,
    Failure,
    OutOfStockError,
    SagaModel,
    StepModel,
    draw_plan,
)
from sagascope.events import EventType
from sagascope.integrations.sagaz import FanOutSaga, definition_of
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sagascope.events import SagaEvent

ENDS = {EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED}
STEP_ENDS = {EventType.STEP_COMPLETED, EventType.STEP_FAILED}
UNDO_ENDS = {EventType.COMPENSATION_COMPLETED, EventType.COMPENSATION_FAILED}
SCALE = 200.0


class Recorder(EventListener):
    """Keeps every event, and how many sagas ran at once at most."""

    def __init__(self) -> None:
        self.events: list[SagaEvent] = []
        self.running = 0
        self.most_running = 0

    async def write(self, events: Sequence[SagaEvent]) -> None:
        self.events += events
        for event in events:
            self.running += (event.event_type is EventType.SAGA_STARTED) - (event.event_type in ENDS)
            self.most_running = max(self.most_running, self.running)

    def by_saga(self) -> dict[str, list[SagaEvent]]:
        """The events of each saga_id."""
        sagas = defaultdict(list)
        for event in self.events:
            sagas[event.saga_id].append(event)
        return sagas


def run(
    *, rate: float = 300, seconds: float | None = 1.0, seed: int = 7, scale_time: float = 1000.0, **settings: Any
) -> tuple[WorkloadReport, Recorder]:
    """A workload and what it told."""
    recorder = Recorder()
    arguments = {name: settings.pop(name) for name in ("prefix", "on_progress") if name in settings}

    async def main() -> WorkloadReport:
        return await run_workload(
            [recorder],
            rate=rate,
            seconds=seconds,
            seed=seed,
            scale_time=scale_time,
            stop=asyncio.Event(),
            settings=WorkloadSettings(**settings),
            **arguments,
        )

    return asyncio.run(main()), recorder


@pytest.fixture(scope="module")
def modest() -> tuple[WorkloadReport, Recorder]:
    """A modest run, long enough that all that can happen does."""
    return run(rate=300, seconds=5.0, scale_time=SCALE)


def outcomes(recorder: Recorder) -> dict[str, list[tuple[str, str, str]]]:
    """Per saga what happened, durations and the order of parallel steps aside.

    The saga's own error is left out: where two parallel steps fail, sagaz names the one its hash seed puts first.
    """
    return {
        saga_id: sorted((e.event_type, e.step_name or "", e.error_type or "" if e.step_name else "") for e in events)
        for saga_id, events in recorder.by_saga().items()
    }


def within(failed: int, of: int, rate: float) -> bool:
    """Is that count likely by a binomial law: in 4.5 standard deviations, and one for the discrete steps?"""
    return abs(failed - of * rate) <= 4.5 * math.sqrt(of * rate * (1 - rate)) + 1


# ---- the models


def test_there_are_realistic_sagas_of_all_shapes() -> None:
    """Five types or more of 3 to 7 steps, some parallel, two or more with a pivot, some steps with no way back."""
    assert len({model.name for model in SAGAS}) >= 5
    definitions = [definition_of(saga_class(model)(draw_plan(0, 0), 1.0, ())) for model in SAGAS]
    assert all(3 <= len(definition.steps) <= 7 for definition in definitions)
    levels = [level for model in SAGAS for level in saga_class(model)(draw_plan(0, 0), 1.0, ()).get_execution_order()]
    assert sum(len(level) > 1 for level in levels) >= 2
    assert sum(any(step.pivot for step in definition.steps) for definition in definitions) >= 2
    steps = [step for definition in definitions for step in definition.steps]
    assert any(not step.compensable and not step.pivot for step in steps)
    assert any(step.compensation and step.compensation.failure for model in SAGAS for step in model.steps)


def test_sagaz_knows_the_saga_as_it_is_modelled() -> None:
    """The class made from a model has its steps, in its order, with their edges, pivots, timeouts and compensations."""
    for model in SAGAS:
        saga = saga_class(model)(draw_plan(0, 0), 1.0, ())
        assert isinstance(saga, FanOutSaga)
        definition = definition_of(saga)
        assert definition.saga_name == model.name
        assert [(s.step_name, s.depends_on, s.pivot, s.compensable, s.timeout_seconds) for s in definition.steps] == [
            (s.name, s.after, s.pivot, s.compensation is not None, s.timeout_seconds) for s in model.steps
        ]


def test_one_step_is_slow_and_one_is_flaky_beyond_doubt() -> None:
    """The slow step's median is four times any other's or more, the flaky one's failure rate eight times."""
    rows = Truth().describe()
    medians, rates = sorted(row.median_seconds for row in rows), sorted(row.failure_rate for row in rows)
    assert medians[-1] >= 4 * medians[-2]
    assert rates[-1] >= 8 * rates[-2]
    assert rates[-2] <= 0.02
    truth = Truth()
    assert (truth.slow.step_name, truth.flaky.step_name) == ("underwrite", "push_firmware")
    assert (truth.slow.saga_name, truth.slow.step_name) != (truth.flaky.saga_name, truth.flaky.step_name)


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


def test_a_model_that_cannot_hold_is_refused() -> None:
    """Probabilities of 1 or more, a median beyond the timeout, an unknown or a doubled step name its reason."""
    with pytest.raises(ValueError, match="sum to 1"):
        StepModel("a", 1.0, failures=(Failure(1.0, OutOfStockError, ""),))
    with pytest.raises(ValueError, match="median_seconds=9"):
        StepModel("a", 9.0, timeout_seconds=10.0)
    for steps in [(StepModel("a", 1.0, after=("b",)),), (StepModel("a", 1.0), StepModel("a", 1.0))]:
        with pytest.raises(ValueError, match="step 'a'"):
            SagaModel("s", "service", 1, "thing", steps)


# ---- the plans


def test_plans_reveal_the_truth() -> None:
    """Over many sagas the mix, every failure rate and every median are those of the truth, compensations' too."""
    plans = [draw_plan(11, number) for number in range(30_000)]
    mix = Counter(plan.model.name for plan in plans)
    assert all(within(mix[name], len(plans), share) for name, share in Truth().shares.items())
    for row in Truth().describe():
        fates = [plan.steps[row.step_name] for plan in plans if plan.model.name == row.saga_name]
        assert within(sum(f.error is not None for f in fates), len(fates), row.failure_rate), row
        assert median(f.seconds for f in fates) == pytest.approx(row.median_seconds, rel=0.05), row
        below_p95 = sum(f.seconds * 1000 <= row.p95_ms for f in fates)
        assert within(below_p95, len(fates), 0.95), row
        if row.compensation_failure_rate is not None:
            undos = [plan.compensations[row.step_name] for plan in plans if plan.model.name == row.saga_name]
            assert within(sum(u.error is not None for u in undos), len(undos), row.compensation_failure_rate), row


def test_plans_are_the_same_in_every_process() -> None:
    """The seed alone decides, not the process's hash seed."""
    code = "from pipelines.workload_sagas import draw_plan; print([draw_plan(7, n) for n in range(200)])"
    root = Path(__file__).parents[2]
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert printed[0].decode().strip() == str([draw_plan(7, n) for n in range(200)])


def test_ids_name_saga_seed_and_number_and_the_prefix_parts_workloads() -> None:
    """A saga_id is `<prefix><saga_name>-<seed>-<number>`, and the prefix changes nothing else."""
    plain, mine = draw_plan(7, 12), draw_plan(7, 12, prefix="mine-")
    assert plain.saga_id == f"{plain.model.name}-7-000012"
    assert mine.saga_id == f"mine-{plain.saga_id}"
    assert replace(mine, saga_id=plain.saga_id) == plain


# ---- the runs


def test_the_same_seed_gives_the_same_outcomes() -> None:
    """Whatever scale, concurrency and pace: a saga_id's steps, failures, compensations and end are the same."""
    _, one = run(rate=300, seconds=1.5, scale_time=300.0)
    _, other = run(rate=500, seconds=1.5, scale_time=3000.0, max_running=5, arrivals="even")
    first, second = outcomes(one), outcomes(other)
    common = first.keys() & second.keys()
    assert len(common) >= 40  # 450 unless the machine is very busy
    assert {saga_id: first[saga_id] for saga_id in common} == {saga_id: second[saga_id] for saga_id in common}


def test_another_seed_gives_other_sagas() -> None:
    """Two seeds share neither ids nor the sequence of types and outcomes."""
    _, one = run(seed=1, seconds=0.5)
    _, other = run(seed=2, seconds=0.5)
    assert not outcomes(one).keys() & outcomes(other).keys()
    assert list(outcomes(one).values()) != list(outcomes(other).values())


def test_everything_that_can_happen_happens(modest: tuple[WorkloadReport, Recorder]) -> None:
    """A modest run has all ten event types and all saga types."""
    report, recorder = modest
    assert {event.event_type for event in recorder.events} == set(EventType)
    assert all(count > 0 for count in report.events.values())
    assert all(counts.started > 0 for counts in report.sagas.values())


def test_every_saga_ends_once(modest: tuple[WorkloadReport, Recorder]) -> None:
    """Each started saga has one start, first, and one terminal event, last."""
    for events in modest[1].by_saga().values():
        assert [e.sequence for e in sorted(events, key=lambda e: e.sequence)] == list(range(len(events)))
        assert events[0].event_type is EventType.SAGA_STARTED
        assert [e.event_type in ENDS for e in events] == [False] * (len(events) - 1) + [True]


def test_the_report_counts_what_was_told(modest: tuple[WorkloadReport, Recorder]) -> None:
    """The report's counts by type are those of the events, none is left running, and the rate was kept."""
    report, recorder = modest
    told = Counter((event.saga_name, event.event_type) for event in recorder.events)
    for name, counts in report.sagas.items():
        assert counts == SagaCounts(
            started=told[name, EventType.SAGA_STARTED],
            completed=told[name, EventType.SAGA_COMPLETED],
            rolled_back=told[name, EventType.SAGA_ROLLED_BACK],
            failed=told[name, EventType.SAGA_FAILED],
            cancelled=0,
            events=sum(count for (saga, _), count in told.items() if saga == name),
        )
    assert report.events == Counter(event.event_type for event in recorder.events)
    assert report.total.events == len(recorder.events)
    assert report.running == 0


def test_a_saga_lives_its_plan(modest: tuple[WorkloadReport, Recorder]) -> None:
    """Every step and compensation takes as long as planned, or longer by the machine's fault, and fails as planned."""
    late = []
    for saga_id, events in modest[1].by_saga().items():
        plan = draw_plan(7, int(saga_id.rpartition("-")[2]))
        assert plan.saga_id == saga_id
        for event in events:
            if event.event_type not in STEP_ENDS | UNDO_ENDS:
                continue
            fates = plan.steps if event.event_type in STEP_ENDS else plan.compensations
            fate = fates[event.step_name or ""]
            assert (event.error_type or None) == (fate.error_type.__name__ if fate.error_type else None)
            assert event.error_message == (fate.message or event.error_type)
            assert event.duration_ms is not None
            late.append(event.duration_ms - fate.seconds * 1000 / SCALE)
    assert min(late) >= -1.0
    assert median(late) < 100.0  # a busy machine's fault; unscaled it would be seconds


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


def test_a_timeout_reaches_the_events_as_sagaz_tells_it(modest: tuple[WorkloadReport, Recorder]) -> None:
    """A step that times out fails with TimeoutError after its timeout, and the saga names step and timeout."""
    sagas = [es for es in modest[1].by_saga().values() if any(e.error_type == "TimeoutError" for e in es)]
    assert sagas
    told = [
        (step, saga)
        for events in sagas
        for step in events
        if step.event_type is EventType.STEP_FAILED and step.error_type == "TimeoutError"
        for saga in events[-1:]
        if sum(e.event_type is EventType.STEP_FAILED for e in events) == 1
    ]
    assert told
    for step, saga in told:
        assert saga.error_type == "TimeoutError"
        assert f"Step '{step.step_name}' timed out after" in (saga.error_message or "")


def test_pivots_end_in_failure_and_compensations_roll_back(modest: tuple[WorkloadReport, Recorder]) -> None:
    """A failure after a completed pivot or a failed compensation leaves something, any other leaves nothing."""
    for events in modest[1].by_saga().values():
        if events[-1].event_type is EventType.SAGA_COMPLETED:
            continue
        left = any(
            e.event_type is EventType.COMPENSATION_FAILED or (e.event_type is EventType.STEP_COMPLETED and e.pivot)
            for e in events
        )
        assert (events[-1].event_type is EventType.SAGA_FAILED) == left


def test_even_arrivals_are_exactly_the_rate() -> None:
    """Evenly paced, a second at rate 20 is 20 sagas, none missed."""
    report, _ = run(rate=20, seconds=1.0, arrivals="even")
    assert (report.total.started, report.due, report.missed, report.waited_for_place) == (20, 20, 0, 0)
    assert report.achieved_rate == pytest.approx(20, rel=0.4)


def test_a_process_that_falls_behind_says_so() -> None:
    """More sagas than the machine can start are reported as missed, with the rate that was reached, and the cure."""
    report, _ = run(rate=50_000, seconds=0.3)
    assert report.missed > 0
    assert report.achieved_rate < 50_000
    assert "fell behind" in report.notes[0]
    assert "lower rate" in report.notes[0]


def test_the_bound_on_running_sagas_holds_and_is_told() -> None:
    """Never more than `max_running` at once; that sagas waited for a place is a note."""
    report, recorder = run(rate=200, seconds=0.5, scale_time=50.0, max_running=7)
    assert recorder.most_running == 7
    assert report.waited_for_place > 0
    assert any("max_running=7" in note for note in report.notes)


def test_stop_ends_it_promptly_and_running_sagas_finish() -> None:
    """After `stop` no saga starts, and those that run come to their own end."""

    async def main() -> tuple[WorkloadReport, Recorder, float, int]:
        recorder, stop = Recorder(), asyncio.Event()
        work = asyncio.create_task(run_workload([recorder], rate=100, seconds=None, seed=7, scale_time=50.0, stop=stop))
        await asyncio.sleep(0.6)
        stop.set()
        stopped = time.monotonic()
        assert recorder.running > 0
        for _ in range(10):  # turns of the loop: those being started tell of it
            await asyncio.sleep(0)
        started = sum(event.event_type is EventType.SAGA_STARTED for event in recorder.events)
        return await work, recorder, time.monotonic() - stopped, started

    report, recorder, took, started = asyncio.run(main())
    assert report.total.started == started
    assert report.total.cancelled == report.running == recorder.running == 0
    assert report.seconds > 0.5
    assert took < 5.0
    assert report.missed == 0


def test_a_stop_before_the_start_starts_nothing() -> None:
    """With `stop` set already the report is empty."""

    async def main() -> WorkloadReport:
        stop = asyncio.Event()
        stop.set()
        return await run_workload([], rate=100, seconds=None, seed=7, scale_time=50.0, stop=stop)

    report = asyncio.run(main())
    assert report.total == SagaCounts()
    assert report.notes == ()


def test_what_outlives_the_grace_is_cancelled_and_told() -> None:
    """Sagas still running after the grace are cancelled, counted as such, and have no terminal event."""
    began = time.monotonic()
    report, recorder = run(rate=50, seconds=0.4, scale_time=1.0, grace_seconds=0.2)
    assert time.monotonic() - began < 5.0
    assert report.total.cancelled == recorder.running > 0
    assert report.running == 0
    assert any("cancelled" in note for note in report.notes)


def test_a_cancelled_workload_leaves_nothing_running() -> None:
    """Cancelling the workload itself, as Ctrl-C does, cancels its sagas too."""

    async def main() -> set[asyncio.Task[Any]]:
        work = asyncio.create_task(
            run_workload([], rate=100, seconds=None, seed=7, scale_time=1.0, stop=asyncio.Event(), on_progress=print)
        )
        await asyncio.sleep(0.3)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(main()) == set()


def test_what_no_model_planned_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is a fault of the workload, not of the model, ends it and is raised."""

    async def broken(*_: object) -> None:
        raise KeyError("a bug")  # noqa: EM101 - a bug's

    monkeypatch.setattr(ModelledSaga, "_meet", broken)
    began = time.monotonic()
    with pytest.raises(KeyError, match="a bug"):
        run(seconds=60.0)
    assert time.monotonic() - began < 5.0


def test_a_listener_that_raises_harms_neither_saga_nor_report(caplog: pytest.LogCaptureFixture) -> None:
    """A broken listener is logged, and every saga still ends and is counted."""

    class Broken(EventListener):
        async def write(self, events: Sequence[SagaEvent]) -> None:
            raise OSError("down")  # noqa: EM101 - a test double's

    async def main() -> WorkloadReport:
        return await run_workload([Broken()], rate=50, seconds=0.2, seed=7, scale_time=1000.0, stop=asyncio.Event())

    with caplog.at_level(logging.CRITICAL, "sagascope"):
        report = asyncio.run(main())
    assert report.total.started > 0
    assert report.running == 0


def test_progress_is_told_while_it_runs() -> None:
    """`on_progress` gets reports whose counts only grow; what it raises is raised at the end."""
    seen: list[WorkloadReport] = []
    run(rate=100, seconds=0.5, on_progress=seen.append, progress_seconds=0.1)
    assert len(seen) >= 3
    started = [report.total.started for report in seen]
    assert started == sorted(started)
    assert all(report.seconds > 0 and report.rate == 100 for report in seen)

    def broken(_: WorkloadReport) -> None:
        raise OSError("no terminal")  # noqa: EM101 - a test double's

    with pytest.raises(OSError, match="no terminal"):
        run(rate=100, seconds=0.3, on_progress=broken, progress_seconds=0.1)


def test_sagaz_is_kept_quiet_and_untouched(caplog: pytest.LogCaptureFixture) -> None:
    """No log line per step or pivot, no saga kept in sagaz's storage, and its global state is as before."""
    config, level = sagaz.get_config(), logging.getLogger("sagaz").level
    caplog.set_level(logging.INFO)
    run(seconds=0.3)
    assert [record for record in caplog.records if record.name.startswith("sagaz")] == []
    assert sagaz.get_config() is config
    assert logging.getLogger("sagaz").level == level
    assert saga_class(SAGAS[0])(draw_plan(0, 0), 1.0, ())._config.storage is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", 0.0),
        ("rate", math.inf),
        ("seconds", -1.0),
        ("seconds", math.nan),
        ("scale_time", 0.5),
        ("max_running", 0),
        ("grace_seconds", -1.0),
        ("progress_seconds", 0.0),
        ("arrivals", "often"),
        ("models", ()),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, value: Any) -> None:
    """The error names the argument, its value and what is allowed."""
    with pytest.raises(ValueError, match=rf"{name}: got .*, allowed: "):
        run(**{name: value})


def test_own_models_can_be_run() -> None:
    """The models are data: a workload of any others runs alike, here one whose only compensation always meets its end."""
    model = SagaModel(
        "tiny",
        "tiny-service",
        1,
        "thing",
        (
            StepModel("one", 0.1, compensation=CompensationModel("undo_one", 0.1)),
            StepModel("two", 0.1, after=("one",), failures=(Failure(0.9, OutOfStockError, "none of {ref} left"),)),
        ),
    )
    report, recorder = run(rate=100, seconds=0.5, models=(model,))
    assert report.total.rolled_back > 10
    assert {event.saga_name for event in recorder.events} == {"tiny"}
    assert {event.service for event in recorder.events} == {"tiny-service"}
    assert all(set(event.attributes) == {"region"} for event in recorder.events)


def printed(width: int, models: tuple[SagaModel, ...] = SAGAS) -> str:
    """What `--describe` prints at that width."""
    console = Console(file=io.StringIO(), width=width)
    print_truth(console, Truth(models), 20.0)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_describe_shows_every_step_and_marks_the_slow_and_the_flaky_one(width: int) -> None:
    """Every saga and step is there uncut, in a terminal of 80 columns too, and the two to be found are named."""
    text = printed(width)
    words = words_of(text.splitlines())
    assert all(row.step_name in words and row.saga_name in words for row in Truth().describe())
    assert "…" not in text
    assert "loan-origination.underwrite" in text
    assert "iot-device-orchestration.push_firmware" in text


def words_of(lines: Iterable[str]) -> set[str]:
    """All words of the lines."""

    def words() -> Iterator[str]:
        for line in lines:
            yield from line.replace("│", " ").split()

    return set(words())
