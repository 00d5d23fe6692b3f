"""How a run that failed ended: rolled back, or with something left behind."""

from __future__ import annotations

import asyncio

import pytest

from sagascope.definitions import SagaDefinition, StepDefinition
from sagascope.scope import SagaScope, saga_scope
from tests.sagascope.conftest import MemoryListener

DEFINITION = SagaDefinition(
    saga_name="order",
    steps=(
        StepDefinition(step_name="reserve", compensable=True),
        StepDefinition(step_name="charge", pivot=True),
        StepDefinition(step_name="notify"),
    ),
)
BOOM = ValueError("boom")

DONE = "done"
FAILED = "failed"
UNDONE = "undone"
NOT_UNDONE = "not undone"
UNDOING = "undoing"


async def happen(saga: SagaScope, step_name: str, what: str) -> None:
    """Let one thing happen to a step."""
    match what:
        case "done":
            await saga.step_started(step_name)
            await saga.step_completed(step_name)
        case "failed":
            await saga.step_started(step_name)
            await saga.step_failed(step_name, BOOM)
        case "undone":
            await saga.compensation_started(step_name)
            await saga.compensation_completed(step_name)
        case "not undone":
            await saga.compensation_started(step_name)
            await saga.compensation_failed(step_name, BOOM)
        case "undoing":
            await saga.compensation_started(step_name)


@pytest.mark.parametrize("known", [True, False], ids=["definition known", "definition unknown"])
@pytest.mark.parametrize(
    ("history", "left_known", "left_unknown"),
    [
        ([], [], []),
        ([("reserve", FAILED)], [], []),
        ([("charge", FAILED)], [], []),
        ([("notify", DONE), ("charge", FAILED)], [], []),
        ([("reserve", DONE), ("charge", FAILED), ("reserve", UNDONE)], [], []),
        ([("reserve", DONE), ("charge", FAILED), ("reserve", NOT_UNDONE)], ["reserve"], ["reserve"]),
        ([("reserve", DONE), ("charge", FAILED), ("reserve", NOT_UNDONE), ("reserve", UNDONE)], [], []),
        ([("reserve", DONE), ("charge", FAILED), ("reserve", UNDOING)], ["reserve"], ["reserve"]),
        ([("reserve", DONE), ("charge", FAILED)], ["reserve"], []),
        ([("reserve", DONE), ("charge", DONE), ("notify", FAILED)], ["reserve", "charge"], []),
        ([("reserve", DONE), ("charge", DONE), ("notify", FAILED), ("reserve", UNDONE)], ["charge"], []),
        ([("reserve", DONE), ("reserve", UNDONE), ("reserve", DONE)], ["reserve"], ["reserve"]),
        ([("reserve", FAILED), ("reserve", DONE), ("reserve", UNDONE)], [], []),
        ([("notify", DONE), ("notify", NOT_UNDONE)], ["notify"], ["notify"]),
    ],
    ids=lambda value: "; ".join(" ".join(pair) for pair in value) if value and isinstance(value[0], tuple) else None,
)
def test_a_failed_run_is_rolled_back_unless_something_is_left(
    history: list[tuple[str, str]], left_known: list[str], left_unknown: list[str], *, known: bool
) -> None:
    """saga_failed where an effect stands that had to be undone, or a pivot completed; else saga_rolled_back."""
    memory = MemoryListener()
    left = left_known if known else left_unknown

    async def main() -> None:
        definition = DEFINITION if known else None
        async with saga_scope("o-1", "order", listeners=[memory], definition=definition) as saga:
            await saga.started({})
            for step_name, what in history:
                await happen(saga, step_name, what)
            assert saga.left_behind() == left
            await saga.failed(BOOM)

    asyncio.run(main())
    end = memory.events[-1]
    assert end.event_type == ("saga_failed" if left else "saga_rolled_back")
    assert (end.error_type, end.error_message) == ("ValueError", "boom")
    assert end.total_duration_ms is not None


def test_events_say_what_the_definition_knows() -> None:
    """Each event of a step says whether it is compensable and a pivot; without a definition it says neither."""
    known, unknown = MemoryListener(), MemoryListener()

    async def main() -> None:
        for memory, definition in ((known, DEFINITION), (unknown, None)):
            async with saga_scope("o-1", "order", listeners=[memory], definition=definition) as saga:
                await saga.started({})
                for step_name in ("reserve", "charge", "notify", "unheard of"):
                    await saga.step_started(step_name)

    asyncio.run(main())
    assert [(event.step_name, event.compensable, event.pivot) for event in known.events] == [
        (None, None, None),
        ("reserve", True, False),
        ("charge", False, True),
        ("notify", False, False),
        ("unheard of", None, None),
    ]
    assert {event.definition_id for event in known.events} == {DEFINITION.definition_id}
    assert {(e.compensable, e.pivot, e.definition_id) for e in unknown.events} == {(None, None, None)}
