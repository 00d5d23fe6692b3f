"""The bridge from sagaz's hooks to ours. Needs the extra `sagascope[sagaz]`.

    class OrderSaga(FanOutSaga):
        saga_name = "order-processing"
        ...

    saga = OrderSaga(listeners=[KafkaListener("localhost:9092")])
    saga.add_listener(my_listener)

sagaz 1.5 calls its listeners one after the other, gives step hooks no saga id, says nothing of a compensation that
failed, and keeps the id and the context of a run on the saga instance, where concurrent runs overwrite each other.
So identity is kept in a `SagaScope` per run, which parallel steps and nested sagas inherit through their context.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

try:
    import sagaz
except ModuleNotFoundError as error:
    msg = "the bridge to sagaz needs sagaz: pip install 'sagascope[sagaz]'"
    raise ModuleNotFoundError(msg) from error

from sagascope.current import current_scope
from sagascope.definitions import SagaDefinition, StepDefinition
from sagascope.listener import SagaListener
from sagascope.scope import Clock, SagaScope, saga_scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable


class CompensationError(Exception):
    """A compensation failed; of what it raised sagaz kept only this message."""


class _Hooks(sagaz.SagaListener):  # type: ignore[misc] # sagaz's annotations do not hold
    """sagaz's hooks within a run that has a scope already."""

    def __init__(self, listeners: Iterable[SagaListener]) -> None:
        self.listeners = list(listeners)

    def _run(self, *, ending: bool = False) -> SagaScope | None:
        """The run that a hook now called is about."""
        return _opened_by(self)

    async def on_step_enter(self, saga_name: str, step_name: str, ctx: dict[str, Any]) -> None:
        if scope := self._run():
            await scope.step_started(step_name)

    async def on_step_success(self, saga_name: str, step_name: str, ctx: dict[str, Any], result: Any) -> None:
        if scope := self._run():
            await scope.step_completed(step_name, result)

    async def on_step_failure(self, saga_name: str, step_name: str, ctx: dict[str, Any], error: Exception) -> None:
        if scope := self._run():
            scope.keep_private(ctx)  # what steps have put into it, too
            await scope.step_failed(step_name, error)

    async def on_compensation_start(self, saga_name: str, step_name: str, ctx: dict[str, Any]) -> None:
        if scope := self._run():
            await scope.compensation_started(step_name)

    async def on_compensation_complete(self, saga_name: str, step_name: str, ctx: dict[str, Any]) -> None:
        if scope := self._run():
            await scope.compensation_completed(step_name)

    async def on_saga_complete(self, saga_name: str, saga_id: str, ctx: dict[str, Any]) -> None:
        if scope := self._run(ending=True):
            await scope.completed()
            scope.leave()

    async def on_saga_failed(self, saga_name: str, saga_id: str, ctx: dict[str, Any], error: Exception) -> None:
        scope = self._run(ending=True)
        if scope is None:
            return
        scope.keep_private(ctx)
        for step_name in scope.open_compensations():
            reason = CompensationError(ctx.get(f"__{step_name}_compensation_error") or "sagaz kept no reason")
            await scope.compensation_failed(step_name, reason, derived=True)
        await scope.failed(error)
        scope.leave()


class SagazBridge(_Hooks):
    """A sagaz listener for sagas that are no `FanOutSaga`: `class OrderSaga(sagaz.Saga): listeners = [SagazBridge(…)]`.

    Hooks alone don't say what a step can undo: name the sagas (classes or instances) to have `compensable`, `pivot`
    and `definition_id` in the events. Of a saga not named, a failure counts as rolled back unless a compensation
    failed. The moment a compensation failed is noticed only at the saga's end, so that duration is marked derived.
    """

    def __init__(
        self,
        listeners: Iterable[SagaListener],
        *,
        sagas: Iterable[sagaz.Saga | type[sagaz.Saga]] = (),
        service: str | None = None,
        attribute_keys: Collection[str] = (),
        error_filter: Callable[[str], str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(listeners)
        instances = (saga() if isinstance(saga, type) else saga for saga in sagas)
        self._definitions = {d.saga_name: d for d in map(definition_of, instances)}
        self._service = service
        self._attribute_keys = attribute_keys
        self._error_filter = error_filter
        self._clock = clock or Clock()

    async def on_saga_start(self, saga_name: str, saga_id: str, ctx: dict[str, Any]) -> None:
        run = current_scope()
        if isinstance(run, _BridgedRun) and run.is_also(self, saga_name, str(saga_id)):
            await run.join(self.listeners, ctx)
            return
        run = _BridgedRun(
            str(saga_id),
            saga_name,
            listeners=self.listeners,
            definition=self._definitions.get(saga_name),
            service=self._service,
            attribute_keys=self._attribute_keys,
            error_filter=self._error_filter,
            clock=self._clock,
        )
        run.opener, run.steps_leave = self, asyncio.current_task()
        run.enter()  # in the task that runs the saga, so that its steps' tasks inherit it
        await run.started(ctx)

    def _run(self, *, ending: bool = False) -> SagaScope | None:
        run, task = current_scope(), asyncio.current_task()
        if not ending and run is not None and run.steps_leave is task:
            run = run.parent  # that one was cancelled: its steps' hooks are called in other tasks
        if run is None or run.opener is not self:  # no further outwards: another bridge may tell of the same run
            return None
        return None if ending and run.steps_leave is not task else run


class _BridgedRun(SagaScope):
    """A run that a bridge opened. sagaz runs steps in tasks of their own, and tells no hook that a run was cancelled."""

    def is_also(self, bridge: SagazBridge, saga_name: str, saga_id: str) -> bool:
        """Whether a saga that starts now, as another bridge hears, is this run."""
        same = (self.saga_name, self.saga_id, self.steps_leave) == (saga_name, saga_id, asyncio.current_task())
        return same and self.opener is not bridge and self._sequence == 1

    async def join(self, listeners: Iterable[SagaListener], context: dict[str, Any]) -> None:
        """Tell these listeners too, from the start on: one run has one identity, however many bridges it has."""
        new = [listener for listener in listeners if not any(listener is known for known in self.listeners)]
        told, self.listeners = self.listeners, new
        if self._first is not None:
            await self._tell(self._first, "on_saga_started", self.saga_id, self.saga_name, context)
        self.listeners = [*told, *new]


class FanOutSaga(sagaz.Saga):  # type: ignore[misc] # sagaz's annotations do not hold
    """A sagaz saga that tells our listeners, and sagaz's own, of all that happens in it."""

    service: ClassVar[str | None] = None
    """The reporting service's name, for the events."""
    attribute_keys: ClassVar[Collection[str]] = ()
    """Keys of the context whose values may leave the service, as attributes to slice by."""
    error_filter: ClassVar[Callable[[str], str] | None] = None
    """Has the last word on each error's message: a staticmethod; see `saga_scope`."""
    clock: ClassVar[Clock] = Clock()
    """For tests."""

    def __init__(
        self,
        name: str | None = None,
        config: Any = None,
        *,
        listeners: Iterable[SagaListener | sagaz.SagaListener] = (),
    ) -> None:
        super().__init__(name, config)
        inherited: list[Any] = self._instance_listeners  # of the class or of sagaz's config: not ours to change
        self._hooks = _Hooks(())
        self._instance_listeners: list[Any] = [self._hooks]
        for listener in [*inherited, *listeners]:
            self.add_listener(listener)

    def add_listener(self, listener: SagaListener | sagaz.SagaListener) -> None:
        """Tell this listener too, from the next hook on.

        Raises:
            TypeError: it is neither a sagascope nor a sagaz listener.
        """
        if isinstance(listener, _Hooks):  # a bridge installed for all sagas: its listeners, but one identity
            for inner in listener.listeners:
                self.add_listener(inner)
        elif isinstance(listener, SagaListener):
            if not any(listener is known for known in self._hooks.listeners):  # by a bridge and by hand, say
                self._hooks.listeners.append(listener)
        elif isinstance(listener, sagaz.SagaListener):
            self._instance_listeners.append(listener)
        else:
            msg = f"{listener!r} is no listener: subclass sagascope.SagaListener or sagascope.EventListener"
            raise TypeError(msg)

    async def run(self, initial_context: dict[str, Any], saga_id: str | None = None) -> dict[str, Any]:
        """Run the saga in a scope of its own; returns and raises what sagaz's `run` does."""
        given: Any = saga_id or initial_context.get("saga_id") or str(uuid.uuid4())
        definition = definition_of(self)
        for step in self._steps:
            if step.compensation_fn and not isinstance(step.compensation_fn, _WatchedCompensation):
                step.compensation_fn = _WatchedCompensation(self._hooks, step.step_id, step.compensation_fn)
        async with saga_scope(
            str(given),
            definition.saga_name,
            listeners=self._hooks.listeners,
            definition=definition,
            service=self.service,
            attribute_keys=self.attribute_keys,
            error_filter=type(self).error_filter,
            clock=self.clock,
        ) as scope:
            scope.opener = self._hooks
            await scope.started(initial_context | {"saga_id": given})
            result: dict[str, Any] = await super().run(initial_context, given)
            return result


class _WatchedCompensation:
    """Tells the scope when a compensation fails, at that moment and with its error: sagaz swallows both."""

    def __init__(
        self, hooks: _Hooks, step_name: str, compensation: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        self._hooks = hooks
        self._step_name = step_name
        self._compensation = compensation

    async def __call__(self, ctx: dict[str, Any]) -> None:
        try:
            await self._compensation(ctx)
        except asyncio.CancelledError:  # so sagaz's timeout arrives here
            self._note(ctx, TimeoutError(f"Compensation of step '{self._step_name}' timed out or was cancelled"))
            raise
        except Exception as error:
            self._note(ctx, error)
            raise

    def _note(self, ctx: dict[str, Any], error: Exception) -> None:
        if scope := _opened_by(self._hooks):
            scope.keep_private(ctx)
            scope.note_compensation_failed(self._step_name, error)


def _opened_by(hooks: _Hooks) -> SagaScope | None:
    """The innermost run around the caller that these hooks opened: one within it may be a cancelled one's remains."""
    run = current_scope()
    while run is not None and run.opener is not hooks:
        run = run.parent
    return run


def definition_of(saga: sagaz.Saga) -> SagaDefinition:
    """What sagaz knows of the saga's steps."""
    return SagaDefinition(
        saga_name=saga.saga_name or type(saga).__name__,
        steps=tuple(
            StepDefinition(
                step_name=step.step_id,
                depends_on=tuple(sorted(step.depends_on)),  # in any order the same definition
                compensable=step.compensation_fn is not None,
                pivot=step.pivot,
                timeout_seconds=_seconds(step.timeout_seconds),
                compensation_timeout_seconds=_seconds(step.compensation_timeout_seconds),
            )
            for step in saga.get_steps()
        ),
    )


def _seconds(timeout: float | None) -> float | None:
    """60 and 60.0 are one timeout, and so one definition."""
    return None if timeout is None else float(timeout)
