"""`SagazBridge`: sagas that are no `FanOutSaga`, told through sagaz's hooks alone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sagaz

from sagascope.current import current_scope
from sagascope.events import EventType, decode, encode
from sagascope.integrations.sagaz import FanOutSaga, SagazBridge, definition_of
from tests.sagascope.conftest import ManualClock, MemoryListener, fails, ok, run_and_cancel, sleeps

if TYPE_CHECKING:
    from sagascope.events import SagaEvent

BOOM = ValueError("boom")


def order_saga(*bridges: SagazBridge, ship: Any = ok, refund: Any = ok, refund_seconds: float = 30) -> sagaz.Saga:
    """A plain saga of sagaz: charge, which can be undone, then ship."""

    class OrderSaga(sagaz.Saga):  # type: ignore[misc] # sagaz has no types
        saga_name = "order"

    OrderSaga.listeners = list(bridges)
    saga = OrderSaga()
    saga.add_step("charge", ok, refund, compensation_timeout_seconds=refund_seconds)
    saga.add_step("ship", ship, depends_on=["charge"])
    return saga


def run_and_fail(saga: sagaz.Saga) -> None:
    """Run it to its failure."""
    with pytest.raises(ValueError, match="boom"):
        asyncio.run(saga.run({"tenant": "acme"}, "o-1"))


FORWARD = [
    ("saga_started", None),
    ("step_started", "charge"),
    ("step_completed", "charge"),
    ("step_started", "ship"),
]
SHIPPED = [*FORWARD, ("step_completed", "ship"), ("saga_completed", None)]


def test_success(memory: MemoryListener) -> None:
    """A plain saga is told from start to end, with the service's name and what the allow-list names."""
    bridge = SagazBridge([memory], service="shop", attribute_keys=["tenant"])
    asyncio.run(order_saga(bridge).run({"tenant": "acme", "secret": "hunter2"}, "o-1"))
    assert memory.story == SHIPPED
    assert [event.sequence for event in memory.events] == list(range(6))
    assert memory.events[0].context_keys == ("saga_id", "secret", "tenant")
    assert {(e.saga_id, e.service, e.attributes["tenant"]) for e in memory.events} == {("o-1", "shop", "acme")}
    assert {(e.compensable, e.pivot, e.definition_id) for e in memory.events} == {(None, None, None)}


def test_failure_with_compensation(memory: MemoryListener) -> None:
    """What was undone is told, and the end is rolled back."""
    run_and_fail(order_saga(SagazBridge([memory]), ship=fails(BOOM)))
    assert memory.story == [
        *FORWARD,
        ("step_failed", "ship"),
        ("compensation_started", "charge"),
        ("compensation_completed", "charge"),
        ("saga_rolled_back", None),
    ]


@pytest.mark.parametrize(
    ("refund", "message"),
    [(fails(PermissionError("bank closed")), "bank closed"), (sleeps(60), "sagaz kept no reason")],
    ids=["raises", "times out"],
)
def test_a_failing_compensation_is_noticed_at_the_end(memory: MemoryListener, refund: Any, message: str) -> None:
    """Sagaz tells no hook that a compensation failed: it is told before the saga's end, its duration marked derived."""
    run_and_fail(order_saga(SagazBridge([memory]), ship=fails(BOOM), refund=refund, refund_seconds=0.5))
    assert memory.story[-3:] == [
        ("compensation_started", "charge"),
        ("compensation_failed", "charge"),
        ("saga_failed", None),
    ]
    failed = memory.of(EventType.COMPENSATION_FAILED, "charge")
    assert (failed.error_type, failed.error_message) == ("CompensationError", message)
    assert failed.duration_derived
    assert failed.duration_ms is not None


@pytest.mark.parametrize("named", ["a class", "an instance"])
def test_a_named_saga_has_its_definition_in_the_events(memory: MemoryListener, named: str) -> None:
    """Of a saga named to the bridge, by class or instance, events say what is compensable, and by which definition."""

    class ReportSaga(sagaz.Saga):  # type: ignore[misc] # sagaz has no types
        saga_name = "report"

        @sagaz.action("read")  # type: ignore[untyped-decorator]
        async def read(self, ctx: dict[str, Any]) -> None: ...

        @sagaz.compensate("read")  # type: ignore[untyped-decorator]
        async def forget(self, ctx: dict[str, Any]) -> None: ...

        @sagaz.action("sign", depends_on=["read"], pivot=True)  # type: ignore[untyped-decorator]
        async def sign(self, ctx: dict[str, Any]) -> None: ...

        @sagaz.action("send", depends_on=["sign"])  # type: ignore[untyped-decorator]
        async def send(self, ctx: dict[str, Any]) -> None:
            raise BOOM

    ReportSaga.listeners = [SagazBridge([memory], sagas=[ReportSaga if named == "a class" else ReportSaga()])]
    saga = ReportSaga()
    run_and_fail(saga)
    assert [(e.step_name, e.compensable, e.pivot) for e in memory.events if e.event_type == "step_started"] == [
        ("read", True, False),
        ("sign", False, True),
        ("send", False, False),
    ]
    assert {event.definition_id for event in memory.events} == {definition_of(saga).definition_id}
    assert memory.events[-1].event_type == EventType.SAGA_FAILED  # the pivot stands


def test_a_run_gives_its_place_back(memory: MemoryListener) -> None:
    """After a run, however it ended, its task is in no run; another bridge's run of the same id is another run."""
    other = MemoryListener()

    async def main() -> None:
        await order_saga(SagazBridge([memory])).run({}, "o-1")
        assert current_scope() is None
        with pytest.raises(ValueError, match="boom"):
            await order_saga(SagazBridge([memory]), ship=fails(BOOM)).run({}, "o-1")
        assert current_scope() is None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await order_saga(SagazBridge([memory]), ship=sleeps(60)).run({}, "o-1")
        await order_saga(SagazBridge([other])).run({}, "o-1")

    asyncio.run(main())
    assert other.story == SHIPPED
    assert {event.run_id for event in other.events}.isdisjoint(event.run_id for event in memory.events)


def test_runs_at_once_stay_apart(memory: MemoryListener) -> None:
    """Concurrent runs of one plain instance are told whole and apart, whatever sagaz mixes up."""
    saga = order_saga(SagazBridge([memory]), ship=sleeps(0.005))

    async def main() -> None:
        await asyncio.gather(*(saga.run({}, f"o-{n}") for n in range(20)))

    asyncio.run(main())
    for n in range(20):
        mine = [event for event in memory.events if event.saga_id == f"o-{n}"]
        assert [(event.event_type.value, event.step_name) for event in mine] == SHIPPED
        assert [event.sequence for event in mine] == list(range(6))


def test_nesting_either_way(memory: MemoryListener) -> None:
    """A plain saga inside a FanOutSaga and a FanOutSaga inside a plain one: each names the outer one as its parent."""
    bridge = SagazBridge([memory])

    async def inner_plain(ctx: dict[str, Any]) -> None:
        await order_saga(bridge).run({}, "inner")
        scope = current_scope()
        assert scope is not None
        assert scope.saga_id == "outer"

    async def inner_fan_out(ctx: dict[str, Any]) -> None:
        await FanOutSaga("pay", listeners=[memory]).add_step("charge", ok).run({}, "inner")

    def seen() -> list[tuple[str, str | None, str]]:
        return [(event.saga_id, event.parent_saga_id, event.event_type.value) for event in memory.events]

    asyncio.run(FanOutSaga("outer", listeners=[memory]).add_step("pay", inner_plain).run({}, "outer"))
    assert seen() == [
        ("outer", None, "saga_started"),
        ("outer", None, "step_started"),
        *[("inner", "outer", event_type) for event_type, _ in SHIPPED],
        ("outer", None, "step_completed"),
        ("outer", None, "saga_completed"),
    ]
    memory.events.clear()
    asyncio.run(order_saga(bridge, ship=inner_fan_out).run({}, "outer"))
    assert [event_type for saga_id, parent, event_type in seen() if parent == "outer"] == [
        "saga_started",
        "step_started",
        "step_completed",
        "saga_completed",
    ]
    assert seen()[-2:] == [("outer", None, "step_completed"), ("outer", None, "saga_completed")]


def test_a_cancelled_run_is_nobodys_parent(memory: MemoryListener) -> None:
    """Sagaz tells no hook of a cancellation: the runs that follow in the same task are no children of the lost one."""
    bridge = SagazBridge([memory])

    async def main() -> None:
        for n in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await order_saga(bridge, ship=sleeps(60)).run({}, f"lost-{n}")
        await order_saga(bridge).run({}, "o-1")
        await FanOutSaga("pay", listeners=[memory]).add_step("charge", ok).run({}, "o-2")

    asyncio.run(main())
    assert {event.saga_id for event in memory.events} == {"lost-0", "lost-1", "lost-2", "o-1", "o-2"}
    assert {event.parent_saga_id for event in memory.events} == {None}
    assert [(e.event_type.value, e.step_name) for e in memory.events if e.saga_id == "o-1"] == SHIPPED


def test_a_cancelled_run_in_a_step_takes_no_event_of_the_run_around_it(memory: MemoryListener) -> None:
    """One bridge hears of both sagas: the end of the step in which the inner one was cancelled is the outer one's."""
    bridge = SagazBridge([memory])

    async def loses(ctx: dict[str, Any]) -> None:
        await run_and_cancel(bridge)

    saga = order_saga(bridge).add_step("thank", loses, depends_on=["ship"], timeout_seconds=None)
    asyncio.run(saga.run({}, "o-1"))
    assert [(e.event_type.value, e.step_name) for e in memory.events if e.saga_id == "o-1"] == [
        *SHIPPED[:-1],
        ("step_started", "thank"),
        ("step_completed", "thank"),
        ("saga_completed", None),
    ]
    assert [e.event_type.value for e in memory.events if e.saga_id == "lost"] == ["saga_started", "step_started"]


def test_time_is_told_by_the_bridges_clock(memory: MemoryListener, clock: ManualClock) -> None:
    """A bridge may be given its clock."""

    async def ship(ctx: dict[str, Any]) -> None:
        clock.advance(1.25)

    asyncio.run(order_saga(SagazBridge([memory], clock=clock.clock), ship=ship).run({}, "o-1"))
    assert memory.of(EventType.STEP_COMPLETED, "ship").duration_ms == 1_250
    assert memory.of(EventType.SAGA_COMPLETED).total_duration_ms == 1_250
    assert memory.events[0].timestamp == 1_700_000_000_000


def test_two_bridges_on_a_saga_are_one_run() -> None:
    """A second bridge adds its listeners to the run: the same events once, no attempt counted twice."""
    one, other, both = MemoryListener(), MemoryListener(), MemoryListener()
    bridges = (SagazBridge([one, both], service="shop"), SagazBridge([other, both]))

    async def outer(ctx: dict[str, Any]) -> None:
        await order_saga(*bridges).run({}, "o-1")

    asyncio.run(order_saga(*bridges).run({}, "o-1"))
    asyncio.run(order_saga(bridges[1], ship=outer).run({}, "outer"))

    def of(memory: MemoryListener, saga_id: str) -> list[SagaEvent]:
        return [event for event in memory.events if event.saga_id == saga_id]

    assert [(e.event_type.value, e.step_name) for e in of(one, "o-1")] == [*SHIPPED, *SHIPPED]
    assert {event.attempt for event in one.events} == {1}
    assert list(map(id, of(one, "o-1"))) == list(map(id, of(other, "o-1"))) == list(map(id, of(both, "o-1")))
    assert [(e.event_type.value, e.step_name) for e in of(other, "outer")] == SHIPPED
    assert of(one, "outer") == []


def test_an_id_that_is_no_text_is_told_as_text(memory: MemoryListener) -> None:
    """Sagaz takes any id from the context: the events carry it as text, so that they can be read."""
    asyncio.run(order_saga(SagazBridge([memory])).run({"saga_id": 17}))
    assert {event.saga_id for event in memory.events} == {"17"}
    assert [decode(encode(event)) for event in memory.events] == memory.events


def test_hooks_outside_a_run_of_its_own_are_ignored(memory: MemoryListener) -> None:
    """A hook that sagaz calls without a start, or within somebody else's run, makes up no event."""
    bridge = SagazBridge([memory])

    async def meddle(ctx: dict[str, Any]) -> None:
        await bridge.on_step_enter("order", "another", {})
        await bridge.on_saga_complete("order", "o-1", {})
        await bridge.on_saga_failed("order", "o-1", {}, BOOM)

    asyncio.run(meddle({}))
    assert memory.events == []
    asyncio.run(FanOutSaga("pay", listeners=[memory]).add_step("charge", meddle).run({}, "o-2"))
    assert memory.story == [
        ("saga_started", None),
        ("step_started", "charge"),
        ("step_completed", "charge"),
        ("saga_completed", None),
    ]
