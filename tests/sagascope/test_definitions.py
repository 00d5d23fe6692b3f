"""A definition's id says whether two runs had the same steps."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagascope.definitions import SagaDefinition, StepDefinition

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
