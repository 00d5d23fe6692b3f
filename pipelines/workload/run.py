"""Runs a workload: starts sagas when they are due, and counts what they tell.

Arrivals are open-loop: a saga starts when it is due, whatever became of those before it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.workload.errors import ModelledError
from pipelines.workload.modelled_saga import ModelledSaga, saga_class
from pipelines.workload.plan import draw_plan
from pipelines.workload.sagas import SAGAS
from sagascope.events import EventType
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pipelines.workload.model import SagaModel
    from pipelines.workload.plan import Plan
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
        _require("models", self.models, "one saga or more", holds=bool(self.models))
        _require("arrivals", self.arrivals, "poisson, even", holds=self.arrivals in ("poisson", "even"))
        _require("max_running", self.max_running, "1 or more", holds=1 <= self.max_running < math.inf)
        _require("grace_seconds", self.grace_seconds, "0 or more", holds=0 <= self.grace_seconds < math.inf)
        _require(
            "progress_seconds", self.progress_seconds, "0.01 or more", holds=0.01 <= self.progress_seconds < math.inf
        )


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


@dataclass(frozen=True, slots=True)
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

    @property
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
    _require("rate", rate, "more than 0", holds=0 < rate < math.inf)
    _require("scale_time", scale_time, "1 or more", holds=1 <= scale_time < math.inf)
    _require("seconds", seconds, "more than 0", holds=seconds is None or 0 < seconds < math.inf)
    settings = settings or WorkloadSettings()
    run = _Run(
        listeners=listeners,
        rate=rate,
        seconds=seconds,
        seed=seed,
        scale_time=scale_time,
        prefix=prefix,
        settings=settings,
    )
    progress = asyncio.create_task(_tell(on_progress, run, settings.progress_seconds)) if on_progress else None
    try:
        with _quiet_log():
            return await run.run(stop)
    finally:
        if progress:
            progress.cancel()
            with suppress(asyncio.CancelledError):
                await progress


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


def _require(name: str, value: object, allowed: str, *, holds: bool) -> None:
    if not holds:
        msg = f"{name}: got {value!r}, allowed: {allowed}"
        raise ValueError(msg)


async def _tell(on_progress: Callable[[WorkloadReport], None], run: _Run, every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        on_progress(run.report())


@dataclass(eq=False)
class _Run:
    """One workload: what it was asked for, what runs, what was counted."""

    listeners: Iterable[SagaListener]
    rate: float
    seconds: float | None
    seed: int
    scale_time: float
    prefix: str
    settings: WorkloadSettings

    def __post_init__(self) -> None:
        self._counter = _Counter()
        self._told = (*self.listeners, self._counter)
        self._end = math.inf if self.seconds is None else self.seconds
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._took: float | None = None
        self._arrivals = _arrivals(self.rate, self.seed, self.settings.arrivals)
        self._due = next(self._arrivals)
        self._places = asyncio.Semaphore(self.settings.max_running)
        self._running: dict[asyncio.Task[None], Plan] = {}
        self._started = self._waited = self._missed = 0
        self._latest = 0.0
        self._cancelled: Counter[str] = Counter()
        self._fault: BaseException | None = None

    async def run(self, stop: asyncio.Event) -> WorkloadReport:
        self._starting = asyncio.create_task(self._start_sagas())
        watch = asyncio.create_task(self._watch(stop))
        try:
            await asyncio.wait([self._starting])
            self._took = self._clock() - self._began
            end = self._end
            if self._starting.cancelled():  # what became due just before a stop was not missed, only stopped
                end = self._took - _LATE_SECONDS
            else:
                self._starting.result()  # raises what was no saga's fault
            while self._due < end:
                self._missed, self._due = self._missed + 1, next(self._arrivals)
            if self._running:
                await asyncio.wait(set(self._running), timeout=self.settings.grace_seconds)
        finally:  # also when cancelled itself: no saga outlives its workload
            left = dict(self._running)
            tasks = [self._starting, watch, *left]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # not by task.cancelled(): a saga may have told its end just before
            self._cancelled.update(plan.model.name for plan in left.values() if plan.saga_id in self._counter.unended)
        if self._fault:
            raise self._fault
        return self.report()

    def report(self) -> WorkloadReport:
        counts = self._counter.counts
        names = [model.name for model in self.settings.models]
        return WorkloadReport(
            rate=self.rate,
            seconds=self._clock() - self._began if self._took is None else self._took,
            due=self._started + self._missed,
            latest_start_seconds=self._latest,
            waited_for_place=self._waited,
            settings=self.settings,
            sagas={
                name: SagaCounts(
                    started=counts[name, EventType.SAGA_STARTED],
                    cancelled=self._cancelled[name],
                    events=sum(counts[name, kind] for kind in EventType),
                    **{end: counts[name, kind] for kind, end in _ENDS.items()},
                )
                for name in names
            },
            events={kind: sum(counts[name, kind] for name in names) for kind in EventType},
        )

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._starting.cancel()

    async def _start_sagas(self) -> None:
        """Start each saga when it is due, those due before the end also a little after it: jitter drops none."""
        last_call = None if self.seconds is None else self._began + self.seconds + _LATE_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout_at(last_call):
                while self._due < self._end:
                    await self._sleep_until(self._due)
                    if self._places.locked():
                        self._waited += 1
                    await self._places.acquire()
                    self._latest = max(self._latest, self._clock() - self._began - self._due)
                    self._start(draw_plan(self.seed, self._started, models=self.settings.models, prefix=self.prefix))
                    self._started, self._due = self._started + 1, next(self._arrivals)
        await self._sleep_until(self._end)

    async def _sleep_until(self, moment: float) -> None:
        """Wait until `moment` seconds after the start, at least for the others' turn."""
        await asyncio.sleep(max(0.0, self._began + moment - self._clock()))

    def _start(self, plan: Plan) -> None:
        saga = saga_class(plan.model)(plan, self.scale_time, self._told)
        task = asyncio.create_task(_live(saga, plan), name=plan.saga_id)
        self._running[task] = plan
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._places.release()
        if not task.cancelled() and (fault := task.exception()):
            self._fault = self._fault or fault
            self._starting.cancel()


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


def _arrivals(rate: float, seed: int, kind: str) -> Iterator[float]:
    """When each saga is due, in seconds after the start."""
    rng = random.Random(f"{seed}:arrivals")  # noqa: S311 - a model of the world, no secret
    moment = 0.0
    while True:
        yield moment
        moment += rng.expovariate(rate) if kind == "poisson" else 1.0 / rate


async def _live(saga: ModelledSaga, plan: Plan) -> None:
    """Run a saga to its end; that it fails is part of the plan."""
    with suppress(ModelledError, TimeoutError):
        await saga.run(dict(plan.context), plan.saga_id)
