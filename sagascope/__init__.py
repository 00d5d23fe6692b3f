"""What a saga service imports: events, listeners, and the bridge to sagaz.

Importing the package loads nothing; a name loads its module when it is first used, and a driver when a listener opens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagascope.definitions import SagaDefinition, StepDefinition
    from sagascope.events import EventType, InvalidEventError, SagaEvent, decode, encode
    from sagascope.integrations.sagaz import FanOutSaga, SagazBridge
    from sagascope.listener import EventListener, SagaListener
    from sagascope.listeners.kafka import KafkaListener
    from sagascope.scope import NoSagaScopeError, SagaScope, current_scope, saga_scope

__all__ = [
    "EventListener",
    "EventType",
    "FanOutSaga",
    "InvalidEventError",
    "KafkaListener",
    "NoSagaScopeError",
    "SagaDefinition",
    "SagaEvent",
    "SagaListener",
    "SagaScope",
    "SagazBridge",
    "StepDefinition",
    "current_scope",
    "decode",
    "encode",
    "saga_scope",
]

_HOME = {
    "EventListener": "sagascope.listener",
    "EventType": "sagascope.events",
    "FanOutSaga": "sagascope.integrations.sagaz",
    "InvalidEventError": "sagascope.events",
    "KafkaListener": "sagascope.listeners.kafka",
    "NoSagaScopeError": "sagascope.scope",
    "SagaDefinition": "sagascope.definitions",
    "SagaEvent": "sagascope.events",
    "SagaListener": "sagascope.listener",
    "SagaScope": "sagascope.scope",
    "SagazBridge": "sagascope.integrations.sagaz",
    "StepDefinition": "sagascope.definitions",
    "current_scope": "sagascope.scope",
    "decode": "sagascope.events",
    "encode": "sagascope.events",
    "saga_scope": "sagascope.scope",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'sagascope' has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
