"""A definition's id says whether two runs had the same steps; its record can be told from what is none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import sagaz
from hypothesis import given
from hypothesis import strategies as st

from sagascope import definitions
from sagascope.definitions import (
    InvalidDefinitionError,
    PublishedDefinition,
    SagaDefinition,
    StepDefinition,
    decode_definition,
    encode_definition,
    recall,
    remember,
)
from sagascope.integrations.sagaz import FanOutSaga, SagazBridge
from tests.sagascope.conftest import ok

if TYPE_CHECKING:
    from tests.sagascope.conftest import MemoryListener

RESERVE = StepDefinition(step_name="reserve", compensable=True)
CHARGE = StepDefinition(step_name="charge", depends_on=("reserve",), pivot=True, timeout_seconds=5.0)
SHIP = StepDefinition(step_name="ship", depends_on=("charge",))
ORDER = SagaDefinition(saga_name="order", steps=(RESERVE, CHARGE, SHIP))


@given(st.permutations([RESERVE, CHARGE, SHIP]))
def test_the_id_does_not_depend_on_the_order_of_steps(steps: list[StepDefinition]) -> None:
    """The same steps in any order are the same saga, with an id of 16 hex digits."""
    definition_id = SagaDefinition(saga_name="order", steps=tuple(steps)).definition_id
    assert definition_id == ORDER.definition_id
    assert int(definition_id, 16) < 2**64
    assert len(definition_id) == 16


def test_the_id_is_the_same_in_every_process() -> None:
    """The id is a hash of the content, so it is the same today, tomorrow and on another machine."""
    assert ORDER.definition_id == "04204d0d1a8beff6"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_name", "bill"),
        ("depends_on", ()),
        ("depends_on", ("reserve", "ship")),
        ("compensable", True),
        ("pivot", False),
        ("timeout_seconds", None),
        ("timeout_seconds", 5.5),
        ("compensation_timeout_seconds", 1.0),
    ],
)
def test_the_id_changes_with_any_field_of_a_step(field: str, value: Any) -> None:
    """A step that is another in any field makes another definition."""
    other = msgspec.structs.replace(CHARGE, **{field: value})
    assert SagaDefinition(saga_name="order", steps=(RESERVE, other, SHIP)).definition_id != ORDER.definition_id


def test_every_field_of_a_step_was_changed_above() -> None:
    """A field added to StepDefinition is added to the test of the id too."""
    (mark,) = test_the_id_changes_with_any_field_of_a_step.pytestmark
    assert {field for field, _ in mark.args[1]} == {field.name for field in msgspec.structs.fields(StepDefinition)}


def test_the_id_changes_with_the_name_and_the_number_of_steps() -> None:
    """Another saga_name, a step less or none at all: each is another definition."""
    ids = {
        ORDER.definition_id,
        SagaDefinition(saga_name="refund", steps=ORDER.steps).definition_id,
        SagaDefinition(saga_name="order", steps=ORDER.steps[:2]).definition_id,
        SagaDefinition(saga_name="order", steps=()).definition_id,
    }
    assert len(ids) == 4


def test_a_step_is_found_by_its_name() -> None:
    """`step` gives the step of that name, and None for one the definition does not know."""
    assert ORDER.step("charge") is CHARGE
    assert ORDER.step("refund") is None


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TIMEOUTS = st.none() | st.floats(0, 1e9)
STEPS = st.builds(
    StepDefinition,
    step_name=TEXTS,
    depends_on=st.lists(TEXTS).map(tuple),
    compensable=st.booleans(),
    pivot=st.booleans(),
    timeout_seconds=TIMEOUTS,
    compensation_timeout_seconds=TIMEOUTS,
)


@given(st.builds(SagaDefinition, saga_name=TEXTS, steps=st.lists(STEPS).map(tuple)), st.none() | TEXTS)
def test_a_record_holds_the_definition_with_the_id_of_the_events(
    definition: SagaDefinition, service: str | None
) -> None:
    """What is read is what was written, and the steps that are read have the id that is read."""
    read = decode_definition(encode_definition(definition, service))
    assert (read.saga_name, read.steps, read.service) == (definition.saga_name, definition.steps, service)
    assert read.definition_id == definition.definition_id
    assert SagaDefinition(saga_name=read.saga_name, steps=read.steps).definition_id == read.definition_id


def test_the_record_is_this_json() -> None:
    """The contract of the topic: one object, every field of every step in it, timeouts in seconds."""
    assert msgspec.json.decode(
        encode_definition(SagaDefinition(saga_name="order", steps=(RESERVE, CHARGE)), "shop")
    ) == {
        "definition_id": SagaDefinition(saga_name="order", steps=(RESERVE, CHARGE)).definition_id,
        "saga_name": "order",
        "steps": [
            {
                "step_name": "reserve",
                "depends_on": [],
                "compensable": True,
                "pivot": False,
                "timeout_seconds": None,
                "compensation_timeout_seconds": None,
            },
            {
                "step_name": "charge",
                "depends_on": ["reserve"],
                "compensable": False,
                "pivot": True,
                "timeout_seconds": 5.0,
                "compensation_timeout_seconds": None,
            },
        ],
        "service": "shop",
        "schema_version": 1,
    }


def test_fields_of_a_later_version_are_ignored() -> None:
    """A writer may add fields to the definition and to its steps; the id is then not ours to compute."""
    later = b"""{"definition_id": "f00", "saga_name": "order", "schema_version": 2, "owner": "team-7",
                 "steps": [{"step_name": "pay", "retries": 3}]}"""
    assert decode_definition(later) == PublishedDefinition(
        definition_id="f00", saga_name="order", steps=(StepDefinition(step_name="pay"),), schema_version=2
    )


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"\xff", "JSON is malformed"),
        (b'{"saga_name": "\xff"}', "JSON is malformed|utf-8"),
        (b"[" * 100_000, r"\(100,000 bytes\)"),
        (b'{"saga_name": "order", "steps": [], "schema_version": 1}', "missing required field `definition_id`"),
        (b'{"definition_id": "", "saga_name": "o", "steps": [], "schema_version": 1}', r"length >= 1.*definition_id"),
        (b'{"definition_id": "a", "saga_name": 7, "steps": [], "schema_version": 1}', r"`str`, got `int`.*saga_name"),
        (b'{"definition_id": "a", "saga_name": "o", "steps": [{}], "schema_version": 1}', r"`step_name`.*steps\[0\]"),
        (b'{"definition_id": "a", "saga_name": "o", "steps": [], "schema_version": 0}', r">= 1.*schema_version"),
    ],
)
def test_what_is_no_definition_is_refused(value: bytes, complaint: str) -> None:
    """The error says what is wrong, what was got, and what is allowed."""
    with pytest.raises(InvalidDefinitionError, match=complaint) as refused:
        decode_definition(value)
    assert "; got b" in str(refused.value)
    assert "one JSON object in UTF-8 with definition_id, saga_name, steps" in str(refused.value)


def test_a_process_remembers_the_newest_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A definition in use stays; those longest out of use are forgotten, so that endless ones fill no memory."""
    monkeypatch.setattr(definitions, "KEPT", 3)
    monkeypatch.setattr(definitions, "_remembered", {})
    made = [SagaDefinition(saga_name=f"order-{n}", steps=(RESERVE,)) for n in range(5)]
    for definition in made:
        assert remember(definition) == definition.definition_id
        remember(made[0])
    assert [recall(definition.definition_id) for definition in made] == [made[0], None, None, made[3], made[4]]


class OrderSaga(sagaz.Saga):  # type: ignore[misc] # sagaz has no types
    """A saga by sagaz's decorators."""

    saga_name = "order"

    @sagaz.action("ship", depends_on=["charge"], timeout_seconds=90)  # type: ignore[untyped-decorator]
    async def ship(self, ctx: dict[str, Any]) -> None: ...

    @sagaz.action("charge", depends_on=["reserve"], timeout_seconds=5, pivot=True)  # type: ignore[untyped-decorator]
    async def charge(self, ctx: dict[str, Any]) -> None: ...

    @sagaz.action("reserve")  # type: ignore[untyped-decorator]
    async def reserve(self, ctx: dict[str, Any]) -> None: ...

    @sagaz.compensate("reserve", timeout_seconds=7)  # type: ignore[untyped-decorator]
    async def release(self, ctx: dict[str, Any]) -> None: ...


class FanOutOrderSaga(OrderSaga, FanOutSaga):
    """The same one, as a FanOutSaga."""


def step(name: str, *after: str, timeout: float = 60.0, **fields: Any) -> StepDefinition:
    """A step as sagaz has it: with timeouts of its own."""
    fields = {"compensation_timeout_seconds": 30.0} | fields
    return StepDefinition(step_name=name, depends_on=after, timeout_seconds=timeout, **fields)


def test_a_declarative_saga_is_known_by_what_sagaz_knows_of_it(memory: MemoryListener) -> None:
    """Edges, timeouts, compensations and pivots stand in the decorators; a bridge and a FanOutSaga read them alike."""
    OrderSaga.listeners = [SagazBridge([memory], sagas=[OrderSaga])]
    asyncio.run(OrderSaga().run({}))
    OrderSaga.listeners = None
    asyncio.run(FanOutOrderSaga(listeners=[memory]).run({}))
    assert len(memory.events) == 16
    (definition_id,) = {event.definition_id for event in memory.events}
    known = recall(str(definition_id))
    assert known is not None
    assert known.definition_id == definition_id
    assert sorted(known.steps, key=lambda step: step.step_name) == [
        step("charge", "reserve", timeout=5.0, pivot=True),
        step("reserve", compensable=True, compensation_timeout_seconds=7.0),
        step("ship", "charge", timeout=90.0),
    ]


def test_an_imperative_saga_is_known_by_the_steps_that_were_added(memory: MemoryListener) -> None:
    """add_step says the same as decorators, but for pivots; a saga that gets another step gets another id."""
    saga = FanOutSaga("refund", listeners=[memory]).add_step("check", ok, timeout_seconds=5)
    asyncio.run(saga.run({}))
    saga.add_step("pay", ok, ok, depends_on=["check"], compensation_timeout_seconds=7)
    asyncio.run(saga.run({}))
    short, long = (recall(str(key)) for key in dict.fromkeys(event.definition_id for event in memory.events))
    check = step("check", timeout=5.0)
    pay = step("pay", "check", compensable=True, compensation_timeout_seconds=7.0)
    assert short == SagaDefinition(saga_name="refund", steps=(check,))
    assert long == SagaDefinition(saga_name="refund", steps=(check, pay))
