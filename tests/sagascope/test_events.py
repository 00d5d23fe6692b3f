"""The event's contract: what is written, what is read, and what is refused."""

from __future__ import annotations

import json
import pickle
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sagascope.events import (
    CUT_MARK,
    ERROR_MESSAGE_LIMIT,
    STEP_EVENTS,
    EventType,
    InvalidEventError,
    SagaEvent,
    decode,
    encode,
    new_id,
)
from tests.sagascope.conftest import make_event

if TYPE_CHECKING:
    from collections.abc import Callable

names = st.text(min_size=1, max_size=30)
counts = st.integers(0, 2**63 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
long_messages = st.tuples(st.text(min_size=1, max_size=5), st.integers(1, 4_000)).map(lambda pair: pair[0] * pair[1])


@st.composite
def events(draw: st.DrawFn, text: st.SearchStrategy[str] = names) -> SagaEvent:
    """Any valid event."""
    event_type = draw(st.sampled_from(EventType))
    return SagaEvent(
        event_id=draw(text),
        event_type=event_type,
        saga_id=draw(text),
        saga_name=draw(text),
        run_id=draw(text),
        sequence=draw(counts),
        timestamp=draw(counts),
        step_name=draw(text if event_type in STEP_EVENTS else st.none() | text),
        attempt=draw(st.integers(1, 2**31 - 1)),
        compensable=draw(st.none() | st.booleans()),
        pivot=draw(st.none() | st.booleans()),
        duration_ms=draw(st.none() | counts),
        duration_derived=draw(st.booleans()),
        total_duration_ms=draw(st.none() | counts),
        error_type=draw(st.none() | text),
        error_message=draw(st.none() | st.just("") | text | long_messages),
        context_keys=tuple(draw(st.lists(text, max_size=4))),
        attributes=draw(st.dictionaries(text, text, max_size=4)),
        definition_id=draw(st.none() | text),
        parent_saga_id=draw(st.none() | text),
        trace_id=draw(st.none() | text),
        service=draw(st.none() | text),
    )


def record_of(**fields: Any) -> bytes:
    """The JSON of a small valid event, with these fields set; a field set to `...` is left out."""
    record = json.loads(encode(make_event())) | fields
    return json.dumps({key: value for key, value in record.items() if value is not ...}).encode()


def read_or_refused(record: bytes) -> SagaEvent | InvalidEventError:
    """The event in the record, or the error it is refused with."""
    try:
        return decode(record)
    except InvalidEventError as error:
        return error


@given(events())
def test_an_event_survives_the_round_trip(event: SagaEvent) -> None:
    """What is decoded from an encoded event equals it, whatever its fields hold."""
    assert decode(encode(event)) == event


@given(events(), st.dictionaries(names.map(lambda name: f"later_{name}"), json_values, max_size=3))
def test_a_reader_of_version_1_reads_version_2(event: SagaEvent, later: dict[str, Any]) -> None:
    """A later writer's fields are ignored, and its schema_version is kept."""
    record = json.loads(encode(event)) | later | {"schema_version": 2}
    read = decode(json.dumps(record).encode())
    assert read == msgspec.structs.replace(event, schema_version=2)


def test_only_what_differs_from_its_default_is_written() -> None:
    """A small event's JSON has the required fields and schema_version, and nothing else."""
    assert sorted(json.loads(encode(make_event()))) == [
        "event_id",
        "event_type",
        "run_id",
        "saga_id",
        "saga_name",
        "schema_version",
        "sequence",
        "timestamp",
    ]


def test_absent_optional_fields_read_as_their_defaults() -> None:
    """A record of required fields alone is an event; no two events share a mutable default."""
    one, other = decode(record_of(schema_version=...)), decode(record_of())
    assert one == SagaEvent(
        event_id=one.event_id,
        event_type=EventType.SAGA_STARTED,
        saga_id="order-17",
        saga_name="order",
        run_id=one.run_id,
        sequence=0,
        timestamp=1_700_000_000_123,
    )
    assert (one.attempt, one.context_keys, one.attributes, one.schema_version) == (1, (), {}, 1)
    assert one.attributes is not other.attributes


@pytest.mark.parametrize("field", ["event_id", "event_type", "saga_id", "saga_name", "run_id", "sequence", "timestamp"])
def test_a_missing_required_field_is_named(field: str) -> None:
    """Each required field that is missing is refused by its name."""
    with pytest.raises(InvalidEventError, match=f"^{field}: got nothing; allowed: required") as refused:
        decode(record_of(**{field: ...}))
    assert (refused.value.field, refused.value.value) == (field, None)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("event_id", 7, "`str`"),
        ("event_id", "", "length >= 1"),
        ("event_type", "saga_paused", "saga_rolled_back"),
        ("event_type", None, "saga_started"),
        ("saga_id", {"id": 1}, "`str`"),
        ("saga_id", "", "length >= 1"),
        ("saga_name", ["order"], "`str`"),
        ("run_id", None, "`str`"),
        ("sequence", -1, ">= 0"),
        ("sequence", "0", "`int`"),
        ("sequence", True, "`int`"),
        ("timestamp", 1.5, "`int`"),
        ("timestamp", "2026-01-01T00:00:00Z", "`int`"),
        ("step_name", "", "length >= 1"),
        ("attempt", 0, ">= 1"),
        ("attempt", 2**31, "<= 2147483647"),
        ("compensable", "yes", "`bool"),
        ("pivot", 1, "`bool"),
        ("duration_ms", -5, ">= 0"),
        ("duration_derived", None, "`bool`"),
        ("total_duration_ms", 0.5, "`int"),
        ("error_type", "", "length >= 1"),
        ("error_message", 404, "`str"),
        ("context_keys", "order", "`array`"),
        ("context_keys", ["order", 1], "`str`"),
        ("attributes", ["tenant"], "`object`"),
        ("attributes", {"tenant": 7}, "`str`"),
        ("definition_id", 1, "`str"),
        ("parent_saga_id", False, "`str"),
        ("trace_id", "", "length >= 1"),
        ("service", {}, "`str"),
        ("schema_version", 0, ">= 1"),
    ],
)
def test_a_wrong_value_is_refused_by_field_value_and_cure(field: str, value: object, allowed: str) -> None:
    """A field of a wrong type or out of its range: the error says which, what it was, and what is allowed."""
    with pytest.raises(InvalidEventError) as refused:
        decode(record_of(**{field: value}))
    error = refused.value
    assert (error.field, error.value) == (field, value)
    assert allowed in error.allowed
    assert str(error).startswith(f"{field}: got ")


@pytest.mark.parametrize("field", ["sequence", "timestamp", "duration_ms", "total_duration_ms", "attempt"])
@pytest.mark.parametrize("digits", [str(2**63), str(2**64), str(10**30), "9" * 5_000, str(-(2**63) - 1)], ids=len)
def test_integers_beyond_int64_are_refused(field: str, digits: str) -> None:
    """No table could keep it, so no number beyond int64 is read, however many digits it has."""
    record = record_of(**{field: 987654321}).replace(b"987654321", digits.encode())
    with pytest.raises(InvalidEventError) as refused:
        decode(record)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"   ",
        b"null",
        b"17",
        b'"saga_started"',
        b"[]",
        b"[" + b"1," * 50 + b"1]",
        b"\xff\xfe",
        b"{",
        b'{"event_id": 5, broken',
        b'{"event_id": 5, "x": "\xff"',
        b"[" * 100_000,
        b'{"event_id":' * 100_000,
        record_of(saga_id="XX").replace(b"XX", b"\xff\xfe"),
        record_of() + b"{}",
        record_of()[:-2],
        b"\xef\xbb\xbf" + record_of(),
    ],
    ids=lambda record: repr(record[:16]),
)
def test_what_is_no_json_object_in_utf8_is_refused_as_a_record(record: bytes) -> None:
    """Bytes that are no UTF-8, no JSON or no object are refused whole, the bytes kept for the dead letter."""
    with pytest.raises(InvalidEventError, match="one JSON object in UTF-8") as refused:
        decode(record)
    assert (refused.value.field, refused.value.value) == ("record", record)


def test_a_field_nested_too_deeply_is_refused_like_any_other() -> None:
    """No depth of nesting gets past the one error, not even where showing the value would overflow the stack."""
    record = record_of(sequence=987654321)
    for depth in (1, 100, *range(700, 1_010), 100_000):
        with pytest.raises(InvalidEventError):
            decode(record.replace(b"987654321", b"[" * depth + b"]" * depth))


@given(st.binary(max_size=200))
@example(b'{"":')
def test_arbitrary_bytes_raise_nothing_else(record: bytes) -> None:
    """Whatever arrives on the topic, decode raises InvalidEventError and nothing else."""
    with pytest.raises(InvalidEventError):
        decode(record)


@given(events(), st.data())
def test_a_damaged_record_raises_nothing_else(event: SagaEvent, data: st.DataObject) -> None:
    """A valid record cut, overwritten or spliced is refused, or is still an event that survives the round trip."""
    record = encode(event)
    start = data.draw(st.integers(0, len(record)))
    end = data.draw(st.integers(start, min(len(record), start + 20)))
    damaged = record[:start] + data.draw(st.binary(max_size=8) | st.sampled_from([b"[" * 2_000, b"9" * 5_000]))
    if data.draw(st.booleans()):
        damaged += record[end:]
    read = read_or_refused(damaged)
    if isinstance(read, SagaEvent):
        assert decode(encode(read)) == read


@given(st.sampled_from([field.name for field in msgspec.structs.fields(SagaEvent)]), json_values)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: object) -> None:
    """A field with an arbitrary JSON value makes an event, or an error that names that field."""
    read = read_or_refused(record_of(**{field: value}))
    if isinstance(read, SagaEvent):
        assert decode(encode(read)) == read
    else:
        assert read.field in {field, "step_name"}  # a step's event_type asks for a step_name


@pytest.mark.parametrize("event_type", sorted(STEP_EVENTS))
def test_a_step_event_names_its_step(event_type: EventType) -> None:
    """An event about a step without step_name is refused where it is made and where it is read."""
    with pytest.raises(InvalidEventError, match=event_type.value) as made:
        make_event(event_type=event_type)
    with pytest.raises(InvalidEventError, match=event_type.value) as read:
        decode(record_of(event_type=event_type.value))
    assert made.value.field == read.value.field == "step_name"


@pytest.mark.parametrize("message", [None, "", " \n\t"])
def test_an_error_without_words_gets_its_type_as_message(message: str | None) -> None:
    """Where error_type is set, error_message is never empty, neither made nor read."""
    assert make_event(error_type="TimeoutError", error_message=message).error_message == "TimeoutError"
    assert decode(record_of(error_type="TimeoutError", error_message=message)).error_message == "TimeoutError"


@pytest.mark.parametrize("character", ["x", "é", "語", "😀", "x😀", "\n."])
def test_a_huge_message_is_cut_once_between_characters(character: str) -> None:
    """A message of a megabyte is cut at 8 KiB of UTF-8 with the mark, splits no character, and is not cut again."""
    message = character * (1_000_000 // len(character.encode()))
    event = make_event(error_type="E", error_message=message)
    cut = event.error_message or ""
    assert ERROR_MESSAGE_LIMIT - 4 < len(cut.encode()) <= ERROR_MESSAGE_LIMIT
    assert cut.endswith(CUT_MARK)
    assert message.startswith(cut.removesuffix(CUT_MARK))
    assert decode(encode(event)) == event
    assert make_event(error_type="E", error_message=cut).error_message == cut


@given(st.text(alphabet="aé語😀", max_size=40), st.integers(ERROR_MESSAGE_LIMIT - 8, ERROR_MESSAGE_LIMIT + 8))
def test_a_message_that_fits_is_not_touched(tail: str, size: int) -> None:
    """Up to 8 KiB a message stays as it is, beyond it is never longer than 8 KiB."""
    message = "a" * (size - len(tail.encode())) + tail
    kept = make_event(error_message=message).error_message or ""
    assert kept == message if size <= ERROR_MESSAGE_LIMIT else len(kept.encode()) <= ERROR_MESSAGE_LIMIT


def test_a_huge_saga_id_survives() -> None:
    """An id is never cut: half of it would be another saga."""
    event = make_event(saga_id="語" * 400_000)
    assert decode(encode(event)) == event


@given(events(st.text(st.characters(), min_size=1, max_size=10)), st.sampled_from(["\ud800", "\udfff", "a\udc80b"]))
def test_lone_surrogates_cost_a_character_not_the_event(event: SagaEvent, bad: str) -> None:
    """Text that UTF-8 cannot hold is written with `?` in its place, in every field, and reads back as that."""
    event = msgspec.structs.replace(event, saga_id=bad, attributes=event.attributes | {bad: bad})
    read = decode(encode(event))
    plain = bad.encode("utf-8", "replace").decode()
    assert (read.event_id, read.saga_id) == (event.event_id.encode("utf-8", "replace").decode(), plain)
    assert read.attributes[plain] == plain


def test_subclasses_of_str_are_written_as_str() -> None:
    """The str subclasses of XML parsers and template engines are text like any other."""

    class Smart(str):
        __slots__ = ()

    event = make_event(saga_id=Smart("o-1"), error_message=Smart("\ud800"), attributes={"tenant": Smart("acme")})
    assert decode(encode(event)).saga_id == "o-1"
    assert decode(encode(event)).attributes == {"tenant": "acme"}


def test_new_ids_are_uuids_of_version_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is a UUIDv7 by RFC 9562: version, variant, the moment in its first 48 bits; ids sort by millisecond."""
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(new_id()) for _ in range(1_000)]
    after = time.time_ns() // 1_000_000
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    assert all(before <= one.int >> 80 <= after for one in made)
    assert len(set(made)) == 1_000

    moments = iter(range(1_700_000_000_000_000_000, 1_700_000_001_000_000_000, 1_000_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    in_order = [new_id() for _ in range(1_000)]
    assert in_order == sorted(in_order)
    assert all(str(uuid.UUID(one)) == one for one in in_order)


@pytest.mark.parametrize("fail", [lambda: decode(b"[]"), lambda: make_event(event_type=EventType.STEP_FAILED)])
def test_the_error_goes_from_process_to_process(fail: Callable[[], SagaEvent]) -> None:
    """InvalidEventError pickles, with its field, value and cure."""
    with pytest.raises(InvalidEventError) as refused:
        fail()
    copied = pickle.loads(pickle.dumps(refused.value))  # noqa: S301 - made right here
    assert (copied.field, copied.value, copied.allowed, str(copied)) == (
        refused.value.field,
        refused.value.value,
        refused.value.allowed,
        str(refused.value),
    )


def test_the_error_is_short_however_large_the_value() -> None:
    """A record of a megabyte is kept in `.value` and only its beginning is said."""
    with pytest.raises(InvalidEventError) as refused:
        decode(b"[" + b"1," * 500_000 + b"1]")
    assert len(str(refused.value)) < 400
    assert len(refused.value.value) == 1_000_003  # type: ignore[arg-type] # bytes here
