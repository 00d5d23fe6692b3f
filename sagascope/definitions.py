"""What a saga is made of: its steps, what each waits for, and what it can undo.

An event carries only the id of its saga's definition. The definition itself is one JSON object (UTF-8) in one record of
the compacted topic, keyed by that id. A reader ignores fields it does not know, so a writer of a later version may add
some.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Annotated

import msgspec
from msgspec import Meta

SCHEMA_VERSION = 1
KEPT = 1_000
"""How many definitions a process remembers: of sagas whose steps differ from run to run there is no end."""

Id = Annotated[str, Meta(min_length=1)]
Ordinal = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class InvalidDefinitionError(ValueError):
    """A record that is no valid definition: says what is wrong, what was got, and what is allowed."""


class StepDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `compensable`: has a compensation; `pivot`: once it completed there is no way back."""

    step_name: str
    depends_on: tuple[str, ...] = ()
    compensable: bool = False
    pivot: bool = False
    timeout_seconds: float | None = None
    compensation_timeout_seconds: float | None = None


class SagaDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A saga's name and its steps."""

    saga_name: str
    steps: tuple[StepDefinition, ...]

    def step(self, step_name: str) -> StepDefinition | None:
        """The step of that name, or None where the definition does not know it."""
        return next((step for step in self.steps if step.step_name == step_name), None)

    @property
    def definition_id(self) -> str:
        """16 hex digits of SHA-256 over the definition: the same steps in any order give the same id."""
        steps = tuple(sorted(self.steps, key=lambda step: step.step_name))
        return hashlib.sha256(msgspec.json.encode((self.saga_name, steps))).hexdigest()[:16]


class PublishedDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A definition as its record has it."""

    definition_id: Id
    """That of the events. Not computed again by a reader: a later version may hash fields that this one ignores."""
    saga_name: Id
    steps: tuple[StepDefinition, ...]
    service: Id | None = None
    """Who reported it."""
    schema_version: Ordinal


def encode_definition(definition: SagaDefinition, service: str | None = None) -> bytes:
    """The definition as the value of a Kafka record: one JSON object, UTF-8, every field of a step written."""
    return msgspec.json.encode(
        PublishedDefinition(
            definition_id=definition.definition_id,
            saga_name=definition.saga_name,
            steps=definition.steps,
            service=service.encode("utf-8", "replace").decode() if service else None,  # a lone surrogate as `?`
            schema_version=SCHEMA_VERSION,
        )
    )


def decode_definition(value: bytes) -> PublishedDefinition:
    """The definition in a Kafka record's value; fields it does not know are ignored.

    Raises:
        InvalidDefinitionError: no JSON, no UTF-8, a field missing, of a wrong type, or out of its range.
    """
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        got = repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}… ({len(value):,} bytes)"
        fields = ", ".join(PublishedDefinition.__struct_fields__)
        msg = f"no definition of a saga: {error}; got {got}; allowed: one JSON object in UTF-8 with {fields}"
        raise InvalidDefinitionError(msg) from error


def remember(definition: SagaDefinition) -> str:
    """The definition's id, of which `recall` gives the definition back.

    So what sends events needs only the events, also where they come to it by way of a queue or of another listener.
    """
    definition_id = definition.definition_id
    with _lock:
        _remembered.pop(definition_id, None)
        _remembered[definition_id] = definition
        if len(_remembered) > KEPT:
            del _remembered[next(iter(_remembered))]  # the one that was longest in no run
    return definition_id


def recall(definition_id: str) -> SagaDefinition | None:
    """The definition of that id; None where no run of this process had it, or a thousand others had theirs since."""
    return _remembered.get(definition_id)


_SHOWN = 120
_decoder = msgspec.json.Decoder(PublishedDefinition)
_lock = threading.Lock()  # sagas may run in several threads
_remembered: dict[str, SagaDefinition] = {}
