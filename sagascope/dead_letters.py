"""Dead letters in a file: one JSON object a line, in the envelope that sagaz documents for its dead-letter queue.

{"dlq_metadata": {"listener": …, "failure_timestamp": …, "retry_count": …, "last_error": {"message": …}},
 "original_message": {…the event…}}
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sagascope.events import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.events import SagaEvent


class DeadLetterFile:
    """Appends dead letters to a file, on the disk when `bury` returns; made if absent, readable by its owner only.

    Whole lines: of a write that fails half way (a full disk) nothing stays. Several processes may append to one file.

    Raises:
        OSError: from `bury`, where the file can't be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._thread = ThreadPoolExecutor(1, "sagascope-dead-letters")  # a hung disk is to hold up no other thread

    async def bury(self, listener: str, events: Sequence[SagaEvent], reason: str, attempts: int) -> None:
        """Append one line an event."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = {
            "listener": listener,
            "failure_timestamp": now,
            "retry_count": max(0, attempts - 1),
            "last_error": {"message": reason},
        }
        lines = [
            msgspec.json.encode({"dlq_metadata": about, "original_message": msgspec.Raw(encode(event))}) + b"\n"
            for event in events
        ]
        await asyncio.get_running_loop().run_in_executor(self._thread, self._append, b"".join(lines))

    def _append(self, lines: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = os.fstat(file).st_size
            try:
                written = 0
                while written < len(lines):
                    written += os.write(file, lines[written:])
                os.fsync(file)
            except OSError:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)
