"""The history as a command asks it: Ctrl-C ends a query at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from warehouse.history import History
    from warehouse.settings import Settings


@contextmanager
def open_history(settings: Settings, since: datetime | None = None, until: datetime | None = None) -> Iterator[History]:
    """`warehouse.history.open` for the main thread: Ctrl-C raises KeyboardInterrupt also while DuckDB computes."""
    from warehouse import history  # noqa: PLC0415 - so that --help is there at once

    with history.open(settings, since, until) as tables, _interrupting(tables.interrupt):
        yield tables


@contextmanager
def _interrupting(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` at Ctrl-C, from another thread: Python itself looks at signals only between its own steps."""
    is_interrupted = False
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        nonlocal is_interrupted
        while signals := os.read(reader, 64):  # nothing: closed
            if signal.SIGINT in signals:
                is_interrupted = True
                interrupt()

    before = signal.set_wakeup_fd(writer)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writer)
            watcher.join()  # it has read then what came before
            os.close(reader)
    except Exception:
        if is_interrupted:  # DuckDB raises InterruptException then, or RuntimeError where it saw the signal first
            raise KeyboardInterrupt from None
        raise
