"""Who is told of a `FanOutSaga`: how listeners are named, and that none of them can hurt the saga."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sagaz

from sagascope.current import current_scope
from sagascope.events import EventType
from sagascope.integrations.sagaz import FanOutSaga, SagazBridge
from sagascope.listener import SagaListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import MemoryListener, fails, ok, sleeps, until

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOM = ValueError("boom")
STORY = [("saga_started", None), ("step_started", "pay"), ("step_completed", "pay"), ("saga_completed", None)]


class SagazMemory(sagaz.SagaListener):  # type: ignore[misc] # sagaz has no types
    """A listener of sagaz's own."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def on_saga_start(self, saga_name: str, saga_id: str, ctx: dict[str, Any]) -> None:
        self.calls.append(f"start {saga_id}")

    async def on_step_enter(self, saga_name: str, step_name: str, ctx: dict[str, Any]) -> None:
        self.calls.append(f"enter {step_name}")

    async def on_saga_complete(self, saga_name: str, saga_id: str, ctx: dict[str, Any]) -> None:
        self.calls.append(f"complete {saga_id}")


SAGAZ_CALLS = ["start o-1", "enter pay", "complete o-1"]


def run(saga: sagaz.Saga) -> dict[str, Any]:
    """Run it in a loop of its own, with one step `pay`."""
    if not saga.get_steps():
        saga.add_step("pay", ok)
    result: dict[str, Any] = asyncio.run(saga.run({}, "o-1"))
    return result


@pytest.fixture
def config_listeners() -> Iterator[list[Any]]:
    """Sagaz's global list of listeners, as an application installs into it; restored afterwards."""
    listeners: list[Any] = sagaz.get_config()._listeners
    before = [*listeners]
    yield listeners
    listeners[:] = before


def test_imperative_mode(memory: MemoryListener) -> None:
    """A saga built step by step, without a class of its own, is told like any other."""
    saga = FanOutSaga(name="order", listeners=[memory]).add_step("pay", ok)
    run(saga)
    assert memory.story == STORY
    assert {event.saga_name for event in memory.events} == {"order"}


def test_listeners_come_from_class_constructor_and_by_hand(memory: MemoryListener) -> None:
    """All three ways add up, each listener is told once however often it is named, and instances stay apart."""
    of_class, by_hand = MemoryListener(), MemoryListener()

    class OrderSaga(FanOutSaga):
        listeners: ClassVar[list[Any]] = [of_class]

    saga = OrderSaga(listeners=[memory, of_class])
    saga.add_listener(by_hand)
    saga.add_listener(by_hand)
    run(saga)
    assert of_class.story == memory.story == by_hand.story == STORY
    assert list(map(id, of_class.events)) == list(map(id, memory.events)) == list(map(id, by_hand.events))
    run(OrderSaga())
    assert of_class.story == [*STORY, *STORY]
    assert memory.story == STORY


def test_listeners_of_sagaz_are_told_as_ever(memory: MemoryListener) -> None:
    """A list may mix our listeners with sagaz's own, in any order; sagaz's are called by sagaz itself."""
    of_sagaz = SagazMemory()

    class OrderSaga(FanOutSaga):
        listeners: ClassVar[list[Any]] = [of_sagaz, memory]

    more = SagazMemory()
    run(OrderSaga(listeners=[more]))
    assert memory.story == STORY
    assert of_sagaz.calls == more.calls == SAGAZ_CALLS


def test_shared_lists_of_listeners_are_not_changed(memory: MemoryListener, config_listeners: list[Any]) -> None:
    """Neither the class's list nor the one all sagas share through sagaz's config grows by one saga's listeners."""
    of_class: list[Any] = [SagazMemory()]

    class OrderSaga(FanOutSaga):
        listeners: ClassVar[list[Any]] = of_class

    class PlainSaga(FanOutSaga):
        pass

    before, before_class = [*config_listeners], [*of_class]
    for saga in (OrderSaga(listeners=[memory]), PlainSaga(listeners=[memory])):
        saga.add_listener(SagazMemory())
        run(saga)
    assert config_listeners == before
    assert of_class == before_class
    assert sagaz.get_config().listeners is config_listeners


def test_listeners_of_the_config_are_told(memory: MemoryListener, config_listeners: list[Any]) -> None:
    """A listener that a framework put into sagaz's config hears of a FanOutSaga too."""
    of_config = SagazMemory()
    config_listeners.append(of_config)
    run(FanOutSaga("order", listeners=[memory]))
    assert of_config.calls == SAGAZ_CALLS
    assert memory.story == STORY


def test_a_bridge_for_all_sagas_and_a_fan_out_saga_tell_once(
    memory: MemoryListener, config_listeners: list[Any]
) -> None:
    """With a bridge in sagaz's config, a FanOutSaga gives each event once, also to a listener that both name."""
    of_bridge = MemoryListener()
    bridge = SagazBridge([of_bridge, memory])
    config_listeners.append(bridge)
    run(FanOutSaga("order", listeners=[memory]))
    run(FanOutSaga("order", listeners=[memory, bridge]))
    assert of_bridge.story == memory.story == [*STORY, *STORY]
    assert list(map(id, of_bridge.events)) == list(map(id, memory.events))


@pytest.mark.parametrize("listener", [object(), None, "kafka", MemoryListener, len], ids=repr)
def test_what_is_no_listener_is_refused(listener: Any) -> None:
    """Anything but a listener, a listener's class included, is refused at once, and the error says what to write."""
    saga = FanOutSaga("order")
    with pytest.raises(TypeError, match=r"is no listener: subclass sagascope\.SagaListener"):
        saga.add_listener(listener)
    with pytest.raises(TypeError, match="is no listener"):
        FanOutSaga("order", listeners=[listener])


@pytest.mark.parametrize("error", [BOOM, asyncio.CancelledError()], ids=lambda error: type(error).__name__)
def test_a_listener_that_raises_stops_no_saga(memory: MemoryListener, error: BaseException) -> None:
    """Whatever a listener raises, every step runs: sagaz would skip a step whose hook was cancelled, without a word."""
    ran: list[str] = []

    class Bad(SagaListener):
        async def on_step_started(self, saga_id: str, step_name: str) -> None:
            raise error

    async def pay(ctx: dict[str, Any]) -> None:
        ran.append("pay")

    run(FanOutSaga("order", listeners=[Bad(), memory]).add_step("pay", pay))
    assert ran == ["pay"]
    assert memory.story == STORY


def test_a_saga_without_listeners_runs() -> None:
    """No listener at all is fine."""
    assert run(FanOutSaga("order"))["saga_id"] == "o-1"


def test_hooks_are_given_the_live_result_and_error() -> None:
    """A hook sees the very object a step returned or raised."""
    seen: list[object] = []
    result = {"receipt": 1}

    class Hooks(SagaListener):
        async def on_step_completed(self, saga_id: str, step_name: str, result: Any, duration_ms: int) -> None:
            seen.append(result)

        async def on_saga_rolled_back(self, saga_id: str, total_duration_ms: int) -> None:
            seen.append(saga_id)

        async def on_step_failed(self, saga_id: str, step_name: str, error: BaseException, duration_ms: int) -> None:
            seen.append(error)

    async def pay(ctx: dict[str, Any]) -> dict[str, int]:
        return result

    saga = FanOutSaga("order", listeners=[Hooks()])
    saga.add_step("pay", pay).add_step("ship", fails(BOOM), depends_on=["pay"])
    with pytest.raises(ValueError, match="boom"):
        run(saga)
    assert seen[0] is result
    assert seen[1:] == [BOOM, "o-1"]


def test_a_cancelled_run_gives_its_place_back(memory: MemoryListener) -> None:
    """A run that is cancelled tells no end it did not have; what runs next in the task is no child of it."""

    async def main() -> None:
        for saga_id in ("o-1", "o-2"):
            saga = FanOutSaga("order", listeners=[memory]).add_step("pay", sleeps(60 if saga_id == "o-1" else 0))
            try:
                async with asyncio.timeout(0.2 if saga_id == "o-1" else 30):
                    await saga.run({}, saga_id)
            except TimeoutError:
                assert current_scope() is None

    asyncio.run(main())
    assert [(e.saga_id, e.parent_saga_id, e.event_type.value) for e in memory.events] == [
        ("o-1", None, "saga_started"),
        ("o-1", None, "step_started"),
        ("o-2", None, "saga_started"),
        ("o-2", None, "step_started"),
        ("o-2", None, "step_completed"),
        ("o-2", None, "saga_completed"),
    ]


def test_a_run_cancelled_while_it_undoes_says_so(memory: MemoryListener) -> None:
    """A compensation cut off by the saga's own cancellation is told as failed, though no event of the run follows."""

    async def main() -> None:
        saga = FanOutSaga("order", listeners=[memory])
        saga.add_step("pay", ok, sleeps(60)).add_step("ship", fails(BOOM), depends_on=["pay"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(saga.run({}, "o-1"), 0.5)
        await until(lambda: memory.story[-1] == ("compensation_failed", "pay"))

    asyncio.run(main())
    assert memory.story[-2:] == [("compensation_started", "pay"), ("compensation_failed", "pay")]
    assert memory.of(EventType.COMPENSATION_FAILED, "pay").error_type == "TimeoutError"


def test_a_saga_of_another_executor_is_a_parent_too(memory: MemoryListener) -> None:
    """A FanOutSaga inside a `saga_scope` opened by hand has that run as its parent."""

    async def main() -> None:
        async with saga_scope("batch-7", "nightly"):
            await FanOutSaga("order", listeners=[memory]).add_step("pay", ok).run({}, "o-1")

    asyncio.run(main())
    assert {event.parent_saga_id for event in memory.events} == {"batch-7"}
