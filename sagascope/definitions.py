"""What a saga is made of, as far as its events have to know: its steps, and what each can undo."""

from __future__ import annotations

import hashlib

import msgspec


class StepDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `compensable`: has a compensation; `pivot`: once it completed there is no way back."""

    step_name: str
    depends_on: tuple[str, ...] = ()
    compensable: bool = False
    pivot: bool = False
    timeout_seconds: float | None = None
    compensation_timeout_seconds: float | None = None


class SagaDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A saga's name and its steps."""

    saga_name: str
    steps: tuple[StepDefinition, ...]

    def step(self, step_name: str) -> StepDefinition | None:
        """The step of that name, or None where the definition does not know it."""
        return next((step for step in self.steps if step.step_name == step_name), None)

    @property
    def definition_id(self) -> str:
        """16 hex digits of SHA-256 over the definition: the same steps in any order give the same id."""
        steps = tuple(sorted(self.steps, key=lambda step: step.step_name))
        return hashlib.sha256(msgspec.json.encode((self.saga_name, steps))).hexdigest()[:16]
