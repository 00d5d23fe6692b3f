"""An audit log in a file: one JSON object a line."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sagascope.audit.chain import (
    AuditLog,
    Entry,
    Verification,
    Verifier,
    as_line,
    chained,
    event_id_of,
    from_line,
    is_whole,
)
from sagascope.errors import TransientError
from sagascope.events import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sagascope.events import SagaEvent

logger = logging.getLogger(__name__)

REMEMBERED = 10_000
"""How many of the last entries a new event is compared with."""
_BLOCK = 1024 * 1024
_LONGEST_END = 64 * _BLOCK
"""How much of a file is read for them at most."""
Result = TypeVar("Result")


class JsonLinesAuditLog(AuditLog):
    """A file to which one process appends, with one fsync a batch: all of a batch or, after a crash, its first entries.

    An event whose id is among those of the last 10,000 entries is left out; one that comes again later than that is there
    twice. A second process that opens the file is refused while the first has it open. Where a crash has left a last line
    without its end, opening completes it if it is whole, else moves it to `<path>.torn`; either is logged. A disk that is
    full leaves no part of a batch behind. Where the file is moved away, the next write begins a new one, with a new chain.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        """Do no I/O yet.

        Args:
            path: The file; made where it is absent, readable for its owner alone. Its folder is not made.
            clock: Seconds since the epoch; for tests.
        """
        self.path = Path(path)
        self._clock = clock
        self._file: _OpenFile | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Lock the file, and read its end.

        Raises:
            TransientError: another process has it open, its end is no entry, or the file can't be opened.
        """
        await self._in_turn(self._opened)

    async def append(self, events: Sequence[SagaEvent]) -> None:
        """Add the events that are not among the last; durable when this returns."""
        pairs = [(event.event_id, encode(event)) for event in events]
        await self._in_turn(lambda: self._append(pairs))

    async def close(self) -> None:
        """Wait for what is being written, and unlock the file."""
        if self._thread is not None:
            await self._in_turn(self._close)

    async def verify(self, head: str | None = None) -> Verification:
        """Read the whole file; a last line without its end is no fault while a process is writing it."""
        return await asyncio.to_thread(self._verify, head)

    async def _in_turn(self, work: Callable[[], Result]) -> Result:
        """In the log's own thread, one after the other; what has begun ends, also where the caller is cancelled."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sagascope-audit")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _opened(self) -> _OpenFile:
        with _as_transient(self.path):
            if self._file is not None and not self._file.is_at(self.path):
                logger.warning("the audit log %s was moved or removed: a new one begins", self.path)
                self._close()
            if self._file is None:
                self._file = _OpenFile(self.path)
        return self._file

    def _append(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        file = self._opened()
        try:
            with _as_transient(self.path):
                file.append(pairs, int(self._clock() * 1000))
        except TransientError:
            self._close()  # what is in the file now is read anew
            raise

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _verify(self, head: str | None) -> Verification:
        verifier = Verifier(head)
        with _as_transient(self.path), self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and _is_locked(file.fileno()):
                    break
                entry = from_line(line) if line.endswith(b"\n") else None
                if broken := verifier.objection(entry, f"line {number}"):
                    return broken
        return verifier.result()


class _OpenFile:
    """The file while it is locked: its last entry, and the ids of the last ten thousand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _lock(self._descriptor, path)
            _sync_folder(path)
            self._size = os.fstat(self._descriptor).st_size
            self._last: Entry | None = None
            self._recent: OrderedDict[str | None, None] = OrderedDict()
            self._read_end()
        except BaseException:
            os.close(self._descriptor)
            raise

    def is_at(self, path: Path) -> bool:
        """Whether the path still leads to this file."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Unlock it, too."""
        os.close(self._descriptor)

    def append(self, pairs: Sequence[tuple[str, bytes]], recorded_at: int) -> None:
        """Write the entries of the events that are new, and sync; the file is as before where that fails."""
        new: dict[str, bytes] = {}
        for event_id, event in pairs:
            if event_id not in self._recent:
                new.setdefault(event_id, event)
        entries = chained(list(new.values()), self._last, recorded_at)
        if not entries:
            return
        try:
            self._write(b"".join(map(as_line, entries)))
        except BaseException:
            with suppress(OSError):  # then the next open sets aside what is left
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size = os.fstat(self._descriptor).st_size
        self._last = entries[-1]
        for event_id in new:
            self._remember(event_id)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)

    def _remember(self, event_id: str | None) -> None:
        self._recent[event_id] = None
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _read_end(self) -> None:
        lines = self._last_lines()
        if lines and not lines[-1].endswith(b"\n"):
            self._mend(lines)
        entries = [from_line(line) for line in lines]
        for entry in entries:
            if entry is None or not is_whole(entry):
                msg = f"the audit log {self._path} is damaged near its end: `sagascope audit verify` names the entry"
                raise TransientError(msg)
            self._remember(event_id_of(entry))
        self._last = entries[-1] if entries else None

    def _last_lines(self) -> list[bytes]:
        """As many as are remembered, or all; the last one may lack its end."""
        start, blocks, ends = self._size, [b""], 0
        while start > 0 and ends <= REMEMBERED and (ends < 2 or self._size - start < _LONGEST_END):
            start, until = max(0, start - _BLOCK), start
            blocks.append(os.pread(self._descriptor, until - start, start))
            ends += blocks[-1].count(b"\n")
        *lines, rest = b"".join(reversed(blocks)).split(b"\n")
        whole = [line + b"\n" for line in lines[0 if start == 0 else 1 :][-REMEMBERED:]]
        return [*whole, rest] if rest else whole

    def _mend(self, lines: list[bytes]) -> None:
        """Complete the last line, or set it aside."""
        torn = lines.pop()
        if from_line(torn):
            self._write(b"\n")
            lines.append(torn)
            logger.warning("the last line of the audit log %s lacked its end, and was completed", self._path)
        else:
            aside = self._path.with_name(self._path.name + ".torn")
            with aside.open("ab") as file:
                file.write(torn + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._descriptor, self._size - len(torn))
            os.fsync(self._descriptor)
            logger.warning("%d bytes of an unfinished last line were moved from %s to %s", len(torn), self._path, aside)
        self._size = os.fstat(self._descriptor).st_size


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        msg = f"the audit log {path} is open for writing elsewhere: two writers would fork its chain"
        raise TransientError(msg) from None


def _is_locked(descriptor: int) -> bool:
    """Whether a writer has the file open."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _sync_folder(path: Path) -> None:
    """So that a new file is still there after the power failed."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _as_transient(path: Path) -> Iterator[None]:
    """What the file system refuses may pass: a full disk, a missing folder, a right."""
    try:
        yield
    except OSError as error:
        msg = f"the audit log {path}: {error.strerror or error}"
        raise TransientError(msg) from error
