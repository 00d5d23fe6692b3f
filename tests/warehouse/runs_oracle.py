"""What must be said of a run and of its steps, by plain Python over its events: slow, obvious, and no SQL."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sagascope.events import EventType, SagaEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagascope.definitions import SagaDefinition

ENDS = (EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED)
UNDOING = (EventType.COMPENSATION_STARTED, EventType.COMPENSATION_COMPLETED, EventType.COMPENSATION_FAILED)


class StepStory:
    """One step of one run, its events in their order."""

    def __init__(self, name: str, events: list[SagaEvent], definition: SagaDefinition | None) -> None:
        self.name = name
        self._events = events
        defined = definition.step(name) if definition and any(e.definition_id for e in events) else None
        told = [e.compensable for e in events if e.compensable is not None]
        self.compensable = any(told) if told else (defined.compensable if defined else None)
        told = [e.pivot for e in events if e.pivot is not None]
        self.pivot = any(told) if told else bool(defined and defined.pivot)

    def last(self, *types: EventType) -> int:
        """The place of its last event of these types; -1 where there is none."""
        return max((n for n, e in enumerate(self._events) if e.event_type in types), default=-1)

    def of(self, *types: EventType) -> list[SagaEvent]:
        """Its events of these types."""
        return [e for e in self._events if e.event_type in types]

    @property
    def done(self) -> bool:
        """It succeeded once."""
        return self.last(EventType.STEP_COMPLETED) >= 0

    @property
    def undone(self) -> bool:
        """It was undone, and not done again afterwards."""
        return self.last(EventType.COMPENSATION_COMPLETED) > self.last(EventType.STEP_COMPLETED)

    @property
    def undoing_open(self) -> bool:
        """Its undoing began, and did not succeed."""
        return not self.undone and self.last(*UNDOING) > self.last(EventType.STEP_COMPLETED)

    @property
    def stands(self) -> bool:
        """Its effect is there."""
        return self.done and not self.undone

    @property
    def failed(self) -> bool:
        """Its last attempt failed."""
        return self.last(EventType.STEP_FAILED) > self.last(EventType.STEP_COMPLETED)

    def reason(self, *, pivot_stands: bool) -> str:
        """Why it was not undone."""
        if self.undoing_open:
            return "compensation_failed" if self.of(EventType.COMPENSATION_FAILED) else "compensation_unfinished"
        if self.pivot:
            return "pivot"
        if self.compensable is None:
            return "unknown"
        if not self.compensable:
            return "not_compensable"
        return "pivot_completed" if pivot_stands else "not_compensated"


def run_of(events: Iterable[SagaEvent], definition: SagaDefinition | None = None) -> dict[str, Any]:
    """The row of `runs` of one run, but for times of day."""
    ordered = sorted({e.event_id: e for e in events}.values(), key=lambda e: (e.sequence, e.event_id))
    by_step: dict[str, list[SagaEvent]] = defaultdict(list)
    for e in ordered:
        if e.step_name is not None and not e.event_type.startswith("saga_"):
            by_step[e.step_name].append(e)
    steps = [StepStory(name, its, definition) for name, its in by_step.items()]
    end = next((e for e in reversed(ordered) if e.event_type in ENDS), None)
    outcome = _outcome(end, steps)
    place = {e.event_id: n for n, e in enumerate(ordered)}

    def at(step: StepStory, kind: EventType) -> int:
        return place[step.of(kind)[-1].event_id]

    failing = min((s for s in steps if s.failed), key=lambda s: at(s, EventType.STEP_FAILED), default=None)
    error = failing.of(EventType.STEP_FAILED)[-1] if failing else None
    error = error if error and error.error_type else end
    is_completed = outcome == "completed"
    pivot_stands = any(s.stands and s.pivot for s in steps)
    done = sorted((s for s in steps if s.done), key=lambda s: at(s, EventType.STEP_COMPLETED))
    undone = sorted((s for s in steps if s.undone), key=lambda s: at(s, EventType.COMPENSATION_COMPLETED))
    started = [e.timestamp for e in ordered if e.event_type == EventType.SAGA_STARTED]
    measured = end.total_duration_ms if end else None
    derived = end is not None and measured is None and bool(started)
    residual = [{"step_name": s.name, "reason": s.reason(pivot_stands=pivot_stands)} for s in done if s.stands]
    return {
        "outcome": outcome,
        "total_ms": max(end.timestamp - min(started), 0) if end and derived else measured,
        "total_derived": derived,
        "failing_step": failing.name if failing and not is_completed else None,
        "error_type": error.error_type if error and not is_completed else None,
        "error_message": error.error_message if error and not is_completed else None,
        "steps_done": [s.name for s in done],
        "steps_undone": [s.name for s in undone],
        "residual_effects": None if outcome is None else [] if is_completed else residual,
        "wasted_ms": _wasted(steps),
        "attributes": next((e.attributes for e in ordered if e.attributes and e.event_type.startswith("saga_")), None),
    }


def _outcome(end: SagaEvent | None, steps: list[StepStory]) -> str | None:  # noqa: PLR0911 - one a rule
    standing = [s for s in steps if s.stands]
    if end is None:
        return None
    if end.event_type == EventType.SAGA_COMPLETED:
        return "completed"
    if any(s.undoing_open for s in steps):
        return "compensation_failed"
    if any(s.pivot for s in standing):
        return "partially_committed"
    if any(s.compensable for s in standing):
        return "rolled_back_partial"
    if end.event_type == EventType.SAGA_FAILED and any(s.compensable is None for s in standing):
        return "rolled_back_partial"
    return "rolled_back" if any(s.undone for s in steps) else "failed_nothing_to_undo"


def _wasted(steps: list[StepStory]) -> int | None:
    if not any(s.undone or s.of(*UNDOING) for s in steps):
        return 0
    work = [e.duration_ms for s in steps if s.undone for e in s.of(EventType.STEP_COMPLETED)]
    undoing = [
        e.duration_ms for s in steps for e in s.of(EventType.COMPENSATION_COMPLETED, EventType.COMPENSATION_FAILED)
    ]
    known = [ms for ms in (*work, *undoing) if ms is not None]
    return sum(known) if known else None
