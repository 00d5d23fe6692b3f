"""The models that a workload is made of: sagas, steps, compensations and failures. Times are modelled seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.workload.errors import ModelledError

_LONGEST_SHARE_OF_TIMEOUT = 0.8


@dataclass(frozen=True, slots=True)
class Failure:
    """One way to fail; in `message`, `{ref}` becomes a number of four digits, drawn per saga."""

    probability: float
    error: type[ModelledError]
    message: str


@dataclass(frozen=True, slots=True)
class CompensationModel:
    """How a step is undone: log-normal around `median_seconds`."""

    name: str
    median_seconds: float
    sigma: float = 0.4
    failure: Failure | None = None

    @property
    def failure_rate(self) -> float:
        """The probability that undoing fails where it is begun."""
        return self.failure.probability if self.failure else 0.0


@dataclass(frozen=True, slots=True)
class StepModel:
    """One step: a duration, log-normal around `median_seconds`, and at most one of its failures, or a timeout.

    No duration but a timeout's is longer than 0.8 of `timeout_seconds`, so that no jitter of a timer makes a timeout
    that was not planned.

    Raises:
        ValueError: the numbers can't hold together.
    """

    name: str
    median_seconds: float
    sigma: float = 0.4
    after: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    timeout_seconds: float = 60.0
    timeout_probability: float = 0.0
    compensation: CompensationModel | None = None
    pivot: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.failure_rate < 1.0:
            msg = f"step {self.name!r}: its failures' probabilities sum to {self.failure_rate}, allowed: [0, 1)"
            raise ValueError(msg)
        if not 0.0 < self.median_seconds <= self.longest_seconds:
            msg = f"step {self.name!r}: median_seconds={self.median_seconds}, allowed: (0, {self.longest_seconds:g}]"
            raise ValueError(msg)

    @property
    def failure_rate(self) -> float:
        """The probability that the step fails where it is run, timeouts included."""
        return sum((failure.probability for failure in self.failures), self.timeout_probability)

    @property
    def longest_seconds(self) -> float:
        """The longest duration of a step that does not time out."""
        return _LONGEST_SHARE_OF_TIMEOUT * self.timeout_seconds

    def quantile(self, q: float) -> float:
        """The duration in modelled seconds that a share `q`, within (0, 1), of all runs stays below; failed ones count."""
        in_time = q / (1.0 - self.timeout_probability)
        if in_time >= 1.0:
            return self.timeout_seconds
        return min(self.median_seconds * math.exp(self.sigma * NormalDist().inv_cdf(in_time)), self.longest_seconds)


@dataclass(frozen=True, slots=True)
class SagaModel:
    """A saga type; `weight` is its part of the mix, relative to the others' weights.

    Raises:
        ValueError: a step's name is taken, or it comes after a step that is not named before it.
    """

    name: str
    service: str
    weight: float
    entity: str
    """What the saga is about: its context holds `<entity>_id`."""
    steps: tuple[StepModel, ...]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for step in self.steps:
            if step.name in known or not known.issuperset(step.after):
                msg = f"saga {self.name!r}: step {step.name!r} must have a name of its own and name only earlier steps"
                raise ValueError(msg)
            known.add(step.name)

    @property
    def failure_rate(self) -> float:
        """The probability that the saga does not complete: some step fails."""
        return 1.0 - math.prod(1.0 - step.failure_rate for step in self.steps)
