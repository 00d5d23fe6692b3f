"""Realistic load: real sagaz sagas, drawn from a seed, started at a rate, and the truth that statistics must find in them.

    stop = asyncio.Event()
    async with KafkaListener("localhost:9092") as kafka:
        report = await run_workload([kafka], rate=50, seconds=60, seed=7, scale_time=20, stop=stop)

Arrivals are open-loop: a saga starts when it is due, whatever became of those before it. Modelled durations pass
`scale_time` times faster: a step modelled at 2 s sleeps 100 ms at 20, and that is what the events say it took.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import sagaz
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.workload_sagas import SAGAS, Fate, ModelledError, Plan, SagaModel, StepModel, draw_plan
from sagascope.events import EventType
from sagascope.integrations.sagaz import FanOutSaga
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rich.console import Console

    from sagascope.events import SagaEvent
    from sagascope.listener import SagaListener

_ENDS = {
    EventType.SAGA_COMPLETED: "completed",
    EventType.SAGA_ROLLED_BACK: "rolled_back",
    EventType.SAGA_FAILED: "failed",
}
_LATE_SECONDS = 0.5
"""A saga that starts so long after it was due is in time still: timers and busy machines jitter."""


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """What rarely changes about a workload.

    Raises:
        ValueError: a value is out of its range.
    """

    models: tuple[SagaModel, ...] = SAGAS
    arrivals: Literal["poisson", "even"] = "poisson"
    """`poisson`: seeded exponential gaps, as from many independent customers; `even`: one every 1 / rate seconds."""
    max_running: int = 2000
    """So many sagas run at once; one that is due waits for a place, and the report says so."""
    grace_seconds: float = 15.0
    """So long running sagas may go on after the last start; then they are cancelled."""
    progress_seconds: float = 1.0
    """How often `on_progress` is called."""

    def __post_init__(self) -> None:
        _require("max_running", self.max_running, at_least=1)
        _require("grace_seconds", self.grace_seconds, at_least=0)
        _require("progress_seconds", self.progress_seconds, at_least=0.01)
        if not self.models:
            msg = "models: got none, allowed: one saga or more"
            raise ValueError(msg)
        if self.arrivals not in ("poisson", "even"):
            msg = f"arrivals: got {self.arrivals!r}, allowed: poisson, even"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class SagaCounts:
    """What became of the sagas of one type. Those started and in none of the other counts are running."""

    started: int = 0
    completed: int = 0
    rolled_back: int = 0
    failed: int = 0
    cancelled: int = 0
    """Still running when the grace was over: these have no terminal event."""
    events: int = 0


@dataclass(frozen=True)
class WorkloadReport:
    """What a workload did. The same while it runs (see `on_progress`) and at its end."""

    rate: float
    """Asked for, in sagas per second."""
    seconds: float
    """How long sagas were started; the grace is not in it."""
    due: int
    """Sagas that the rate asked for in that time."""
    latest_start_seconds: float
    """The most that a saga started after it was due."""
    waited_for_place: int
    """Sagas that were due while `max_running` others ran."""
    settings: WorkloadSettings
    sagas: Mapping[str, SagaCounts]
    """By saga_name: every model, in the order of the table."""
    events: Mapping[EventType, int]
    """By event type: all ten."""

    @cached_property
    def total(self) -> SagaCounts:
        """All types together."""
        counts = self.sagas.values()
        return SagaCounts(**{name: sum(getattr(c, name) for c in counts) for name in SagaCounts.__slots__})

    @property
    def running(self) -> int:
        """Sagas that have not ended."""
        total = self.total
        return total.started - total.completed - total.rolled_back - total.failed - total.cancelled

    @property
    def achieved_rate(self) -> float:
        """Sagas started per second."""
        return self.total.started / self.seconds if self.seconds else 0.0

    @property
    def missed(self) -> int:
        """Sagas that were due and could not be started in time."""
        return self.due - self.total.started

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader has to know, one sentence each; empty when all went as asked."""
        notes = []
        if self.missed > 0:
            notes.append(
                f"The load fell behind: {self.total.started:,} of {self.due:,} sagas due were started, "
                f"{self.achieved_rate:.1f} a second where {self.rate:g} were asked for. Ask for a lower rate, "
                "or start a second workload with another seed."
            )
        if self.latest_start_seconds > _LATE_SECONDS:
            notes.append(f"Sagas started up to {self.latest_start_seconds:.1f} s after they were due.")
        if self.waited_for_place:
            notes.append(
                f"{self.waited_for_place:,} sagas waited as max_running={self.settings.max_running:,} others ran: "
                "raise it or --scale-time, or lower --rate."
            )
        if cancelled := self.total.cancelled:
            notes.append(
                f"{cancelled:,} sagas still ran {self.settings.grace_seconds:g} s after the last start and were "
                "cancelled: they have no terminal event."
            )
        return tuple(notes)


async def run_workload(
    listeners: Iterable[SagaListener],
    *,
    rate: float,
    seconds: float | None,
    seed: int,
    scale_time: float,
    stop: asyncio.Event,
    prefix: str = "",
    on_progress: Callable[[WorkloadReport], None] | None = None,
    settings: WorkloadSettings | None = None,
) -> WorkloadReport:
    """Start sagas at `rate` until `seconds` are over or `stop` is set; let the running ones end; say what happened.

    The sagas are those that `draw_plan` gives for numbers 0, 1, 2 …: same seed, same sagas with the same outcomes.

    Args:
        listeners: Who is told of every event. Opening and closing them is the caller's.
        rate: Sagas started per second.
        seconds: How long to start sagas; None: until `stop`.
        seed: Of the sagas and of the gaps between them.
        scale_time: How many times faster modelled durations pass, 1 or more: timeouts do not scale.
        stop: Set it to start no more sagas.
        prefix: Put before every saga_id, to tell workloads of the same seed apart.
        on_progress: Called every `settings.progress_seconds`, while sagas are started and while they end.
        settings: See there.

    Raises:
        ValueError: an argument is out of its range.
        Exception: a saga raised what its model did not plan; no more are started, and it is raised at the end.
    """
    _require("rate", rate, above=0)
    _require("scale_time", scale_time, at_least=1)
    if seconds is not None:
        _require("seconds", seconds, above=0)
    settings = settings or WorkloadSettings()
    run = _Run(
        listeners,
        rate=rate,
        seconds=seconds,
        seed=seed,
        scale_time=scale_time,
        stop=stop,
        prefix=prefix,
        settings=settings,
    )
    progress = asyncio.create_task(_tell(on_progress, run, settings.progress_seconds)) if on_progress else None
    try:
        with _quiet_log():
            return await run.run()
    finally:
        if progress:
            progress.cancel()
            with suppress(asyncio.CancelledError):
                await progress


class ModelledSaga(FanOutSaga):
    """A sagaz saga that lives its plan: each step sleeps, then succeeds or fails. One instance is one run."""

    attribute_keys: ClassVar[tuple[str, ...]] = ("region",)

    def __init__(self, plan: Plan, scale_time: float, listeners: Iterable[SagaListener]) -> None:
        super().__init__(config=_quiet_config(), listeners=listeners)
        self._plan = plan
        self._scale_time = scale_time

    async def _meet(self, fate: Fate) -> None:
        await asyncio.sleep(fate.seconds / self._scale_time)
        if error := fate.error:
            raise error


@cache
def saga_class(model: SagaModel) -> type[ModelledSaga]:
    """The saga class of the model, made with sagaz's decorators, as these alone know pivots."""
    body: dict[str, Any] = {"__doc__": f"{model.name}, as modelled.", "saga_name": model.name, "service": model.service}
    for number, step in enumerate(model.steps):  # sagaz collects in order of the attributes' names
        body[f"step_{number}_{step.name}"] = _action(step)
        if step.compensation:
            body[f"undo_{number}_{step.compensation.name}"] = _compensation(step.name)
    name = "".join(word.capitalize() for word in model.name.split("-")) + "Saga"
    return cast("type[ModelledSaga]", type(name, (ModelledSaga,), body))


def _action(step: StepModel) -> Any:
    # The fate's sleep ends the timeout too, not sagaz's wait_for: a stalled event loop would make others time out.
    @sagaz.action(  # type: ignore[untyped-decorator]
        step.name, depends_on=list(step.after), timeout_seconds=step.timeout_seconds, pivot=step.pivot
    )
    async def act(self: ModelledSaga, context: dict[str, Any]) -> dict[str, Any]:
        await self._meet(self._plan.steps[step.name])
        return {f"{step.name}_ref": f"{context['saga_id']}/{step.name}"}

    return act


def _compensation(step_name: str) -> Any:
    @sagaz.compensate(step_name)  # type: ignore[untyped-decorator]
    async def undo(self: ModelledSaga, _context: dict[str, Any]) -> None:
        await self._meet(self._plan.compensations[step_name])

    return undo


@cache
def _quiet_config() -> Any:
    """A sagaz config of our own: no log line per step, and no storage, as sagaz's default keeps every saga in memory."""
    config = sagaz.SagaConfig(logging=False, metrics=False)
    config.storage = None
    return config


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep sagaz from a line at INFO for each pivot, unless its logger was given a level.

    Importing sagaz 1.5 calls `logging.basicConfig(level=INFO)`, so without this they go to stderr.
    """
    logger = logging.getLogger("sagaz")
    ours = logger.level == logging.NOTSET
    if ours:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        if ours:
            logger.setLevel(logging.NOTSET)


class _Counter(EventListener):
    """Counts the events by saga_name and type, and knows which sagas have not ended."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, EventType]] = Counter()
        self.unended: set[str] = set()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        for event in events:
            self.counts[event.saga_name, event.event_type] += 1
            if event.event_type is EventType.SAGA_STARTED:
                self.unended.add(event.saga_id)
            elif event.event_type in _ENDS:
                self.unended.discard(event.saga_id)


class _Run:
    """One workload: what it was asked for, what runs, what was counted."""

    def __init__(
        self,
        listeners: Iterable[SagaListener],
        *,
        rate: float,
        seconds: float | None,
        seed: int,
        scale_time: float,
        stop: asyncio.Event,
        prefix: str,
        settings: WorkloadSettings,
    ) -> None:
        self._counter = _Counter()
        self._listeners = (*listeners, self._counter)
        self._rate = rate
        self._seconds = seconds
        self._seed = seed
        self._scale_time = scale_time
        self._stop = stop
        self._prefix = prefix
        self._settings = settings
        self._classes = {model.name: saga_class(model) for model in settings.models}
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._running: dict[asyncio.Task[None], Plan] = {}
        self._started = 0
        self._waited = 0
        self._latest = 0.0
        self._missed = 0
        self._starting_took: float | None = None
        self._cancelled: Counter[str] = Counter()
        self._fault: BaseException | None = None
        self._halted = asyncio.Event()
        self._place = asyncio.Event()

    async def run(self) -> WorkloadReport:
        watch = asyncio.create_task(self._watch_stop())
        self._began = self._clock()
        try:
            await self._start_sagas()
            if self._running:
                await asyncio.wait(set(self._running), timeout=self._settings.grace_seconds)
        finally:  # also when cancelled itself: no saga outlives its workload
            watch.cancel()
            left = dict(self._running)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, watch, return_exceptions=True)
            # not by task.cancelled(): a saga may have told its end just before
            self._cancelled.update(plan.model.name for plan in left.values() if plan.saga_id in self._counter.unended)
        if self._fault:
            raise self._fault
        return self.report()

    def report(self) -> WorkloadReport:
        counts = self._counter.counts
        took = self._clock() - self._began if self._starting_took is None else self._starting_took
        return WorkloadReport(
            rate=self._rate,
            seconds=took,
            due=self._started + self._missed,
            latest_start_seconds=self._latest,
            waited_for_place=self._waited,
            settings=self._settings,
            sagas=MappingProxyType(
                {
                    model.name: SagaCounts(
                        started=counts[model.name, EventType.SAGA_STARTED],
                        cancelled=self._cancelled[model.name],
                        events=sum(counts[model.name, kind] for kind in EventType),
                        **{end: counts[model.name, kind] for kind, end in _ENDS.items()},
                    )
                    for model in self._settings.models
                }
            ),
            events=MappingProxyType(
                {kind: sum(counts[model.name, kind] for model in self._settings.models) for kind in EventType}
            ),
        )

    async def _watch_stop(self) -> None:
        await self._stop.wait()
        self._halt()

    def _halt(self) -> None:
        """Start no more sagas, and wake who waits to start one."""
        self._halted.set()
        self._place.set()

    async def _start_sagas(self) -> None:
        """Start each saga when it is due, those due before the end also a little after it: jitter drops none."""
        end = math.inf if self._seconds is None else self._seconds
        last_call = end + _LATE_SECONDS
        due = _arrivals(self._rate, self._seed, self._settings.arrivals)
        number, moment = 0, next(due)
        while moment < end and await self._sleep_until(moment) and await self._find_place(last_call):
            now = self._clock() - self._began
            if now > last_call:
                break
            self._latest = max(self._latest, now - moment)
            self._start(draw_plan(self._seed, number, models=self._settings.models, prefix=self._prefix))
            number, moment = number + 1, next(due)
        if end < math.inf:
            await self._sleep_until(end)
        self._starting_took = took = self._clock() - self._began
        # what became due just before a stop was not missed, only stopped
        deadline = end if took >= end else took - _LATE_SECONDS
        while moment < deadline:
            self._missed, moment = self._missed + 1, next(due)

    async def _sleep_until(self, moment: float) -> bool:
        """Wait until `moment` seconds after the start, at least for the others' turn; False when to start no more."""
        delay = self._began + moment - self._clock()
        if delay <= 0:
            await asyncio.sleep(0)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._halted.wait()
        return not self._halted.is_set()

    async def _find_place(self, end: float) -> bool:
        """Wait for less than `max_running` to run; False when there was no place before `end`, or when to stop."""
        if len(self._running) >= self._settings.max_running:
            self._waited += 1
        while len(self._running) >= self._settings.max_running:
            self._place.clear()
            if self._halted.is_set():
                return False
            try:
                async with asyncio.timeout_at(None if end == math.inf else self._began + end):
                    await self._place.wait()
            except TimeoutError:
                return False
        return not self._halted.is_set()

    def _start(self, plan: Plan) -> None:
        saga = self._classes[plan.model.name](plan, self._scale_time, self._listeners)
        task = asyncio.create_task(_live(saga, plan), name=plan.saga_id)
        self._started += 1
        self._running[task] = plan
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._place.set()
        if not task.cancelled() and (fault := task.exception()):
            self._fault = self._fault or fault
            self._halt()


async def _live(saga: ModelledSaga, plan: Plan) -> None:
    """Run a saga to its end; that it fails is part of the plan."""
    with suppress(ModelledError, TimeoutError):
        await saga.run(dict(plan.context), plan.saga_id)


async def _tell(on_progress: Callable[[WorkloadReport], None], run: _Run, every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        on_progress(run.report())


def _arrivals(rate: float, seed: int, kind: str) -> Iterator[float]:
    """When each saga is due, in seconds after the start."""
    rng = random.Random(f"{seed}:arrivals")  # noqa: S311 - a model of the world, no secret
    moment = 0.0
    while True:
        yield moment
        moment += rng.expovariate(rate) if kind == "poisson" else 1.0 / rate


def _require(name: str, value: float, *, above: float | None = None, at_least: float | None = None) -> None:
    if above is not None and value > above and math.isfinite(value):
        return
    if at_least is not None and value >= at_least and math.isfinite(value):
        return
    allowed = f"more than {above:g}" if above is not None else f"{at_least:g} or more"
    msg = f"{name}: got {value!r}, allowed: {allowed}"
    raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class StepTruth:
    """What statistics must find of one step, given enough sagas. Milliseconds are scaled, seconds modelled."""

    saga_name: str
    step_name: str
    after: tuple[str, ...]
    pivot: bool
    failure_rate: float
    """Of those runs of the step that were begun."""
    median_seconds: float
    median_ms: float
    p95_ms: float
    compensation: str | None
    compensation_median_ms: float | None
    compensation_failure_rate: float | None
    """Of those compensations that were begun."""


@dataclass(frozen=True)
class Truth:
    """What is known of the models, to hold statistics against. Durations count completed and failed steps both."""

    models: tuple[SagaModel, ...] = SAGAS

    def describe(self, scale_time: float = 1.0) -> tuple[StepTruth, ...]:
        """Every step of every saga, in the order of the table."""
        return tuple(_truth(model, step, scale_time) for model in self.models for step in model.steps)

    def step(self, saga_name: str, step_name: str, scale_time: float = 1.0) -> StepTruth:
        """One step.

        Raises:
            LookupError: no model has it.
        """
        for row in self.describe(scale_time):
            if (row.saga_name, row.step_name) == (saga_name, step_name):
                return row
        msg = f"no step {step_name!r} in saga {saga_name!r}"
        raise LookupError(msg)

    @cached_property
    def slow(self) -> StepTruth:
        """The step with the largest median."""
        return max(self.describe(), key=lambda row: row.median_seconds)

    @cached_property
    def flaky(self) -> StepTruth:
        """The step with the largest failure rate."""
        return max(self.describe(), key=lambda row: row.failure_rate)

    @property
    def shares(self) -> Mapping[str, float]:
        """Each saga type's share of all sagas."""
        total = math.fsum(model.weight for model in self.models)
        return {model.name: model.weight / total for model in self.models}


def _truth(model: SagaModel, step: StepModel, scale_time: float) -> StepTruth:
    compensation, to_ms = step.compensation, 1000.0 / scale_time
    return StepTruth(
        saga_name=model.name,
        step_name=step.name,
        after=step.after,
        pivot=step.pivot,
        failure_rate=step.failure_rate,
        median_seconds=step.quantile(0.5),
        median_ms=step.quantile(0.5) * to_ms,
        p95_ms=step.quantile(0.95) * to_ms,
        compensation=compensation.name if compensation else None,
        compensation_median_ms=compensation.median_seconds * to_ms if compensation else None,
        compensation_failure_rate=compensation.failure_rate if compensation else None,
    )


def print_truth(console: Console, truth: Truth, scale_time: float) -> None:
    """Print what statistics must find in a workload at that scale, for `--describe`; fits into 80 columns."""
    rows = truth.describe(scale_time)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Step, after its level", no_wrap=True)
    for heading in ("Fails", "p50 ms", "p95 ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Undone by", no_wrap=True)
    table.add_column("Fails", justify="right", no_wrap=True)
    for model in truth.models:
        share = f"{truth.shares[model.name]:.0%} of all sagas"
        table.add_row(f"[bold]{model.name}[/]", _percent(model.failure_rate), "", "", share)
        levels: dict[str, int] = {}
        for row in rows:
            if row.saga_name == model.name:
                levels[row.step_name] = 1 + max((levels[name] for name in row.after), default=0)
                table.add_row(f"  {levels[row.step_name]} {row.step_name}", *_cells(row, truth))
        table.add_section()
    console.print(table)
    console.print(
        f"Modelled durations pass {scale_time:g} times faster. Steps of one level run at once.\n"
        "A step's rate is of the times it is run; a saga fails when a step of it does.",
        highlight=False,
    )
    slow, flaky = truth.slow, truth.flaky
    slowest = sorted(row.median_ms for row in rows)[-2:]
    flakiest = sorted(row.failure_rate for row in rows)[-2:]
    console.print(
        f"Slow:  {slow.saga_name}.{slow.step_name}, p50 {slowest[-1]:,.0f} ms; the next {slowest[0]:,.0f} ms."
    )
    console.print(
        f"Flaky: {flaky.saga_name}.{flaky.step_name}, {flakiest[-1]:.1%} fail; the next {flakiest[0]:.1%}.",
        highlight=False,
    )


def _cells(row: StepTruth, truth: Truth) -> Iterator[str]:
    this = (row.saga_name, row.step_name)
    is_flaky = this == (truth.flaky.saga_name, truth.flaky.step_name)
    is_slow = this == (truth.slow.saga_name, truth.slow.step_name)
    yield _marked(_percent(row.failure_rate), marked=is_flaky)
    yield _marked(f"{row.median_ms:,.0f}", marked=is_slow)
    yield f"{row.p95_ms:,.0f}"
    yield "pivot: no way back" if row.pivot else row.compensation or ""
    yield _percent(row.compensation_failure_rate)


def _marked(text: str, *, marked: bool) -> str:
    return f"[bold red]{text}[/]" if marked else text


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1%}" if rate else "-"
