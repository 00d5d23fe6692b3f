"""How a fan-out is to tell a listener: from a queue, or inline while the saga waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sagascope.delivery import WrappedListener
from sagascope.resilient import ResilientListener, Retry

if TYPE_CHECKING:
    from sagascope.listener import SagaListener


@dataclass(frozen=True, slots=True)
class Queued:
    """Tell the listener from a queue, in batches; the saga does not wait for it.

    Raises:
        ValueError: an option out of its range, or a ResilientListener, which a FanOut's listeners are without.
    """

    listener: SagaListener
    size: int = 10_000
    """How many events may be queued or under way."""
    when_full: Literal["block", "drop"] = "block"
    """`block`: the saga waits for room, then the event becomes a dead letter. A sink costs sagas `block_seconds` at most
    until its queue has come down to half, and nothing at all where it has taken nothing for so long: it can slow them
    down for a moment, and never hold them up. Who feeds `FanOut.write` waits until there is room. `drop`: the event is
    dropped and counted at once."""
    block_seconds: float = 1.0
    batch_size: int = 500
    """At most so many events in one `write`."""
    linger_ms: float = 0.0
    """For how long a batch waits to be filled; 0 takes what is there, which grows by itself when the sink is slow."""
    workers: int = 1
    """So many batches are under way at once; the events of one saga keep their order."""
    timeout_ms: int = 10_000
    """Of one `write` or hook; then it is tried again."""
    retry: Retry = field(default_factory=Retry)

    def __post_init__(self) -> None:
        for option, least in _LEAST.items():
            value = getattr(self, option)
            kind = (int, float) if option in ("block_seconds", "linger_ms") else int
            _require(option, value, f"a number, {least} or more", holds=isinstance(value, kind) and value >= least)
        _require("retry", self.retry, "a Retry", holds=isinstance(self.retry, Retry))
        _require("when_full", self.when_full, "'block' or 'drop'", holds=self.when_full in ("block", "drop"))
        _require_plain(self.listener)


@dataclass(frozen=True, slots=True)
class Inline:
    """Have the saga wait for the listener, `timeout_ms` at most, retries included; then the event is a dead letter.

    While the listener is left alone (see `Retry`) events become dead letters at once.

    Raises:
        ValueError: an option out of its range, or a ResilientListener, which a FanOut's listeners are without.
    """

    listener: SagaListener
    timeout_ms: int = 1_000
    breaker_failures: int = 5
    breaker_seconds: float = 10.0

    def __post_init__(self) -> None:
        holds = isinstance(self.timeout_ms, int) and self.timeout_ms >= 1
        _require("timeout_ms", self.timeout_ms, "a whole number, 1 or more", holds=holds)
        _require_plain(self.listener)


_LEAST = {"size": 1, "block_seconds": 0, "batch_size": 1, "linger_ms": 0, "workers": 1, "timeout_ms": 1}


def _require(option: str, value: object, allowed: str, *, holds: bool) -> None:
    if not holds:
        msg = f"{option}: got {value!r}; allowed: {allowed}"
        raise ValueError(msg)


def _require_plain(listener: SagaListener) -> None:
    while isinstance(listener, WrappedListener):
        if isinstance(listener, ResilientListener):
            msg = "listener: got a ResilientListener; a FanOut retries by itself: pass the listener within, and Queued(retry=…)"
            raise ValueError(msg)  # noqa: TRY004 - it is a listener, in the wrong place
        listener = listener.inner
