"""What the rows of sagaz's outbox tell of its sagas. Pure: the same rows give the same events, in whatever order they come.

sagaz's `OutboxSagaListener` writes five shapes of rows (sagaz 1.5):

    {saga}.{step}.success      {"step", "result"}                 -> step_completed
    {saga}.{step}.failed       {"step", "error", "error_type"}    -> step_failed
    {saga}.{step}.compensated  {"step", "compensated": true}      -> compensation_completed
    {saga}.completed           {"saga_id", "status"}              -> saga_completed
    {saga}.failed              {"saga_id", "status", "error"}     -> saga_rolled_back or saga_failed

Names may hold dots, so the payload says which of them it is, and has to have just these keys: a publishing hook may put
anything into the same table. It never tells of starts, of compensations that fail, or of durations. See
`docs/decisions/0014-…` for what is made of that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sagascope.events import EventType, InvalidEventError, SagaEvent
from sagascope.redaction import REDACTED, redact
from warehouse.imports.source import MICROSECOND, Refused, id_of, moment_of
from warehouse.rules import LONGEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNKNOWN_SAGA = "unknown"
"""What sagaz writes for a saga_id that it does not find in the context."""
_LONGEST_US = LONGEST // MICROSECOND
_ENDS = (EventType.SAGA_COMPLETED, EventType.SAGA_FAILED)
# Of rows of one microsecond: steps before what undoes them, and both before the end.
_RANK = {
    EventType.STEP_COMPLETED: 0,
    EventType.STEP_FAILED: 1,
    EventType.COMPENSATION_COMPLETED: 2,
    EventType.SAGA_COMPLETED: 3,
    EventType.SAGA_FAILED: 3,
}
_STEPS = {
    frozenset(("step", "result")): ("success", EventType.STEP_COMPLETED),
    frozenset(("step", "error", "error_type")): ("failed", EventType.STEP_FAILED),
    frozenset(("step", "compensated")): ("compensated", EventType.COMPENSATION_COMPLETED),
}
_SAGAS = {
    frozenset(("saga_id", "status")): ("completed", EventType.SAGA_COMPLETED),
    frozenset(("saga_id", "status", "error")): ("failed", EventType.SAGA_FAILED),
}


class OutboxRow(NamedTuple):
    """A row of `saga_outbox`, of its archive, or of SQLite's `outbox_events`."""

    row_id: str
    """Its event_id, a UUID that no other row has, in whichever table it is by now."""
    saga_id: str | None
    event_type: str | None
    payload: str | None
    """JSON."""
    at: int | None
    """Its created_at, microseconds since the epoch; None where it is none."""


class Told(NamedTuple):
    """A row whose shape is known."""

    row: OutboxRow
    kind: EventType
    """SAGA_FAILED stands for both ends in failure."""
    saga_name: str
    step_name: str | None
    payload: Mapping[str, Any]


@dataclass
class _Run:
    """What is known of a run so far."""

    run_id: str
    sequence: int = 0
    last_at: int | None = None
    standing: set[str] = field(default_factory=set)
    """Steps that are done and not undone."""
    ended: dict[tuple[str, bool], int] = field(default_factory=dict)
    """How often each step, and each compensation, ended."""
    results: list[object] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Class of the error, by its message."""


def classify(row: OutboxRow) -> Told | Refused:
    """The shape of a row, by its payload."""
    if row.at is None or row.at < 0:
        return _refused(row, "created_at: got no moment since 1970; allowed: an ISO 8601 moment")
    if not row.saga_id:
        return _refused(row, "saga_id: got nothing; allowed: a non-empty string")
    try:
        payload = msgspec.json.decode(row.payload or "")
    except (ValueError, RecursionError) as error:
        return _refused(row, f"payload: no JSON ({error})")
    if not isinstance(payload, dict):
        reason = f"payload: a JSON {_kind(payload)}, and no object"
    elif row.saga_id == UNKNOWN_SAGA:
        reason = "saga_id: unknown; sagaz did not know whose row it is"
    elif told := _of_step(row, payload) or _of_saga(row, payload):
        return told
    else:
        reason = f"no event of OutboxSagaListener: event_type {(row.event_type or '')[:200]!r}"
    return _refused(row, f"unclassified: {reason}", payload, is_unclassified=True)


def _of_step(row: OutboxRow, payload: Mapping[str, Any]) -> Told | None:
    """The end of a step or of its undoing, if it is one."""
    suffix, kind = _STEPS.get(frozenset(payload), ("", None))
    if kind is None or not _fits(kind, payload):
        return None
    step, event_type = payload["step"], row.event_type or ""
    if not (isinstance(step, str) and step and event_type.endswith(f".{step}.{suffix}")):
        return None
    name = event_type[: -len(f".{step}.{suffix}")]
    return Told(row, kind, name, step, payload) if name else None


def _of_saga(row: OutboxRow, payload: Mapping[str, Any]) -> Told | None:
    """The end of a saga, if it is one."""
    suffix, kind = _SAGAS.get(frozenset(payload), ("", None))
    if kind is None or (payload["status"], payload["saga_id"]) != (suffix, row.saga_id):
        return None
    event_type = row.event_type or ""
    name = event_type.removesuffix(f".{suffix}")
    if not name or name == event_type or not isinstance(payload.get("error", ""), str):
        return None
    return Told(row, kind, name, None, payload)


def events_of_saga(rows: Iterable[OutboxRow]) -> list[SagaEvent | Refused]:
    """All that the rows of one saga_id tell, in the order of their times.

    They must be all rows of that saga_id: a row's place in its run, and which run that is, follow from those before it.
    A run ends with the row that ends the saga; the next row of the same saga_id and saga's name begins another one. What
    crashed before its end and ran again with the same saga_id is one run.
    """
    told: list[Told] = []
    found: list[SagaEvent | Refused] = []
    for row in {row.row_id: row for row in rows}.values():  # one that is just being archived is in both tables
        match classify(row):
            case Told() as one:
                told.append(one)
            case refused:
                found.append(refused)
    runs: dict[str, _Run] = {}
    told.sort(key=lambda one: (one.row.at, _RANK[one.kind], one.row.row_id))
    for one in told:
        milliseconds = (one.row.at or 0) // 1000
        run = runs.get(one.saga_name)
        if run is None:
            run = runs[one.saga_name] = _Run(id_of(milliseconds, "sagaz", "run", one.row.row_id))
        try:
            found.append(_event(run, one, milliseconds))
        except (InvalidEventError, msgspec.ValidationError) as error:
            found.append(_refused(one.row, str(error), one.payload))
        if one.kind in _ENDS:
            del runs[one.saga_name]
    return found


def _event(run: _Run, told: Told, milliseconds: int) -> SagaEvent:
    row, kind, payload, step = told.row, told.kind, told.payload, told.step_name
    at = row.at or 0
    fields: dict[str, Any] = {}
    if step is not None:
        is_undoing = kind is EventType.COMPENSATION_COMPLETED
        fields["attempt"] = run.ended[step, is_undoing] = run.ended.get((step, is_undoing), 0) + 1
        fields |= _duration(run, at)
    if kind is EventType.STEP_COMPLETED and step is not None:
        run.standing.add(step)
        result = payload["result"]
        run.results.append(result)
        fields["context_keys"] = tuple(sorted(key for key in result if not key.startswith("__")))
    elif kind is EventType.COMPENSATION_COMPLETED:
        run.standing.discard(step or "")
        fields["compensable"] = True
    elif kind is EventType.STEP_FAILED:
        fields["error_type"] = payload["error_type"]
        run.failures[payload["error"]] = payload["error_type"]
    elif kind is EventType.SAGA_FAILED:
        fields["error_type"] = run.failures.get(payload["error"])
        kind = EventType.SAGA_FAILED if run.standing else EventType.SAGA_ROLLED_BACK
    if "error" in payload and kind is not EventType.STEP_COMPLETED:
        message = redact(payload["error"], run.results, allowed=(row.saga_id or "",))
        fields["error_message"] = message or None
    event = SagaEvent(
        event_id=id_of(milliseconds, "sagaz", row.row_id),
        event_type=kind,
        saga_id=row.saga_id or "",
        saga_name=told.saga_name,
        run_id=run.run_id,
        sequence=run.sequence,
        timestamp=milliseconds,
        step_name=step,
        **fields,
    )
    run.sequence += 1
    run.last_at = at
    return event


def _duration(run: _Run, at: int) -> dict[str, Any]:
    """The time since the row before it: of steps one after the other what the step took, of parallel ones less.

    Nothing for the first one of a run, as nobody says when that began, nor after a gap so long that it was no step.
    """
    if run.last_at is None or at - run.last_at > _LONGEST_US:
        return {}
    return {"duration_ms": (at - run.last_at) // 1000, "duration_derived": True}


def _fits(kind: EventType, payload: Mapping[str, Any]) -> bool:
    """Whether the values are of the kinds that sagaz writes."""
    match kind:
        case EventType.STEP_COMPLETED:
            return isinstance(payload["result"], dict)
        case EventType.STEP_FAILED:
            return (
                isinstance(payload["error"], str)
                and isinstance(payload["error_type"], str)
                and bool(payload["error_type"])
            )
        case _:
            return payload["compensated"] is True


def _refused(row: OutboxRow, reason: str, payload: object = None, *, is_unclassified: bool = False) -> Refused:
    """The row, kept without the values of its payload: they may be a step's result, which leaves no service."""
    at = None if row.at is None or row.at < 0 else row.at
    kept = {
        "event_id": row.row_id,
        "saga_id": row.saga_id,
        "event_type": row.event_type,
        "created_at": None if at is None else moment_of(at).isoformat(),
        # A key that is no plain name is a value: a customer's, by whom something is looked up.
        "payload_keys": sorted({key if key.isidentifier() else REDACTED for key in payload})
        if isinstance(payload, dict)
        else [],
    }
    return Refused(
        row.row_id,
        None if at is None else moment_of(at),
        msgspec.json.encode(kept),
        reason,
        is_unclassified,
    )


def _kind(value: object) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
