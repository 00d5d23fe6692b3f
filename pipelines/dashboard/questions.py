"""Questions to the history, for any number of viewers: two at a time, and the same one only once a snapshot."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from pipelines.dashboard.feed import NotReadyError
from warehouse import history

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from datetime import datetime

    from pipelines.dashboard.feed import Feed
    from warehouse.history import History
    from warehouse.settings import Settings

AT_ONCE = 2
"""So many questions are answered at a time; others wait."""
ANSWERS_KEPT = 64

_encoder = msgspec.json.Encoder(decimal_format="number")


class Questions:
    """Answers as JSON. Each history is opened and closed for its question."""

    def __init__(self, settings: Settings, feed: Feed) -> None:
        """No question is asked yet.

        Args:
            settings: Where the tables are.
            feed: Says which snapshot is the newest.
        """
        self._settings, self._feed = settings, feed
        self._limiter = anyio.CapacityLimiter(AT_ONCE)
        self._answers: OrderedDict[Hashable, tuple[str | None, bytes]] = OrderedDict()
        self._asked: dict[Hashable, asyncio.Task[bytes]] = {}
        self._open: set[History] = set()
        self._ended = False

    async def ask(
        self,
        question: Hashable,
        answer: Callable[[History], Any],
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> bytes:
        """The answer as JSON; the one that was given before, where nothing was committed to `events` since.

        Args:
            question: The same for the same answer.
            answer: Made of an open history, in another thread.
            since: From when on the history is opened; aware.
            until: Until when.

        Raises:
            NotReadyError: there are no tables.
            WarehouseError: they can't be read.
            Exception: what `answer` raises.
        """
        snapshot = self._feed.newest.frame.snapshot_id
        known = self._answers.get(question)
        if known and known[0] == snapshot:
            self._answers.move_to_end(question)
            return known[1]
        task = self._asked.get(question)
        if task is None:
            task = asyncio.create_task(self._find(question, snapshot, answer, since, until))
            self._asked[question] = task
            task.add_done_callback(lambda _: self._asked.pop(question, None))
        return await asyncio.shield(task)  # others may wait for it, too

    def end(self) -> None:
        """Interrupt what is being asked; from now on nothing is."""
        self._ended = True
        for tables in list(self._open):
            tables.interrupt()

    async def _find(
        self,
        question: Hashable,
        snapshot: str | None,
        answer: Callable[[History], Any],
        since: datetime | None,
        until: datetime | None,
    ) -> bytes:
        def find() -> bytes:
            if self._ended or not self._settings.catalog_file.exists():
                msg = f"there are no tables yet in {self._settings.root}: `sagascope analyze` makes them"
                raise NotReadyError(msg)
            with history.open(self._settings, since, until) as tables:
                self._open.add(tables)
                try:
                    return _encoder.encode(answer(tables))
                finally:
                    self._open.discard(tables)

        found = await anyio.to_thread.run_sync(find, limiter=self._limiter)
        self._answers[question] = snapshot, found
        while len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)
        return found
