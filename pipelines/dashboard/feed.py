"""One reader of the tables for all viewers: it looks, makes a frame, writes it as JSON once, and hands out the same bytes."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import duckdb
import msgspec

from warehouse.arrivals import IcebergSource
from warehouse.catalog import open_catalog
from warehouse.errors import WarehouseError
from warehouse.live import LiveTables
from warehouse.live_frame import empty_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from warehouse.live_frame import Frame
    from warehouse.settings import Settings

LOOK_SECONDS = 0.25
"""How often the tables are looked at."""
SHORTEST_SECONDS = 0.5
"""Between two frames."""
LONGEST_SECONDS = 1.0
"""Between two frames where nothing changed but ages."""
BACK_OFF_SECONDS = 2.0
"""After the tables could not be read, until they are looked at again."""
RETRY_MS = 1_000
"""After so long a browser connects again."""
END_SECONDS = 1.0
"""How long the reader may take to end."""

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """A frame, ready to be sent."""

    number: int
    frame: Frame
    json: bytes
    message: bytes
    """Of the event stream."""


class NotReadyError(WarehouseError):
    """There are no tables yet, or they can't be read; the message has the cure."""


class Feed:
    """Reads in a thread of its own, from `start` to `stop`."""

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None] = logger.warning,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """A feed that has not begun.

        Args:
            settings: Where the tables are.
            say: Gets a line where something can't be read, and where it can again.
            clock: Says what time it is; aware.
        """
        self._settings, self._say, self._clock = settings, say, clock
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._making = threading.Lock()
        self._tables = ExitStack()
        self._source: IcebergSource | None = None
        self._live: LiveTables | None = None
        self._inode: int | None = None
        self._problem: str | None = "the tables are being read for the first time"
        self._made_at = self._look_at = float("-inf")
        self._waiting = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()
        self.viewers = 0
        """Open streams."""
        self.refresh_ms = 0.0
        """How long the newest look at the tables took."""
        self.newest = self._encoded(0, empty_frame(clock(), self._problem))

    def start(self) -> None:
        """Begin; call it in the event loop of those who wait for frames."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def end(self) -> None:
        """Let nobody wait any longer, at once; the reader ends soon."""
        self._ending.set()
        self._announce()

    def stop(self) -> None:
        """End the reader."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(END_SECONDS)

    @property
    def ended(self) -> bool:
        """No frame comes any more."""
        return self._ending.is_set()

    @property
    def is_ready(self) -> bool:
        """There are numbers, and nothing keeps newer ones from coming."""
        return self._live is not None and self._problem is None

    @property
    def live(self) -> LiveTables:
        """The tables of now.

        Raises:
            NotReadyError: there are none: why, and what to do.
        """
        if self._live is None:
            raise NotReadyError(self._problem or "the tables are not read yet: ask again in a second")
        return self._live

    def commits_since(self, moment: datetime) -> int:
        """To `events`; 0 where there are no tables."""
        return self._source.commits_since(moment) if self._source else 0

    async def after(self, number: int, seconds: float) -> Encoded | None:
        """The newest frame once it is not that one; None: none came for so long, or none will. Frames in between are left out."""
        deadline = time.monotonic() + seconds
        while self.newest.number == number and not self.ended:
            coming = self._next
            try:
                await asyncio.wait_for(coming.wait(), deadline - time.monotonic())
            except TimeoutError:
                return None
        return None if self.ended else self.newest

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Be counted as a viewer."""
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                began = time.monotonic()
                for step in (self._look, self._make_if_due):
                    try:
                        step()
                    except Exception as error:  # noqa: BLE001 - a reader that ended in silence would leave old numbers standing
                        told = f"reading the tables failed ({type(error).__name__}: {error}): it is tried again"
                        self._fail(error, told)
                self._ending.wait(max(0.0, LOOK_SECONDS - (time.monotonic() - began)))
        finally:
            self._forget()

    def _make_if_due(self) -> None:
        age = time.monotonic() - self._made_at
        if age >= (SHORTEST_SECONDS if self._waiting else LONGEST_SECONDS) - LOOK_SECONDS / 2:
            self.make()

    def _look(self) -> None:
        began = time.monotonic()
        if began < self._look_at:
            return
        try:
            self._follow_catalog()
            if self._live and self._live.refresh():
                self._waiting = True
        except NotReadyError as error:
            self._tell(str(error))
        except (WarehouseError, OSError, duckdb.Error) as error:
            self._fail(error, str(error))
        else:
            self._tell(None)
        self.refresh_ms = round((time.monotonic() - began) * 1000, 1)

    def _fail(self, error: Exception, problem: str) -> None:
        """Say it once, and look again after a while."""
        problem = problem.partition("\n")[0]
        if problem != self._problem:
            logger.debug("the tables could not be read", exc_info=error)
        self._tell(problem)
        self._look_at = time.monotonic() + BACK_OFF_SECONDS

    def _follow_catalog(self) -> None:
        """Open the tables once they are there, and anew where they were deleted and made again.

        Raises:
            NotReadyError: there are none.
        """
        file = self._settings.catalog_file
        inode = file.stat().st_ino if file.exists() else None
        if inode != self._inode:
            self._forget()
        if inode is None:
            msg = f"there are no tables yet in {self._settings.root}: `sagascope analyze` makes them, `make demo` runs all of it"
            raise NotReadyError(msg)
        if self._live is None:
            with ExitStack() as opened:
                catalog = opened.enter_context(closing(open_catalog(self._settings)))
                source = opened.enter_context(closing(IcebergSource(self._settings, catalog)))
                live = opened.enter_context(closing(LiveTables(self._settings, source, self._clock)))
                live.refresh()
                self._tables = opened.pop_all()
            self._source, self._live, self._inode, self._waiting = source, live, inode, True

    def _forget(self) -> None:
        self._source = self._live = self._inode = None
        self._tables.close()

    def _tell(self, problem: str | None) -> None:
        if problem == self._problem:
            return
        if problem:
            self._say(problem)
        elif self.newest.number:
            self._say("the tables are read")
        self._problem, self._waiting = problem, True

    def make(self) -> None:
        """Make a frame, and hand it out."""
        with self._making:
            self._make()

    def _make(self) -> None:
        now = self._clock()
        if self._live is None:
            frame = empty_frame(now, self._problem)
        else:
            frame = msgspec.structs.replace(self._live.frame(now), problem=self._problem)
        self.newest = self._encoded(self.newest.number + 1, frame)
        self._made_at, self._waiting = time.monotonic(), False
        self._announce()

    def _encoded(self, number: int, frame: Frame) -> Encoded:
        text = msgspec.json.encode(frame)  # on one line
        return Encoded(number, frame, text, b"id: %d\nevent: frame\nretry: %d\ndata: %s\n\n" % (number, RETRY_MS, text))

    def _announce(self) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        come, self._next = self._next, asyncio.Event()
        come.set()
