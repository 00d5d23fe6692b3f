"""The event: the contract of the Kafka topic and of the tables.

One `SagaEvent` is one JSON object (UTF-8) in one Kafka record, keyed by `saga_id`. A reader ignores fields it does
not know, so a writer of a later version may add some; it refuses what it can't trust, naming field, value and cure.
"""

from __future__ import annotations

import os
import re
import time
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

SCHEMA_VERSION = 1
ERROR_MESSAGE_LIMIT = 8 * 1024
FARTHEST_AHEAD_MS = 5 * 60 * 1000
"""An event whose timestamp is further ahead of its record's own is rejected: it would close every window before it."""
NESTING_LIMIT = 700
"""How deep objects and lists of a record may be nested, also in fields that nobody knows."""
CUT_MARK = " … [cut by sagascope]"

_INT64 = 2**63 - 1
Id = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=0, le=_INT64)]
Ordinal = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class EventType(StrEnum):
    """What can happen in a saga's life."""

    SAGA_STARTED = "saga_started"
    STEP_STARTED = "step_started"
    STEP_COMPLETED = "step_completed"
    STEP_FAILED = "step_failed"
    COMPENSATION_STARTED = "compensation_started"
    COMPENSATION_COMPLETED = "compensation_completed"
    COMPENSATION_FAILED = "compensation_failed"
    SAGA_COMPLETED = "saga_completed"
    SAGA_ROLLED_BACK = "saga_rolled_back"
    """Ended in failure; all that had to be undone is undone."""
    SAGA_FAILED = "saga_failed"
    """Ended in failure; something is left."""


SAGA_ENDS = (EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED)
"""Whoever tells one of these tells the end of a run."""
STEP_EVENTS = frozenset(t for t in EventType if t.startswith(("step_", "compensation_")))
"""The types that name a step."""


class InvalidEventError(ValueError):
    """A record or a value that is no valid event: names the field, the value it had, and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: got {_shown(value)}; allowed: {allowed}")

    def __reduce__(self) -> tuple[type[InvalidEventError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.allowed)


class SagaEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened in one run of one saga. Immutable; equal when all fields are.

    A field that has its default is left out of the JSON: half the bytes, and an absent field reads as the default.

    Raises:
        InvalidEventError: a step or compensation event without `step_name`.
    """

    event_id: Id
    """UUIDv7. The identity: the same id twice is one event."""
    event_type: EventType
    saga_id: Id
    saga_name: Id
    run_id: Id
    """UUIDv7 of one execution: a saga_id may run again."""
    sequence: Count
    """Order within the run, from 0."""
    timestamp: Count
    """Event time: milliseconds since the epoch, UTC."""
    step_name: Id | None = None
    attempt: Ordinal = 1
    compensable: bool | None = None
    pivot: bool | None = None
    duration_ms: Count | None = None
    """Of the step or the compensation, by a monotonic clock."""
    duration_derived: bool = False
    """True where duration_ms is a difference of timestamps, not measured."""
    total_duration_ms: Count | None = None
    """Of the saga."""
    error_type: Id | None = None
    error_message: str | None = None
    """Never empty where error_type is set; cut at 8 KiB of UTF-8, with a mark."""
    context_keys: tuple[str, ...] = ()
    """The names of the context's keys, never their values."""
    attributes: dict[str, str] = {}
    """What an allow-list names, to slice by."""
    definition_id: Id | None = None
    """Hash of the saga's definition, see `sagascope.definitions`."""
    parent_saga_id: Id | None = None
    trace_id: Id | None = None
    service: Id | None = None
    schema_version: Ordinal = msgspec.field(default_factory=lambda: SCHEMA_VERSION)
    """Always written, hence no plain default."""

    def __post_init__(self) -> None:
        if self.step_name is None and self.event_type in STEP_EVENTS:
            raise InvalidEventError("step_name", None, f"a non-empty string, as {self.event_type} is about a step")
        message = self.error_message
        if self.error_type and not (message and message.strip()):
            msgspec.structs.force_setattr(self, "error_message", self.error_type)
        elif message and len(message) > ERROR_MESSAGE_LIMIT // 4:  # the longest character takes 4 bytes
            msgspec.structs.force_setattr(self, "error_message", _cut(message))


def new_id(milliseconds: int | None = None) -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds since the epoch, then 74 random bits; sorts by them.

    Args:
        milliseconds: Of what is older than its id; None: now.
    """
    if milliseconds is None:
        milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (random >> 68) << 64 | 0b10 << 62
    digits = f"{value | random & 0x3FFF_FFFF_FFFF_FFFF:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def encode(event: SagaEvent) -> bytes:
    """The event as the value of a Kafka record: one JSON object, UTF-8.

    A lone surrogate (a file name that was no UTF-8, say) is written as `?`: the event is worth more than the character.
    """
    try:
        return _encoder.encode(event)
    except UnicodeEncodeError:
        return _encoder.encode(_without_surrogates(msgspec.to_builtins(event, enc_hook=_plain)))


def decode(value: bytes, record_time: int | None = None) -> SagaEvent:
    """The event in a Kafka record's value; fields it does not know are ignored.

    Args:
        value: The record's bytes.
        record_time: The record's own timestamp, milliseconds since the epoch; the event's may be 5 minutes ahead of it.

    Raises:
        InvalidEventError: no JSON, no UTF-8, nested too deeply, a field missing, of a wrong type, or out of its range.
    """
    try:
        value.decode()  # msgspec does not look into the fields that it skips
        if value.count(b"[") + value.count(b"{") > NESTING_LIMIT and _is_nested_too_deeply(value):
            raise InvalidEventError("record", value, f"{_RECORD}, nested at most {NESTING_LIMIT} levels deep")
        event = _decoder.decode(value)
    except msgspec.ValidationError as error:
        raise _explained(value, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEventError("record", value, f"{_RECORD} ({error})") from error
    if record_time is not None and event.timestamp > record_time + FARTHEST_AHEAD_MS:
        allowed = f"at most 5 minutes after the record's own timestamp, {record_time}"
        raise InvalidEventError("timestamp", event.timestamp, allowed)
    return event


def _is_nested_too_deeply(value: bytes) -> bool:
    """Whether objects and lists of a JSON text are nested beyond the limit. Of a text that is no JSON: whatever."""
    depth = 0
    for token in _BRACKET.finditer(value):
        if token[0] in b"[{":
            depth += 1
            if depth > NESTING_LIMIT:
                return True
        elif token[0] in b"]}":
            depth -= 1
    return False


def _plain(value: object) -> str:
    """A subclass of str as str: msgspec writes none, and XML parsers and template engines make them."""
    if isinstance(value, str):
        return str.__str__(value)
    raise NotImplementedError


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_decoder = msgspec.json.Decoder(SagaEvent)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RECORD = "one JSON object in UTF-8"
_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[{\]}]', re.DOTALL)
"""Or a string, in which brackets mean nothing; one that does not end is looked at once, not from each of its quotes."""
_REQUIRED = "required in every event"
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


def _explained(value: bytes, error: msgspec.ValidationError) -> InvalidEventError:
    """Say which field, which value and what is allowed, from msgspec's message and the record itself."""
    try:
        raw = _fields_decoder.decode(value)
    except (ValueError, RecursionError) as broken:  # no object, or broken behind the first thing that was wrong
        return InvalidEventError("record", value, f"{_RECORD} ({broken})")
    if isinstance(error.__cause__, InvalidEventError):  # raised by SagaEvent itself
        return error.__cause__
    match = _PATH.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    if missing := _MISSING.search(what):
        return InvalidEventError(missing["field"], None, _REQUIRED)
    field = re.split(r"[.\[]", path, maxsplit=1)[0]
    if field not in raw:
        return InvalidEventError("record", value, what)
    try:
        got = msgspec.json.decode(raw[field])
    except (ValueError, RecursionError):  # too large a number, too deep a list
        got = bytes(raw[field])
    if field == "event_type":
        what = "one of " + ", ".join(EventType)
    return InvalidEventError(field, got, what)


def _cut(message: str) -> str:
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= ERROR_MESSAGE_LIMIT:
        return message
    room = ERROR_MESSAGE_LIMIT - len(CUT_MARK.encode())
    return encoded[:room].decode("utf-8", "ignore") + CUT_MARK


def _shown(value: object, limit: int = 120) -> str:
    try:
        text = "nothing" if value is None else repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(v) for v in value]
    return value
