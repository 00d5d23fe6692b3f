"""An event loop whose clock jumps to the next timer, so that a week of sleeping passes in seconds."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, TypeVar

    Answer = TypeVar("Answer")


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: the time it was asked to wait has passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def run(main: Coroutine[Any, Any, Answer]) -> Answer:
    """What the coroutine returns; it must wait for timers alone: no thread, no socket. `loop.time()` begins at 0."""
    selector = _JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)
