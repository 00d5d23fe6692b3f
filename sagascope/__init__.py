"""What a saga service imports: events, listeners, and the bridge to sagaz.

Importing the package loads nothing; a name loads its module when it is first used, and a driver when a listener opens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagascope.accounting import DeadLetters
    from sagascope.audit import JsonLinesAuditLog, SQLAuditLog
    from sagascope.current import NoSagaScopeError, current_scope
    from sagascope.dead_letters import DeadLetterFile
    from sagascope.definitions import SagaDefinition, StepDefinition
    from sagascope.delivery import MonitoredListener, TimeoutWrappedListener
    from sagascope.errors import DeliveryError, ListenerTimeoutError, PartialError, PermanentError, TransientError
    from sagascope.events import EventType, InvalidEventError, SagaEvent, decode, encode
    from sagascope.fan_out import FanOut
    from sagascope.health import health_app
    from sagascope.integrations.sagaz import FanOutSaga, SagazBridge
    from sagascope.listener import EventListener, SagaListener
    from sagascope.listeners.audit_log import AuditLogListener
    from sagascope.listeners.elasticsearch import ElasticsearchListener
    from sagascope.listeners.fluss import FlussAnalyticsListener
    from sagascope.listeners.kafka import KafkaListener
    from sagascope.listeners.metrics import MetricsSagaListener
    from sagascope.listeners.outbox import OutboxSagaListener
    from sagascope.listeners.rabbitmq import RabbitMQListener
    from sagascope.listeners.redis_cache import RedisCacheListener
    from sagascope.listeners.tracing import TracingSagaListener
    from sagascope.listeners.webhook import WebhookListener
    from sagascope.outbox.postgresql import PostgresOutbox
    from sagascope.outbox.sqlite import SQLiteOutbox
    from sagascope.policies import Inline, Queued
    from sagascope.redaction import redact
    from sagascope.resilient import ResilientListener, Retry
    from sagascope.scope import SagaScope, saga_scope

__all__ = [
    "AuditLogListener",
    "DeadLetterFile",
    "DeadLetters",
    "DeliveryError",
    "ElasticsearchListener",
    "EventListener",
    "EventType",
    "FanOut",
    "FanOutSaga",
    "FlussAnalyticsListener",
    "Inline",
    "InvalidEventError",
    "JsonLinesAuditLog",
    "KafkaListener",
    "ListenerTimeoutError",
    "MetricsSagaListener",
    "MonitoredListener",
    "NoSagaScopeError",
    "OutboxSagaListener",
    "PartialError",
    "PermanentError",
    "PostgresOutbox",
    "Queued",
    "RabbitMQListener",
    "RedisCacheListener",
    "ResilientListener",
    "Retry",
    "SQLAuditLog",
    "SQLiteOutbox",
    "SagaDefinition",
    "SagaEvent",
    "SagaListener",
    "SagaScope",
    "SagazBridge",
    "StepDefinition",
    "TimeoutWrappedListener",
    "TracingSagaListener",
    "TransientError",
    "WebhookListener",
    "current_scope",
    "decode",
    "encode",
    "health_app",
    "redact",
    "saga_scope",
]

_HOME = {
    "AuditLogListener": "sagascope.listeners.audit_log",
    "DeadLetterFile": "sagascope.dead_letters",
    "DeadLetters": "sagascope.accounting",
    "DeliveryError": "sagascope.errors",
    "ElasticsearchListener": "sagascope.listeners.elasticsearch",
    "EventListener": "sagascope.listener",
    "EventType": "sagascope.events",
    "FanOut": "sagascope.fan_out",
    "FanOutSaga": "sagascope.integrations.sagaz",
    "FlussAnalyticsListener": "sagascope.listeners.fluss",
    "Inline": "sagascope.policies",
    "InvalidEventError": "sagascope.events",
    "JsonLinesAuditLog": "sagascope.audit",
    "KafkaListener": "sagascope.listeners.kafka",
    "ListenerTimeoutError": "sagascope.errors",
    "MetricsSagaListener": "sagascope.listeners.metrics",
    "MonitoredListener": "sagascope.delivery",
    "NoSagaScopeError": "sagascope.current",
    "OutboxSagaListener": "sagascope.listeners.outbox",
    "PartialError": "sagascope.errors",
    "PermanentError": "sagascope.errors",
    "PostgresOutbox": "sagascope.outbox.postgresql",
    "Queued": "sagascope.policies",
    "RabbitMQListener": "sagascope.listeners.rabbitmq",
    "RedisCacheListener": "sagascope.listeners.redis_cache",
    "ResilientListener": "sagascope.resilient",
    "Retry": "sagascope.resilient",
    "SQLAuditLog": "sagascope.audit",
    "SQLiteOutbox": "sagascope.outbox.sqlite",
    "SagaDefinition": "sagascope.definitions",
    "SagaEvent": "sagascope.events",
    "SagaListener": "sagascope.listener",
    "SagaScope": "sagascope.scope",
    "SagazBridge": "sagascope.integrations.sagaz",
    "StepDefinition": "sagascope.definitions",
    "TimeoutWrappedListener": "sagascope.delivery",
    "TracingSagaListener": "sagascope.listeners.tracing",
    "TransientError": "sagascope.errors",
    "WebhookListener": "sagascope.listeners.webhook",
    "current_scope": "sagascope.current",
    "decode": "sagascope.events",
    "encode": "sagascope.events",
    "health_app": "sagascope.health",
    "redact": "sagascope.redaction",
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
