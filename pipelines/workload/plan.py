"""What becomes of each saga: all of it is drawn from the seed before the saga runs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.workload.sagas import SAGAS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipelines.workload.model import CompensationModel, Failure, SagaModel, StepModel

_REGIONS = ("eu-central", "eu-west", "us-east", "us-west", "ap-south")


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one step or compensation: how long it takes, in modelled seconds, and how it fails, if it does."""

    seconds: float
    error_type: type[Exception] | None = None
    message: str = ""

    @property
    def error(self) -> Exception | None:
        """A new error, or None: it succeeds. A timeout has no message, as sagaz's own have none."""
        if self.error_type is None:
            return None
        return self.error_type(self.message) if self.message else self.error_type()


@dataclass(frozen=True, slots=True)
class Plan:
    """All there is to know about one saga before it runs; of its steps also those it may never come to."""

    saga_id: str
    model: SagaModel
    context: Mapping[str, object]
    steps: Mapping[str, Fate]
    compensations: Mapping[str, Fate]


def draw_plan(seed: int, number: int, *, models: tuple[SagaModel, ...] = SAGAS, prefix: str = "") -> Plan:
    """What saga `number` of the workload with this seed will be: the same at any time, in any process.

    Its id is `<prefix><saga_name>-<seed>-<number>`, the number with at least six digits.
    """
    rng = random.Random(f"{seed}:{number}")  # noqa: S311 - a model of the world, no secret
    model = rng.choices(models, [model.weight for model in models])[0]
    ref = f"{rng.randrange(10_000):04d}"
    steps = {step.name: _step_fate(step, ref, rng) for step in model.steps}
    compensations = {
        step.name: _compensation_fate(step.compensation, ref, rng) for step in model.steps if step.compensation
    }
    context = {
        f"{model.entity}_id": f"{model.entity}-{number:06d}",
        "customer_id": f"customer-{ref}",
        "amount_cents": rng.randrange(500, 500_000),
        "region": rng.choice(_REGIONS),
    }
    return Plan(f"{prefix}{model.name}-{seed}-{number:06d}", model, context, steps, compensations)


def _step_fate(step: StepModel, ref: str, rng: random.Random) -> Fate:
    seconds, luck = _seconds(step, rng), rng.random() - step.timeout_probability
    if luck < 0.0:
        return Fate(step.timeout_seconds, TimeoutError)
    return _fate(min(seconds, step.longest_seconds), luck, step.failures, ref)


def _compensation_fate(compensation: CompensationModel, ref: str, rng: random.Random) -> Fate:
    failures = [compensation.failure] if compensation.failure else []
    return _fate(_seconds(compensation, rng), rng.random(), failures, ref)


def _seconds(model: StepModel | CompensationModel, rng: random.Random) -> float:
    return rng.lognormvariate(math.log(model.median_seconds), model.sigma)


def _fate(seconds: float, luck: float, failures: Iterable[Failure], ref: str) -> Fate:
    for failure in failures:
        luck -= failure.probability
        if luck < 0.0:
            return Fate(seconds, failure.error, failure.message.format(ref=ref))
    return Fate(seconds)
