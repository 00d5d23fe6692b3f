"""Real sagas of sagaz, told event by event: `FanOutSaga`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import sagaz

from sagascope.current import current_scope
from sagascope.events import EventType, decode, encode
from sagascope.integrations.sagaz import FanOutSaga, SagazBridge
from tests.sagascope.conftest import ManualClock, MemoryListener, fails, ok, run_and_cancel, sleeps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Context = dict[str, Any]
    Step = Callable[..., Awaitable[Any]]


def action(name: str, **options: Any) -> Callable[[Step], Step]:
    """Sagaz's decorator, typed."""
    decorator: Callable[[Step], Step] = sagaz.action(name, **options)
    return decorator


def compensate(name: str, **options: Any) -> Callable[[Step], Step]:
    """Sagaz's decorator, typed."""
    decorator: Callable[[Step], Step] = sagaz.compensate(name, **options)
    return decorator


class OrderSaga(FanOutSaga):
    """reserve, then charge, then ship; the context says what goes wrong."""

    saga_name = "order"
    service = "shop"
    attribute_keys = ("tenant",)

    @action("reserve")
    async def reserve(self, ctx: Context) -> Context:
        return {"reservation": "R-1"}

    @compensate("reserve")
    async def release(self, ctx: Context) -> None: ...

    @action("charge", depends_on=["reserve"])
    async def charge(self, ctx: Context) -> None: ...

    @compensate("charge")
    async def refund(self, ctx: Context) -> None:
        if error := ctx.get("refund"):
            raise error

    @action("ship", depends_on=["charge"])
    async def ship(self, ctx: Context) -> Context:
        if error := ctx.get("ship"):
            raise error
        await asyncio.sleep(ctx.get("ship_seconds", 0))
        return {"parcel": "P-1"}


def order(
    listener: MemoryListener, *, refund: Step, ship: Step, refund_seconds: float = 30, ship_seconds: float = 60
) -> FanOutSaga:
    """The same saga step by step, with other steps and timeouts."""
    saga = FanOutSaga("order", listeners=[listener])
    saga.add_step("reserve", ok, ok)
    saga.add_step("charge", ok, refund, depends_on=["reserve"], compensation_timeout_seconds=refund_seconds)
    saga.add_step("ship", ship, depends_on=["charge"], timeout_seconds=ship_seconds)
    return saga


NO_CARRIER = ConnectionError("no carrier")
FORWARD = [
    ("saga_started", None),
    ("step_started", "reserve"),
    ("step_completed", "reserve"),
    ("step_started", "charge"),
    ("step_completed", "charge"),
    ("step_started", "ship"),
]
SHIPPED = [*FORWARD, ("step_completed", "ship"), ("saga_completed", None)]
ROLLED_BACK = [
    *FORWARD,
    ("step_failed", "ship"),
    ("compensation_started", "charge"),
    ("compensation_completed", "charge"),
    ("compensation_started", "reserve"),
    ("compensation_completed", "reserve"),
    ("saga_rolled_back", None),
]
REFUND_FAILED = [
    *FORWARD,
    ("step_failed", "ship"),
    ("compensation_started", "charge"),
    ("compensation_failed", "charge"),
    ("compensation_started", "reserve"),
    ("compensation_completed", "reserve"),
    ("saga_failed", None),
]


def run(saga: FanOutSaga, context: Context, saga_id: str | None = "o-1") -> Context | Exception:
    """Run it in a loop of its own: the final context, or what it raised."""
    try:
        result: Context = asyncio.run(saga.run(context, saga_id))
    except Exception as error:  # noqa: BLE001 - it is the result
        return error
    return result


def test_success(memory: MemoryListener) -> None:
    """Each step is told with its beginning and end, then the saga's end; sagaz's result is returned as it is."""
    result = run(OrderSaga(listeners=[memory]), {"amount": 5, "tenant": "acme"})
    assert isinstance(result, dict)
    assert (result["saga_id"], result["reservation"], result["parcel"]) == ("o-1", "R-1", "P-1")
    assert memory.story == SHIPPED
    first, last = memory.events[0], memory.events[-1]
    assert first.context_keys == ("amount", "saga_id", "tenant")
    assert {(e.saga_name, e.service, e.attributes["tenant"]) for e in memory.events} == {("order", "shop", "acme")}
    assert last.total_duration_ms is not None
    assert [(e.step_name, e.compensable, e.pivot) for e in memory.events if e.event_type == "step_completed"] == [
        ("reserve", True, False),
        ("charge", True, False),
        ("ship", False, False),
    ]
    assert [decode(encode(event)) for event in memory.events] == memory.events


def test_failure_with_compensation(memory: MemoryListener) -> None:
    """Completed steps are undone in reverse; the end says rolled back, and why."""
    assert run(OrderSaga(listeners=[memory]), {"ship": NO_CARRIER}) is NO_CARRIER
    assert memory.story == ROLLED_BACK
    failed, end = memory.of(EventType.STEP_FAILED, "ship"), memory.events[-1]
    for event in (failed, end):
        assert (event.error_type, event.error_message) == ("ConnectionError", "no carrier")
    assert [e.event_type.value for e in memory.events if e.duration_ms is None] == [
        *["saga_started", "step_started", "step_started", "step_started"],
        *["compensation_started", "compensation_started", "saga_rolled_back"],
    ]


def test_a_failing_compensation(memory: MemoryListener) -> None:
    """Its failure, which sagaz swallows, is told at its moment with its error, and the saga has failed."""
    assert run(OrderSaga(listeners=[memory]), {"ship": NO_CARRIER, "refund": PermissionError("bank closed")})
    assert memory.story == REFUND_FAILED
    failed = memory.of(EventType.COMPENSATION_FAILED, "charge")
    assert (failed.error_type, failed.error_message) == ("PermissionError", "bank closed")
    assert (failed.duration_derived, failed.duration_ms is None) == (False, False)
    end = memory.of(EventType.SAGA_FAILED)
    assert (end.error_type, end.error_message) == ("ConnectionError", "no carrier")
    assert [event.sequence for event in memory.events] == list(range(12))


def test_a_compensation_that_times_out(memory: MemoryListener) -> None:
    """Sagaz cancels it without a word: it is told as failed by a timeout, after the time it had."""
    saga = order(memory, refund=sleeps(60), ship=fails(NO_CARRIER), refund_seconds=0.05)
    assert run(saga, {}) is NO_CARRIER
    assert memory.story == REFUND_FAILED
    failed = memory.of(EventType.COMPENSATION_FAILED, "charge")
    assert (failed.error_type, failed.duration_derived) == ("TimeoutError", False)
    assert failed.error_message == "Compensation of step 'charge' timed out or was cancelled"
    assert failed.duration_ms is not None
    assert 45 <= failed.duration_ms < 5_000


def test_a_step_that_times_out_has_a_message(memory: MemoryListener) -> None:
    """Sagaz gives the step's hook a TimeoutError without words: error_message is never empty for all that."""
    saga = order(memory, refund=ok, ship=sleeps(60), ship_seconds=0.05)
    assert isinstance(run(saga, {}), TimeoutError)
    assert memory.story == ROLLED_BACK
    failed = memory.of(EventType.STEP_FAILED, "ship")
    assert (failed.error_type, failed.error_message) == ("TimeoutError", "TimeoutError")
    assert memory.events[-1].error_message == "Step 'ship' timed out after 0.05s"


def test_a_slow_listener_costs_no_compensation_its_failure() -> None:
    """Listeners are told outside the compensation's timeout: neither the event nor sagaz's own reason is lost."""

    class Slow(MemoryListener):
        async def on_compensation_failed(self, *arguments: Any) -> None:
            await asyncio.sleep(1)
            await super().on_compensation_failed(*arguments)

    slow = Slow()
    bank_closed = fails(PermissionError("bank closed"))
    saga = order(slow, refund=bank_closed, ship=fails(NO_CARRIER), refund_seconds=0.5)
    assert run(saga, {}) is NO_CARRIER
    assert slow.story == REFUND_FAILED
    assert saga._context["__charge_compensation_error"] == "bank closed"


def test_parallel_steps(memory: MemoryListener) -> None:
    """A level's steps run at once: one's success comes after another's failure, and then all of them are undone."""
    saga = FanOutSaga("trip", listeners=[memory])
    saga.add_step("plan", ok, ok)
    saga.add_step("flight", sleeps(0.2), ok, depends_on=["plan"])
    saga.add_step("hotel", fails(NO_CARRIER), ok, depends_on=["plan"])
    saga.add_step("car", ok, ok, depends_on=["plan"])
    saga.add_step("mail", ok, depends_on=["flight", "hotel", "car"])
    assert run(saga, {}) is NO_CARRIER
    story = memory.story
    assert story[:3] == [("saga_started", None), ("step_started", "plan"), ("step_completed", "plan")]
    assert set(story[3:8]) == {
        ("step_started", "flight"),
        ("step_started", "hotel"),
        ("step_started", "car"),
        ("step_failed", "hotel"),
        ("step_completed", "car"),
    }
    assert story[8] == ("step_completed", "flight")
    assert set(story[9:13]) == {
        ("compensation_started", "flight"),
        ("compensation_completed", "flight"),
        ("compensation_started", "car"),
        ("compensation_completed", "car"),
    }
    assert story[13:] == [
        ("compensation_started", "plan"),
        ("compensation_completed", "plan"),
        ("saga_rolled_back", None),
    ]
    assert [event.sequence for event in memory.events] == list(range(16))


def test_fifty_runs_of_one_instance_at_once(memory: MemoryListener) -> None:
    """Sagaz mixes the ids of concurrent runs of one instance; the events do not: each run is whole and apart."""
    saga = OrderSaga(listeners=[memory])

    async def main() -> None:
        runs = (saga.run({"ship_seconds": 0.001 * (n % 7), "tenant": f"t-{n}"}, f"o-{n}") for n in range(50))
        await asyncio.gather(*runs)

    asyncio.run(main())
    assert len(memory.events) == 50 * len(SHIPPED)
    assert len({event.event_id for event in memory.events}) == 50 * len(SHIPPED)
    for n in range(50):
        mine = [event for event in memory.events if event.saga_id == f"o-{n}"]
        assert [(event.event_type.value, event.step_name) for event in mine] == SHIPPED
        assert [event.sequence for event in mine] == list(range(len(SHIPPED)))
        assert {(e.run_id, e.attributes["tenant"], e.attempt) for e in mine} == {(mine[0].run_id, f"t-{n}", 1)}


def test_nested_sagas(memory: MemoryListener) -> None:
    """A saga run within a step names the outer one as its parent; what the step does afterwards is the outer's again."""
    scopes: list[str] = []

    async def pay(ctx: Context) -> None:
        payment = FanOutSaga("payment", listeners=[memory])
        payment.add_step("charge", ok if ctx["card"] else fails(NO_CARRIER))
        try:
            await payment.run({}, "p-1")
        finally:
            scope = current_scope()
            scopes.append(scope.saga_id if scope else "none")

    for card in (True, False):
        saga = FanOutSaga("order", listeners=[memory]).add_step("pay", pay)
        run(saga, {"card": card})
    assert scopes == ["o-1", "o-1"]
    assert [(e.saga_id, e.parent_saga_id, e.event_type.value, e.step_name) for e in memory.events] == [
        ("o-1", None, "saga_started", None),
        ("o-1", None, "step_started", "pay"),
        ("p-1", "o-1", "saga_started", None),
        ("p-1", "o-1", "step_started", "charge"),
        ("p-1", "o-1", "step_completed", "charge"),
        ("p-1", "o-1", "saga_completed", None),
        ("o-1", None, "step_completed", "pay"),
        ("o-1", None, "saga_completed", None),
        ("o-1", None, "saga_started", None),
        ("o-1", None, "step_started", "pay"),
        ("p-1", "o-1", "saga_started", None),
        ("p-1", "o-1", "step_started", "charge"),
        ("p-1", "o-1", "step_failed", "charge"),
        ("p-1", "o-1", "saga_rolled_back", None),
        ("o-1", None, "step_failed", "pay"),
        ("o-1", None, "saga_rolled_back", None),
    ]
    assert len({event.run_id for event in memory.events}) == 4


def test_a_cancelled_plain_saga_in_a_step_or_a_compensation_takes_no_event(memory: MemoryListener) -> None:
    """Sagaz tells a bridge of no cancellation: what the step and the compensation around it do is their own saga's."""
    lost = MemoryListener()

    async def loses(ctx: Context) -> None:
        await run_and_cancel(SagazBridge([lost]))

    async def loses_and_fails(ctx: Context) -> None:
        await loses(ctx)
        raise PermissionError

    saga = FanOutSaga("order", listeners=[memory])
    saga.add_step("reserve", ok, ok)
    saga.add_step("charge", loses, loses_and_fails, depends_on=["reserve"], timeout_seconds=None)
    saga.add_step("ship", fails(NO_CARRIER), depends_on=["charge"])
    assert run(saga, {}) is NO_CARRIER
    assert memory.story == REFUND_FAILED
    assert {event.saga_id for event in memory.events} == {"o-1"}
    assert [(e.saga_id, e.parent_saga_id, e.event_type.value) for e in lost.events] == [
        ("lost", "o-1", "saga_started"),
        ("lost", "o-1", "step_started"),
    ] * 2


def test_time_is_told_by_the_sagas_clock(memory: MemoryListener, clock: ManualClock) -> None:
    """A saga class may name its clock."""

    class Timed(FanOutSaga): ...

    Timed.clock = clock.clock

    async def ship(ctx: Context) -> None:
        clock.advance(1.25)

    run(Timed("order", listeners=[memory]).add_step("ship", ship), {})
    assert memory.of(EventType.STEP_COMPLETED, "ship").duration_ms == 1_250
    assert memory.of(EventType.SAGA_COMPLETED).total_duration_ms == 1_250
    assert [event.timestamp - 1_700_000_000_000 for event in memory.events] == [0, 0, 1_250, 1_250]


class PivotSaga(FanOutSaga):
    """reserve, then charge, after which there is no way back, then ship."""

    @action("reserve")
    async def reserve(self, ctx: Context) -> None: ...

    @compensate("reserve")
    async def release(self, ctx: Context) -> None: ...

    @action("charge", depends_on=["reserve"], pivot=True)
    async def charge(self, ctx: Context) -> None:
        if ctx.get("charge"):
            raise ctx["charge"]

    @action("ship", depends_on=["charge"])
    async def ship(self, ctx: Context) -> None:
        raise NO_CARRIER


def test_a_failure_behind_a_pivot(memory: MemoryListener) -> None:
    """A completed pivot stands: nothing is undone, and the saga has failed instead of being rolled back."""
    assert run(PivotSaga(listeners=[memory]), {}) is NO_CARRIER
    assert memory.story == [*FORWARD, ("step_failed", "ship"), ("saga_failed", None)]
    assert memory.of(EventType.STEP_COMPLETED, "charge").pivot is True
    assert memory.events[0].saga_name == "PivotSaga"


def test_sagaz_remembers_a_pivot_across_runs_and_the_events_say_what_that_does(memory: MemoryListener) -> None:
    """A later run of the instance fails before its pivot, sagaz undoes nothing all the same: it is told as failed."""
    saga = PivotSaga()
    run(saga, {})
    saga.add_listener(memory)
    run(saga, {"charge": NO_CARRIER}, "o-2")
    assert memory.story == [*FORWARD[:4], ("step_failed", "charge"), ("saga_failed", None)]
    fresh = MemoryListener()
    run(PivotSaga(listeners=[fresh]), {"charge": NO_CARRIER})
    assert fresh.story[-3:] == [
        ("compensation_started", "reserve"),
        ("compensation_completed", "reserve"),
        ("saga_rolled_back", None),
    ]


def test_steps_without_compensation_leave_nothing_to_undo(memory: MemoryListener) -> None:
    """What cannot be undone need not be: the saga is rolled back."""
    saga = FanOutSaga("report", listeners=[memory])
    saga.add_step("read", ok).add_step("write", fails(NO_CARRIER), depends_on=["read"])
    run(saga, {})
    assert memory.story == [
        ("saga_started", None),
        ("step_started", "read"),
        ("step_completed", "read"),
        ("step_started", "write"),
        ("step_failed", "write"),
        ("saga_rolled_back", None),
    ]


def test_a_saga_that_cannot_begin_still_ends(memory: MemoryListener) -> None:
    """A cycle in the steps is found by sagaz at the run: told as a start and an end in failure."""
    saga = FanOutSaga("cycle", listeners=[memory])
    saga.add_step("a", ok, depends_on=["b"]).add_step("b", ok, depends_on=["a"])
    assert isinstance(run(saga, {}), ValueError)
    assert memory.story == [("saga_started", None), ("saga_rolled_back", None)]


def test_the_same_saga_id_runs_again(memory: MemoryListener) -> None:
    """Another run of one id has a run_id of its own, and counts from 0 and from attempt 1 again."""
    saga = OrderSaga(listeners=[memory])
    refund_fails = {"ship": NO_CARRIER, "refund": PermissionError("bank closed")}
    for context in ({"ship": NO_CARRIER}, refund_fails, refund_fails, {}):
        run(saga, context)
    assert memory.story == [*ROLLED_BACK, *REFUND_FAILED, *REFUND_FAILED, *SHIPPED]
    assert [event.sequence for event in memory.events] == [*range(12), *range(12), *range(12), *range(8)]
    assert len({event.run_id for event in memory.events}) == 4
    assert {(event.saga_id, event.attempt) for event in memory.events} == {("o-1", 1)}


@pytest.mark.parametrize(("given", "told"), [(17, "17"), ("o-2", "o-2"), (None, None), ("", None)])
def test_any_saga_id_is_told_as_text(memory: MemoryListener, given: object, told: str | None) -> None:
    """An id that is no text is told as text and left to sagaz as it was; without one, both have the same new one."""
    result = run(OrderSaga(listeners=[memory]), {"saga_id": given}, None)
    assert isinstance(result, dict)
    assert result["saga_id"] == (given or memory.events[0].saga_id)
    assert {event.saga_id for event in memory.events} == {told or result["saga_id"]}
