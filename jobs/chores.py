"""What has to be done beside the stream, now and then: upkeep of the tables, definitions of sagas, a recompute that is owed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

import msgspec

from jobs import upkeep
from jobs.resume import write_atomically
from warehouse.catalog import open_catalog
from warehouse.definitions import import_definitions
from warehouse.progress import read_progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from warehouse.settings import Settings

DEFINITIONS_SECONDS = 30.0
UPKEEP_SECONDS = 60.0
RECOMPUTE_SECONDS = 10.0
AGAIN_SECONDS = 60.0
"""After how long at least one that failed is tried again."""
END_SECONDS = 20.0
HOUR = timedelta(hours=1)


class Owed(msgspec.Struct, frozen=True):
    """Hours whose statistics a rebase has left to be computed again, once the stream is past them."""

    since: datetime
    until: datetime


class Chores:
    """A thread that does them while the job runs. One that fails is told, and tried again in its turn."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ended = threading.Event()
        self._complaints: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, name="chores", daemon=True)
        self._every: list[tuple[Callable[[], None], float]] = [
            (self._definitions, DEFINITIONS_SECONDS),
            (self._upkeep, UPKEEP_SECONDS),
            (self._recompute, RECOMPUTE_SECONDS),
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(END_SECONDS)

    def _work(self) -> None:
        due = [time.monotonic() + seconds for _, seconds in self._every]
        while not self._ended.wait(max(0.0, min(due) - time.monotonic())):
            turn = due.index(min(due))
            chore, seconds = self._every[turn]
            done = self._try(chore)
            due[turn] = time.monotonic() + (seconds if done else max(seconds, AGAIN_SECONDS))
        self._try(self._definitions)

    def _try(self, chore: Callable[[], None]) -> bool:
        name, reason = chore.__name__.removeprefix("_"), ""
        try:
            chore()
        except Exception as error:  # noqa: BLE001 - the stream goes on, whatever a chore meets
            reason = f"{type(error).__name__}: {error}"
        self._complain(name, reason)
        return not reason

    def _complain(self, chore: str, reason: str) -> None:
        """Say why a chore was not done; once, for as long as it is the same. Empty: it was done."""
        if reason and self._complaints.get(chore) != reason and not self._ended.is_set():
            _say(chore, reason=reason)
        self._complaints[chore] = reason

    def _definitions(self) -> None:
        with closing(open_catalog(self._settings)) as catalog:
            import_definitions(self._settings, catalog)

    def _upkeep(self) -> None:
        for outcome in upkeep.expire(self._settings, datetime.now(UTC)):
            self._complain(f"upkeep of {outcome.table}", outcome.reason)

    def _recompute(self) -> None:
        file = _file(self._settings)
        if not file.exists():
            return
        owed = msgspec.json.decode(file.read_bytes(), type=Owed)
        watermark = read_progress(self._settings).watermark
        if watermark is None or watermark < owed.until:
            return
        hours = ["--from", owed.since.isoformat(), "--to", owed.until.isoformat()]
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs.recompute", *hours], stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._end_with_us, args=(child,), daemon=True).start()
        said, _ = child.communicate()
        if child.returncode:
            msg = f"the recompute of {' to '.join(hours[1::2])} ended with exit code {child.returncode}: {said[-500:]}"
            raise RuntimeError(msg)
        file.unlink()
        _say("recompute", hours=hours[1::2])

    def _end_with_us(self, child: subprocess.Popen[str]) -> None:
        """A stop of the job does not wait for a recompute: of a table it replaces rows by one commit or by none, and stays owed."""
        while child.poll() is None:
            if self._ended.wait(0.5):
                child.terminate()
                return


def owe(settings: Settings, since: datetime, until: datetime) -> None:
    """Have the hours of [since, until] computed again; what is owed already stays so."""
    file = _file(settings)
    first, last = since.replace(minute=0, second=0, microsecond=0), until.replace(minute=0, second=0, microsecond=0)
    owed = Owed(first, last + HOUR)
    if file.exists():
        before = msgspec.json.decode(file.read_bytes(), type=Owed)
        owed = Owed(min(before.since, owed.since), max(before.until, owed.until))
    write_atomically(file, owed)


def _file(settings: Settings) -> Path:
    return settings.checkpoints / "recompute.json"


def _say(chore: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"chore": chore} | facts) + "\n")
    sys.stdout.flush()
