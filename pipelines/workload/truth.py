"""What statistics over the workload's events must find, and how `--describe` prints it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.workload.sagas import SAGAS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from pipelines.workload.model import SagaModel, StepModel


@dataclass(frozen=True, slots=True)
class StepTruth:
    """What statistics must find of one step, given enough sagas. Milliseconds are scaled, seconds modelled."""

    saga_name: str
    step_name: str
    after: tuple[str, ...]
    pivot: bool
    failure_rate: float
    """Of those runs of the step that were begun."""
    median_seconds: float
    median_ms: float
    p95_ms: float
    compensation: str | None
    compensation_failure_rate: float | None
    """Of those compensations that were begun."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of the models, to hold statistics against. Durations count completed and failed steps both."""

    models: tuple[SagaModel, ...] = SAGAS

    def describe(self, scale_time: float = 1.0) -> tuple[StepTruth, ...]:
        """Every step of every saga, in the order of the table."""
        return tuple(_truth(model, step, scale_time) for model in self.models for step in model.steps)

    def step(self, saga_name: str, step_name: str, scale_time: float = 1.0) -> StepTruth:
        """One step.

        Raises:
            LookupError: no model has it.
        """
        for row in self.describe(scale_time):
            if (row.saga_name, row.step_name) == (saga_name, step_name):
                return row
        msg = f"no step {step_name!r} in saga {saga_name!r}"
        raise LookupError(msg)

    @property
    def slow(self) -> StepTruth:
        """The step with the largest median."""
        return max(self.describe(), key=lambda row: row.median_seconds)

    @property
    def flaky(self) -> StepTruth:
        """The step with the largest failure rate."""
        return max(self.describe(), key=lambda row: row.failure_rate)

    @property
    def shares(self) -> Mapping[str, float]:
        """Each saga type's share of all sagas."""
        total = math.fsum(model.weight for model in self.models)
        return {model.name: model.weight / total for model in self.models}


def _truth(model: SagaModel, step: StepModel, scale_time: float) -> StepTruth:
    compensation, to_ms = step.compensation, 1000.0 / scale_time
    return StepTruth(
        saga_name=model.name,
        step_name=step.name,
        after=step.after,
        pivot=step.pivot,
        failure_rate=step.failure_rate,
        median_seconds=step.quantile(0.5),
        median_ms=step.quantile(0.5) * to_ms,
        p95_ms=step.quantile(0.95) * to_ms,
        compensation=compensation.name if compensation else None,
        compensation_failure_rate=compensation.failure_rate if compensation else None,
    )


def print_truth(console: Console, truth: Truth, scale_time: float) -> None:
    """Print what statistics must find in a workload at that scale; fits into 80 columns."""
    rows = truth.describe(scale_time)
    by_median = sorted(rows, key=lambda row: row.median_ms, reverse=True)
    by_rate = sorted(rows, key=lambda row: row.failure_rate, reverse=True)
    slow, flaky = by_median[0], by_rate[0]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Step, after its level", no_wrap=True)
    for heading in ("Fails", "p50 ms", "p95 ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Undone by", no_wrap=True)
    table.add_column("Fails", justify="right", no_wrap=True)
    for model in truth.models:
        share = f"{truth.shares[model.name]:.0%} of all sagas"
        table.add_row(f"[bold]{model.name}[/]", _percent(model.failure_rate), "", "", share)
        levels: dict[str, int] = {}
        for row in rows:
            if row.saga_name != model.name:
                continue
            levels[row.step_name] = 1 + max((levels[name] for name in row.after), default=0)
            table.add_row(
                f"  {levels[row.step_name]} {row.step_name}",
                _marked(_percent(row.failure_rate), marked=row is flaky),
                _marked(f"{row.median_ms:,.0f}", marked=row is slow),
                f"{row.p95_ms:,.0f}",
                "pivot: no way back" if row.pivot else row.compensation or "",
                _percent(row.compensation_failure_rate),
            )
        table.add_section()
    console.print(table)
    console.print(
        f"Modelled durations pass {scale_time:g} times faster. Steps of one level run at once.\n"
        "A step's rate is of the times it is run; a saga fails when a step of it does.\n"
        f"Slow:  {slow.saga_name}.{slow.step_name}, p50 {slow.median_ms:,.0f} ms; "
        f"the next {by_median[:2][-1].median_ms:,.0f} ms.\n"
        f"Flaky: {flaky.saga_name}.{flaky.step_name}, {flaky.failure_rate:.1%} fail; "
        f"the next {by_rate[:2][-1].failure_rate:.1%}.",
        highlight=False,
    )


def _marked(text: str, *, marked: bool) -> str:
    return f"[bold red]{text}[/]" if marked else text


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1%}" if rate else "-"
