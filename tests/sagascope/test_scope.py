"""Identity, given once: what a scope mints, and how it tells its listeners."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagascope.current import current_scope
from sagascope.events import EventType, encode
from sagascope.listener import SagaListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import WHOLE_LIFE, ManualClock, MemoryListener, a_whole_life

CARD_REFUSED = ValueError("card refused")


def test_all_listeners_of_a_hook_see_the_very_same_event() -> None:
    """One event is minted a hook, and every listener is given that object, slow ones too."""
    one, other, slow = MemoryListener(), MemoryListener(), MemoryListener(delay=0.001)

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[one, other, slow]) as saga:
            await a_whole_life(saga)

    asyncio.run(main())
    assert one.story == WHOLE_LIFE
    assert list(map(id, one.events)) == list(map(id, other.events)) == list(map(id, slow.events))


def test_a_run_counts_its_events_from_0_without_gaps(memory: MemoryListener) -> None:
    """Sequence is 0, 1, 2 …; all events share saga_id, saga_name and run_id, and each has an id of its own."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory], service="shop") as saga:
            await a_whole_life(saga)

    asyncio.run(main())
    assert [event.sequence for event in memory.events] == list(range(len(WHOLE_LIFE)))
    assert {(e.saga_id, e.saga_name, e.service, e.parent_saga_id) for e in memory.events} == {
        ("o-1", "order", "shop", None)
    }
    assert len({event.run_id for event in memory.events}) == 1
    assert len({event.event_id for event in memory.events}) == len(WHOLE_LIFE)


def test_durations_come_from_the_monotonic_clock(memory: MemoryListener, clock: ManualClock) -> None:
    """A wall clock that jumps back an hour changes timestamps only; durations stay what they were."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory], clock=clock.clock) as saga:
            clock.monotonic_seconds += 100  # a run begins with `started`
            await saga.started({})
            await saga.step_started("reserve")
            clock.advance(1.25)
            clock.wall_seconds -= 3_600
            await saga.step_completed("reserve")
            await saga.compensation_started("reserve")
            clock.advance(0.0004)
            await saga.compensation_completed("reserve")
            clock.advance(2)
            await saga.failed(CARD_REFUSED)

    asyncio.run(main())
    assert [(e.event_type.value, e.duration_ms, e.total_duration_ms, e.timestamp) for e in memory.events] == [
        ("saga_started", None, None, 1_700_000_000_000),
        ("step_started", None, None, 1_700_000_000_000),
        ("step_completed", 1_250, None, 1_699_996_401_250),
        ("compensation_started", None, None, 1_699_996_401_250),
        ("compensation_completed", 0, None, 1_699_996_401_250),
        ("saga_rolled_back", None, 3_250, 1_699_996_403_250),
    ]
    assert not any(event.duration_derived for event in memory.events)


def test_a_slow_listener_does_not_lengthen_a_step(memory: MemoryListener, clock: ManualClock) -> None:
    """A step's and a compensation's duration is their own: what listeners took to hear of the start is not in it."""

    class Slow(SagaListener):
        async def on_step_started(self, saga_id: str, step_name: str) -> None:
            clock.advance(10)

        async def on_compensation_started(self, saga_id: str, step_name: str) -> None:
            clock.advance(10)

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[Slow(), memory], clock=clock.clock) as saga:
            await saga.step_started("reserve")
            clock.advance(0.2)
            await saga.step_completed("reserve")
            await saga.compensation_started("reserve")
            clock.advance(0.3)
            await saga.compensation_failed("reserve", CARD_REFUSED)

    asyncio.run(main())
    assert memory.of(EventType.STEP_COMPLETED, "reserve").duration_ms == 200
    assert memory.of(EventType.COMPENSATION_FAILED, "reserve").duration_ms == 300


def test_attempts_count_up_and_each_is_measured_alone(memory: MemoryListener, clock: ManualClock) -> None:
    """Each start of a step is an attempt, from 1; its end carries the same number and only its own duration."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory], clock=clock.clock) as saga:
            for seconds in (1, 2):
                await saga.step_started("charge")
                clock.advance(seconds)
                await saga.step_failed("charge", CARD_REFUSED)
            await saga.step_started("charge")
            clock.advance(3)
            await saga.step_completed("charge")
            await saga.step_started("notify")

    asyncio.run(main())
    assert [(e.event_type.value, e.attempt, e.duration_ms) for e in memory.events] == [
        ("step_started", 1, None),
        ("step_failed", 1, 1_000),
        ("step_started", 2, None),
        ("step_failed", 2, 2_000),
        ("step_started", 3, None),
        ("step_completed", 3, 3_000),
        ("step_started", 1, None),
    ]


def test_an_end_without_a_beginning_has_no_duration(memory: MemoryListener) -> None:
    """An executor that tells no start gets no invented duration."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory]) as saga:
            await saga.step_completed("reserve")

    asyncio.run(main())
    assert memory.of(EventType.STEP_COMPLETED, "reserve").duration_ms is None


def test_a_nested_run_names_its_parent_and_gives_the_place_back(memory: MemoryListener) -> None:
    """Inside another run a run has it as parent; after it, and after an error in it, the outer one is current again."""

    async def within() -> None:
        async with saga_scope("inner", "payment", listeners=[memory]) as inner:
            assert current_scope() is inner
            await inner.started({})
            raise CARD_REFUSED

    async def main() -> None:
        assert current_scope() is None
        async with saga_scope("outer", "order", listeners=[memory]) as outer:
            with pytest.raises(ValueError, match="card refused"):
                await within()
            assert current_scope() is outer
            await outer.started({})
        assert current_scope() is None

    asyncio.run(main())
    assert [(event.saga_id, event.parent_saga_id) for event in memory.events] == [("inner", "outer"), ("outer", None)]


def test_parallel_tasks_inherit_the_run_they_are_part_of(memory: MemoryListener) -> None:
    """A task started within a run tells of that run; runs side by side do not see each other."""

    async def step(name: str) -> None:
        scope = current_scope()
        assert scope is not None
        await scope.step_started(name)
        await asyncio.sleep(0)
        await scope.step_completed(name)

    async def run(saga_id: str) -> None:
        async with saga_scope(saga_id, "order", listeners=[memory]):
            await asyncio.gather(step("reserve"), step("notify"))

    async def main() -> None:
        await asyncio.gather(*(run(f"o-{n}") for n in range(20)))

    asyncio.run(main())
    for saga_id in {f"o-{n}" for n in range(20)}:
        mine = [event for event in memory.events if event.saga_id == saga_id]
        assert sorted(event.sequence for event in mine) == [0, 1, 2, 3]
        assert {(event.run_id, event.parent_saga_id) for event in mine} == {(mine[0].run_id, None)}


def test_of_the_context_only_the_names_of_keys_are_kept(memory: MemoryListener) -> None:
    """context_keys are the sorted names, without the executor's own (`__…`); keys that are no text are named too."""
    context: dict[Any, Any] = {"order_id": 1, "amount": 2, "__reserve_completed": True, "_private": 4, 17: 3}

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory]) as saga:
            await saga.started(context)

    asyncio.run(main())
    assert memory.events[0].context_keys == ("17", "_private", "amount", "order_id")


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L"]), min_size=1),
        st.recursive(st.just("hunter2"), lambda v: st.lists(v, max_size=2) | st.dictionaries(st.text("k"), v)),
    )
)
def test_no_value_of_the_context_leaves_the_service(context: dict[str, Any]) -> None:
    """A secret in context or result is in no encoded event, unless the allow-list names its very key."""
    shut, open_ = MemoryListener(), MemoryListener()

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[shut], attribute_keys=["tenant"]) as saga:
            await saga.started(context | {"tenant": "acme"})
            await saga.step_started("pay")
            await saga.step_completed("pay", {"secret": "hunter2"})
            await saga.completed()
        async with saga_scope("o-2", "order", listeners=[open_], attribute_keys=["pin", "absent"]) as saga:
            await saga.started(context | {"pin": "hunter2"})
            await saga.completed()

    asyncio.run(main())
    assert b"hunter2" not in b"".join(map(encode, shut.events))
    assert {tuple(event.attributes.items()) for event in shut.events} == {(("tenant", "acme"),)}
    assert {tuple(event.attributes.items()) for event in open_.events} == {(("pin", "hunter2"),)}


def test_each_event_has_attributes_of_its_own(memory: MemoryListener) -> None:
    """A listener that adds to an event's attributes changes no other event of the run, none allowed or some."""

    async def main() -> None:
        for attribute_keys in ([], ["tenant"]):
            async with saga_scope("o-1", "order", listeners=[memory], attribute_keys=attribute_keys) as saga:
                await saga.started({"tenant": "acme"})
                memory.events[-1].attributes["tenant"] = "changed"
                await saga.completed()

    asyncio.run(main())
    assert [event.attributes for event in memory.events[1::2]] == [{}, {"tenant": "acme"}]


def test_a_value_or_an_error_that_cannot_say_itself_loses_no_event(memory: MemoryListener) -> None:
    """An object whose `__str__` fails, in the allow-list or as an error, neither stops the saga nor costs an event."""

    class Mute(Exception):  # noqa: N818 - an error and a value alike
        def __str__(self) -> str:
            raise CARD_REFUSED

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory], attribute_keys=["tenant"]) as saga:
            await saga.started({"tenant": Mute()})
            await saga.failed(Mute())

    asyncio.run(main())
    assert [event.sequence for event in memory.events] == [0, 1]
    assert memory.events[1].attributes == {"tenant": "<Mute without a text>"}
    assert (memory.events[1].error_type, memory.events[1].error_message) == ("Mute", "<Mute without a text>")


def test_a_failure_noted_in_passing_is_told_before_the_next_event() -> None:
    """A compensation's failure noted where nothing can be awaited is told at once, and always before what follows."""
    slow = MemoryListener(delay=0.02)

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[slow]) as saga:
            await saga.compensation_started("reserve")
            saga.note_compensation_failed("reserve", CARD_REFUSED)
            await saga.failed(CARD_REFUSED)

    asyncio.run(main())
    assert [event.sequence for event in slow.events] == [0, 1, 2]
    assert slow.story[1:] == [("compensation_failed", "reserve"), ("saga_rolled_back", None)]


async def _refused(attribute_keys: str) -> None:
    async with saga_scope("o-1", "order", attribute_keys=attribute_keys):
        pass


def test_one_string_is_no_allow_list() -> None:
    """`attribute_keys="tenant"` would allow t, e, n and a: it is refused with what to write."""
    with pytest.raises(TypeError, match=r"write \['tenant'\]"):
        asyncio.run(_refused("tenant"))


def test_a_lost_run_does_not_outlive_the_one_around_it() -> None:
    """A run that was entered and never left (its task was cancelled) is gone when the run around it is left."""

    async def run() -> None:
        async with saga_scope("outer", "order", listeners=[]) as outer:
            lost = saga_scope("lost", "order", listeners=[])
            await lost.__aenter__()
            assert current_scope() is not outer
        assert current_scope() is None

    asyncio.run(run())
