"""Following sagaz's own outbox, whatever database it is in: what is new there, told once, and never a write to it.

What its rows tell is made of them by `warehouse.imports.sagaz_outbox`, as an import does: the same row becomes the same
event, whichever of the two brings it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from abc import abstractmethod
from collections import Counter
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, NamedTuple

import msgspec

from pipelines.relay.ends import Outcome, Source
from pipelines.relay.outbox import locked
from pipelines.relay.told import Row, Told
from sagascope import SagaEvent, encode
from sagascope.cloudevents import headers
from sagascope.outbox.storage import Backlog, ClaimedEvent, ParkedEvent
from warehouse.imports.sagaz_outbox import UNKNOWN_SAGA, OutboxRow, classify, events_of_saga
from warehouse.imports.source import Refused, id_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

logger = logging.getLogger("sagascope.relay")

_SAGAS_AT_A_TIME = 200
_REST = 20.0
"""A look for new rows reads the whole table where PostgreSQL has no index for it: so many times as long it then rests."""


class Found(NamedTuple):
    """A row that may be new."""

    row_id: str
    saga_id: str
    at: int | None


class Follower(Source):
    """Tells what is new in an outbox that is another's, from a place kept in a file of ours; one relay at a time."""

    def __init__(self, place: str, folder: Path, where: str, *, pass_on: bool) -> None:
        super().__init__()
        self._path = folder / f"sagaz-{hashlib.sha256(place.encode()).hexdigest()[:16]}.db"
        self._where = where
        self._pass_on = pass_on
        self._told: Told | None = None
        self._lock: IO[str] | None = None
        self._untold: dict[str, dict[str, Found]] = {}
        """Rows that were found and not told yet, by sagas in the order these were found, and by their ids."""
        self._under_way: set[str] = set()
        self._of_event: dict[str, Row] = {}
        """What is remembered of each event under way once it is settled."""
        self._place: str | None = None
        self._quiet_until = 0.0
        self._purged_to = ""

    def __str__(self) -> str:
        """Where it is, without credentials."""
        return f"sagaz's outbox, {self._where}"

    async def open(self) -> None:
        if self._lock is None:
            await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)
            self._lock = locked(self._path.with_suffix(".lock"), str(self))
        await self._connect()

    async def look(self) -> None:
        await self._connect()
        await self._find()

    async def take(self, limit: int) -> list[ClaimedEvent]:
        if time.monotonic() >= self._quiet_until:
            began = time.monotonic()
            await self._find()
            self._quiet_until = time.monotonic() + _REST * (time.monotonic() - began)
        blocked, dealt = self._state.open_sagas()
        for saga in dealt:
            self._untold.setdefault(saga, {})
        if self._pass_on:
            blocked = set()
        ready = [saga for saga in self._untold if saga not in self._under_way and saga not in blocked]
        events: list[ClaimedEvent] = []
        step = min(limit, _SAGAS_AT_A_TIME)
        for start in range(0, len(ready), step):
            if len(events) >= limit:
                break
            some = ready[start : start + step]
            rows: dict[str, list[OutboxRow]] = {saga: [] for saga in some}
            for row in await self._rows_of(some):
                rows[row.saga_id or ""].append(row)
            for saga, all_of_it in rows.items():
                events += self._events(saga, all_of_it)
        if not self._untold.keys() - blocked and not self._under_way and self._place is not None:
            self._state.set_place(self._place)  # all before it is told, or its saga known as blocked
        return events

    async def settle(self, outcome: Outcome) -> None:
        rows = [self._of_event[event.event_id]._replace(status="sent") for event in outcome.sent]
        rows += [
            self._of_event[event.event_id]._replace(status="parked", reason=reason)
            for event, reason in outcome.rejected
        ]
        self._state.put(rows)
        for event in (*outcome.sent, *outcome.left, *(event for event, _ in outcome.rejected)):
            self._under_way.discard(self._of_event.pop(event.event_id).saga_id)
        self._forget(rows)

    async def backlog(self) -> Backlog:
        blocked, _ = self._state.open_sagas()
        untold = [one for rows in self._untold.values() for one in rows.values()]
        eldest = min((one.at for one in untold if one.at is not None), default=None)
        return Backlog(
            depth=len(untold),
            lag_seconds=0.0 if eldest is None else max(0.0, time.time() - eldest / 1e6),
            parked=self._state.parked_count(),
            blocked=0 if self._pass_on else sum(one.saga_id in blocked for one in untold),
        )

    async def parked(self, *, saga_id: str | None = None, limit: int = 1_000) -> list[ParkedEvent]:
        return [
            ParkedEvent(event_id, saga, kind, 1, datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"), reason)
            for event_id, saga, kind, at, reason in self._state.parked(saga_id, limit)
        ]

    async def retry_parked(self, event_ids: Collection[str]) -> int:
        return self._state.deal(event_ids, "retry")

    async def discard_parked(self, event_ids: Collection[str]) -> int:
        return self._state.deal(event_ids, "discarded")

    async def purge(self, *, older_than_seconds: float, limit: int) -> int:
        """Forget rows that were told so long ago and that their outbox no longer has; theirs is never touched."""
        some = self._state.eldest(self._purged_to, time.time() - older_than_seconds, limit)
        self._purged_to = some[-1] if len(some) == limit else ""
        gone = set(some) - await self._still_there(some) if some else set()
        self._state.forget(gone)
        return len(gone)

    async def close(self) -> None:
        if self._told is not None:
            self._told.close()
            self._told = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def _state(self) -> Told:
        if self._told is None:
            self._told = Told(self._path)
        return self._told

    async def _find(self) -> None:
        """Look for rows since the place that was read to, and remember those that are not told."""
        found, self._place = await self._since(self._place or self._state.place())
        known = self._state.known(one.row_id for one in found)
        for one in found:
            if one.row_id not in known:
                self._untold.setdefault(one.saga_id, {})[one.row_id] = one

    def _forget(self, rows: Iterable[Row]) -> None:
        """These need not be told any more."""
        for row in rows:
            of_saga = self._untold.get(row.saga_id, {})
            of_saga.pop(row.row_id, None)
            if not of_saga:
                self._untold.pop(row.saga_id, None)

    def _events(self, saga: str, rows: Sequence[OutboxRow]) -> list[ClaimedEvent]:
        """What is new of a saga, as records; rows that are no events are remembered as such."""
        told = self._state.of_saga(saga)
        by_event = {id_of((row.at or 0) // 1000, "sagaz", row.row_id): row.row_id for row in rows}
        ones: Iterable[SagaEvent | Refused]
        ones = map(_refusal, rows) if saga == UNKNOWN_SAGA else _continued(events_of_saga(rows), told, by_event)
        records: list[ClaimedEvent] = []
        refused: list[Row] = []
        for one in ones:
            row_id = one.identity if isinstance(one, Refused) else by_event[one.event_id]
            before = told.get(row_id)
            if before is not None and before.status == "discarded":
                refused.append(before._replace(status="refused"))
            elif before is not None and before.status != "retry":
                continue
            elif isinstance(one, Refused):
                refused.append(Row(row_id, "refused", saga, reason=one.reason[:500]))
            else:
                self._of_event[one.event_id] = Row(
                    row_id, "sent", saga, one.event_id, one.event_type.value, one.run_id, one.sequence
                )
                key = one.saga_id.encode("utf-8", "replace")
                records.append(ClaimedEvent(0, one.event_id, key, encode(one), headers(one), 1))
        self._state.put(refused)
        self._forget(refused)
        for reason, number in Counter(row.reason for row in refused if row.reason).items():
            logger.info("%d rows of saga %.100r are no events: %.200s", number, saga, reason)
        if records:
            self._under_way.add(saga)
        else:
            self._untold.pop(saga, None)  # what is left of it is gone from the outbox
        return records

    @abstractmethod
    async def _connect(self) -> None:
        """Connect, and see that the table is there."""

    @abstractmethod
    async def _since(self, place: str | None) -> tuple[list[Found], str]:
        """Every row that was not to be seen at that place, perhaps some that were, and the place now."""

    @abstractmethod
    async def _rows_of(self, sagas: Sequence[str]) -> list[OutboxRow]:
        """All rows of these sagas, archived ones too."""

    @abstractmethod
    async def _still_there(self, row_ids: Sequence[str]) -> set[str]:
        """Those of them that the outbox or its archive has."""


def _refusal(row: OutboxRow) -> Refused:
    judged = classify(row)
    if not isinstance(judged, Refused):
        msg = f"a row of no known saga was taken for an event: {row.row_id}"
        raise TypeError(msg)
    return judged


def _continued(
    ones: Sequence[SagaEvent | Refused], told: dict[str, Row], by_event: dict[str, str]
) -> list[SagaEvent | Refused]:
    """The same, where a run was told of before a row came that precedes what was told: it keeps its id, and counts on.

    A run is named by its first row, and an event numbered by those before it; a late row would change both.
    """
    events = [one for one in ones if isinstance(one, SagaEvent)]
    known = {one.run_id: told[by_event[one.event_id]] for one in reversed(events) if _was_told(one, told, by_event)}
    highest: dict[str, int] = {}
    for row in told.values():
        if row.run_id is not None and row.sequence is not None and row.status != "retry":
            highest[row.run_id] = max(row.sequence, highest.get(row.run_id, -1))
    answer: list[SagaEvent | Refused] = []
    for one in ones:
        if isinstance(one, Refused) or _was_told(one, told, by_event):
            answer.append(one)
            continue
        run_id = known[one.run_id].run_id if one.run_id in known else None
        run_id = run_id or one.run_id
        highest[run_id] = sequence = max(one.sequence, highest.get(run_id, -1) + 1)
        answer.append(msgspec.structs.replace(one, run_id=run_id, sequence=sequence))
    return answer


def _was_told(one: SagaEvent | Refused, told: dict[str, Row], by_event: dict[str, str]) -> bool:
    before = None if isinstance(one, Refused) else told.get(by_event[one.event_id])
    return before is not None and before.run_id is not None and before.status != "retry"
