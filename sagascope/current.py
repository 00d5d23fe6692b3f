"""What is current where code runs: the run that it is part of, and the event that a hook is told of."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagascope.events import EventType, SagaEvent
    from sagascope.scope import SagaScope

CURRENT_SCOPE: ContextVar[SagaScope | None] = ContextVar("sagascope_scope", default=None)
_EVENT: ContextVar[SagaEvent | None] = ContextVar("sagascope_event", default=None)


class NoSagaScopeError(LookupError):
    """A hook was called with no run around it that could say which run it belongs to."""


def current_scope() -> SagaScope | None:
    """The innermost run that the caller is part of, its parallel steps' tasks included."""
    return CURRENT_SCOPE.get()


def told(event_type: EventType, saga_id: str, step_name: str | None = None) -> SagaEvent:
    """The event that the hook now running is told of, the same one for every listener.

    Raises:
        NoSagaScopeError: the hook was called by hand, for no event that a scope minted.
    """
    event = _EVENT.get()
    if event is None or (event.event_type, event.saga_id, event.step_name) != (event_type, saga_id, step_name):
        msg = (
            f"{event_type} of saga {saga_id!r} was told outside its run, so it has no identity: "
            "tell it through `async with saga_scope(saga_id, saga_name, listeners=[...])`"
        )
        raise NoSagaScopeError(msg)
    return event


def event_now() -> SagaEvent | None:
    """The event that the hook now running is told of; None where a hook was called by hand."""
    return _EVENT.get()


@contextmanager
def telling(event: SagaEvent, scope: SagaScope | None) -> Iterator[None]:
    """Call hooks within, and they are told of this event, of this run."""
    tokens = _EVENT.set(event), CURRENT_SCOPE.set(scope)
    try:
        yield
    finally:
        _EVENT.reset(tokens[0])
        CURRENT_SCOPE.reset(tokens[1])
