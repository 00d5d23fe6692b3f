"""Real sagaz sagas that live a plan.

Modelled durations pass `scale_time` times faster: a step modelled at 2 s sleeps 100 ms at 20, and that is what the
events say it took.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, cast

import sagaz

from sagascope.integrations.sagaz import FanOutSaga

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.workload.model import SagaModel, StepModel
    from pipelines.workload.plan import Fate, Plan
    from sagascope.listener import SagaListener

_QUIET = sagaz.SagaConfig(logging=False, metrics=False)  # no log line per step
_QUIET.storage = None  # sagaz's default keeps every saga in memory


class ModelledSaga(FanOutSaga):
    """A sagaz saga that lives its plan: each step sleeps, then succeeds or fails. One instance is one run."""

    attribute_keys: ClassVar[tuple[str, ...]] = ("region",)

    def __init__(self, plan: Plan, scale_time: float, listeners: Iterable[SagaListener]) -> None:
        super().__init__(config=_QUIET, listeners=listeners)
        self._plan = plan
        self._scale_time = scale_time

    async def _meet(self, fate: Fate) -> None:
        await asyncio.sleep(fate.seconds / self._scale_time)
        if error := fate.error:
            raise error


@cache
def saga_class(model: SagaModel) -> type[ModelledSaga]:
    """The saga class of the model, made with sagaz's decorators, as these alone know pivots."""
    body: dict[str, Any] = {"__doc__": f"{model.name}, as modelled.", "saga_name": model.name, "service": model.service}
    for number, step in enumerate(model.steps):  # sagaz collects in order of the attributes' names
        body[f"step_{number}_{step.name}"] = _action(step)
        if step.compensation:
            body[f"undo_{number}_{step.compensation.name}"] = _compensation(step.name)
    name = "".join(word.capitalize() for word in model.name.split("-")) + "Saga"
    return cast("type[ModelledSaga]", type(name, (ModelledSaga,), body))


def _action(step: StepModel) -> Any:
    # The fate's sleep ends the timeout too, not sagaz's wait_for: a stalled event loop would make others time out.
    @sagaz.action(  # type: ignore[untyped-decorator]
        step.name, depends_on=list(step.after), timeout_seconds=step.timeout_seconds, pivot=step.pivot
    )
    async def act(self: ModelledSaga, context: dict[str, Any]) -> dict[str, Any]:
        await self._meet(self._plan.steps[step.name])
        return {f"{step.name}_ref": f"{context['saga_id']}/{step.name}"}

    return act


def _compensation(step_name: str) -> Any:
    @sagaz.compensate(step_name)  # type: ignore[untyped-decorator]
    async def undo(self: ModelledSaga, _context: dict[str, Any]) -> None:
        await self._meet(self._plan.compensations[step_name])

    return undo
