"""What a run promises: sagas that live their plans, started at a rate, counted, stopped and cancelled cleanly."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
import sagaz

from pipelines.workload import SAGAS, ModelledSaga, SagaCounts, draw_plan, run_workload, saga_class
from pipelines.workload.errors import OutOfStockError
from pipelines.workload.model import CompensationModel, Failure, SagaModel, StepModel
from sagascope.events import EventType
from sagascope.listener import EventListener
from tests.pipelines.workload.conftest import ENDS, SCALE, STEP_ENDS, Recorder, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.workload import WorkloadReport
    from sagascope.events import SagaEvent

UNDO_ENDS = {EventType.COMPENSATION_COMPLETED, EventType.COMPENSATION_FAILED}


def outcomes(recorder: Recorder) -> dict[str, list[tuple[str, str, str]]]:
    """Per saga what happened, durations and the order of parallel steps aside.

    The saga's own error is left out: where two parallel steps fail, sagaz names the one its hash seed puts first.
    """
    return {
        saga_id: sorted((e.event_type, e.step_name or "", e.error_type or "" if e.step_name else "") for e in events)
        for saga_id, events in recorder.by_saga().items()
    }


def test_the_same_seed_gives_the_same_outcomes() -> None:
    """Whatever scale, concurrency and pace: a saga_id's steps, failures, compensations and end are the same."""
    _, one = run(sagas=200, scale_time=300.0)
    _, other = run(sagas=200, rate=500, scale_time=3000.0, max_running=5, arrivals="even")
    first, second = outcomes(one), outcomes(other)
    common = first.keys() & second.keys()
    assert len(common) >= 200
    assert {saga_id: first[saga_id] for saga_id in common} == {saga_id: second[saga_id] for saga_id in common}


def test_another_seed_gives_other_sagas() -> None:
    """Two seeds share neither ids nor the sequence of types and outcomes."""
    _, one = run(seed=1, sagas=50)
    _, other = run(seed=2, sagas=50)
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
    """The report's counts by type are those of the events, and none is left running."""
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
    assert median(late) < 500.0  # a busy machine's fault; unscaled it would be about a second


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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No saga starts too late, however busy the machine is."""
    monkeypatch.setattr("pipelines.workload.run._LATE_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
def test_even_arrivals_are_exactly_the_rate() -> None:
    """Evenly paced, a second at rate 20 is 20 sagas, none missed, and not in less than the second."""
    report, _ = run(rate=20, seconds=1.0, arrivals="even")
    assert (report.total.started, report.due, report.missed, report.waited_for_place) == (20, 20, 0, 0)
    assert 0 < report.achieved_rate < 20.1


def test_a_process_that_falls_behind_says_so() -> None:
    """More sagas than the machine can start are reported as missed, with the rate that was reached, and the cure."""
    report, _ = run(rate=50_000, seconds=0.3)
    assert report.missed > 0
    assert report.achieved_rate < 50_000
    assert "fell behind" in report.notes[0]
    assert "lower rate" in report.notes[0]


def test_the_bound_on_running_sagas_holds_and_is_told() -> None:
    """Never more than `max_running` at once; that sagas waited for a place is a note."""
    report, recorder = run(rate=200, sagas=60, scale_time=50.0, max_running=7)
    assert recorder.most_running == 7
    assert report.waited_for_place > 0
    assert any("max_running=7" in note for note in report.notes)


def test_what_finds_no_place_until_the_end_is_missed() -> None:
    """A saga that waits for a place when the time is over is not started, and with those due after it is missed."""
    report, _ = run(rate=50, seconds=0.2, scale_time=1.0, max_running=1, grace_seconds=0.0)
    assert (report.total.started, report.waited_for_place, report.total.cancelled) == (1, 1, 1)
    assert report.missed == report.due - 1 > 0


@pytest.mark.usefixtures("patient")
def test_stop_ends_it_promptly_and_running_sagas_finish() -> None:
    """After `stop` no saga starts, none counts as missed, and those that run come to their own end."""

    async def main() -> tuple[WorkloadReport, Recorder, int]:
        recorder = Recorder(sagas=20)
        stop = recorder.enough
        work = asyncio.create_task(run_workload([recorder], rate=100, seconds=90, seed=7, scale_time=50.0, stop=stop))
        await stop.wait()
        assert recorder.running > 0
        for _ in range(10):  # turns of the loop: those being started tell of it
            await asyncio.sleep(0)
        started = recorder.started
        return await work, recorder, started

    report, recorder, started = asyncio.run(main())
    assert report.total.started == started
    assert report.total.cancelled == report.running == recorder.running == 0
    assert report.seconds < 60
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
    report, recorder = run(rate=50, sagas=20, scale_time=1.0, grace_seconds=0.2)
    assert report.total.cancelled == recorder.running > 0
    assert report.running == 0
    assert any("cancelled" in note for note in report.notes)


def test_a_cancelled_workload_leaves_nothing_running() -> None:
    """Cancelling the workload itself, as Ctrl-C does, cancels its sagas too."""

    async def main() -> set[asyncio.Task[Any]]:
        recorder, stop = Recorder(sagas=20), asyncio.Event()
        work = asyncio.create_task(
            run_workload([recorder], rate=100, seconds=None, seed=7, scale_time=1.0, stop=stop, on_progress=print)
        )
        await recorder.enough.wait()
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
        run(seconds=90.0)
    assert time.monotonic() - began < 60.0


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
    run(rate=100, seconds=0.5, on_progress=seen.append, progress_seconds=0.05)
    assert len(seen) >= 2
    started = [report.total.started for report in seen]
    assert started == sorted(started)
    assert all(report.seconds > 0 and report.rate == 100 for report in seen)

    def broken(_: WorkloadReport) -> None:
        raise OSError("no terminal")  # noqa: EM101 - a test double's

    with pytest.raises(OSError, match="no terminal"):
        run(rate=100, seconds=0.3, on_progress=broken, progress_seconds=0.05)


def test_sagaz_is_kept_quiet_and_untouched(caplog: pytest.LogCaptureFixture) -> None:
    """No log line per step or pivot, no saga kept in sagaz's storage, and its global state is as before."""
    config, level = sagaz.get_config(), logging.getLogger("sagaz").level
    caplog.set_level(logging.INFO)
    run(sagas=100)
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
    report, recorder = run(sagas=50, models=(model,))
    assert report.total.rolled_back > 10
    assert {event.saga_name for event in recorder.events} == {"tiny"}
    assert {event.service for event in recorder.events} == {"tiny-service"}
    assert all(set(event.attributes) == {"region"} for event in recorder.events)
