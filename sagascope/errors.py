"""Why a delivery failed, and so what becomes of its events.

    DeliveryError
    ├── TransientError   the same events may succeed later: they are tried again
    ├── PermanentError   the same events will always fail: they become dead letters
    └── PartialError     some were taken; names those to try again and those that will always fail

A listener's `write` raises these; any other exception counts as transient until the attempts are used up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.events import SagaEvent


class DeliveryError(Exception):
    """A sink did not take all events that it was given."""

    is_said = False
    """Whether its text names its class already, and is free of what must not be said."""


class TransientError(DeliveryError):
    """Nothing was taken as far as is known; the same events may succeed later."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds that the sink asked to wait, where it did."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"retry_after": self.retry_after}


class ListenerTimeoutError(TransientError, TimeoutError):
    """A listener did not answer in time; what it did until then is not known."""


class PermanentError(DeliveryError):
    """The same input will always fail: trying again is of no use."""


class PartialError(DeliveryError):
    """Some events were taken, and are not to be sent again."""

    def __init__(
        self,
        message: str,
        *,
        retry: Sequence[SagaEvent] = (),
        rejected: Sequence[tuple[SagaEvent, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry = retry
        """Those that may succeed later, in order."""
        self.rejected = rejected
        """Those that will always fail, each with why."""
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"retry": self.retry, "rejected": self.rejected, "retry_after": self.retry_after}
