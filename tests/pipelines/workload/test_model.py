"""What the models and the plans drawn from them promise."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pipelines.workload import SAGAS, draw_plan, saga_class
from pipelines.workload.errors import OutOfStockError
from pipelines.workload.model import Failure, SagaModel, StepModel
from sagascope.integrations.sagaz import FanOutSaga, definition_of
from warehouse.settings import CHECKOUT


def test_there_are_realistic_sagas_of_all_shapes() -> None:
    """Five types or more of 3 to 7 steps, some parallel, two or more with a pivot, some steps with no way back."""
    assert len({model.name for model in SAGAS}) >= 5
    assert all(3 <= len(model.steps) <= 7 for model in SAGAS)
    levels = [level for model in SAGAS for level in saga_class(model)(draw_plan(0, 0), 1.0, ()).get_execution_order()]
    assert sum(len(level) > 1 for level in levels) >= 2
    assert sum(any(step.pivot for step in model.steps) for model in SAGAS) >= 2
    steps = [step for model in SAGAS for step in model.steps]
    assert any(not step.compensation and not step.pivot for step in steps)
    assert any(step.compensation and step.compensation.failure for step in steps)


def test_sagaz_knows_the_saga_as_it_is_modelled() -> None:
    """The class made from a model has its steps, in its order, with their edges, pivots, timeouts and compensations."""
    for model in SAGAS:
        saga = saga_class(model)(draw_plan(0, 0), 1.0, ())
        assert isinstance(saga, FanOutSaga)
        definition = definition_of(saga)
        assert definition.saga_name == model.name
        assert [(s.step_name, s.depends_on, s.pivot, s.compensable, s.timeout_seconds) for s in definition.steps] == [
            (s.name, tuple(sorted(s.after)), s.pivot, s.compensation is not None, s.timeout_seconds)
            for s in model.steps
        ]


def test_a_model_that_cannot_hold_is_refused() -> None:
    """Probabilities of 1 or more, a median beyond the timeout, an unknown or a doubled step name its reason."""
    with pytest.raises(ValueError, match="sum to 1"):
        StepModel("a", 1.0, failures=(Failure(1.0, OutOfStockError, ""),))
    with pytest.raises(ValueError, match="median_seconds=9"):
        StepModel("a", 9.0, timeout_seconds=10.0)
    for steps in [(StepModel("a", 1.0, after=("b",)),), (StepModel("a", 1.0), StepModel("a", 1.0))]:
        with pytest.raises(ValueError, match="step 'a'"):
            SagaModel("s", "service", 1, "thing", steps)


def test_plans_are_the_same_in_every_process() -> None:
    """The seed alone decides, not the process's hash seed."""
    code = "from pipelines.workload import draw_plan; print([draw_plan(7, n) for n in range(200)])"
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            cwd=CHECKOUT,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert printed[0].decode().strip() == str([draw_plan(7, n) for n in range(200)])


def test_ids_name_saga_seed_and_number_and_the_prefix_parts_workloads() -> None:
    """A saga_id is `<prefix><saga_name>-<seed>-<number>`, and the prefix changes nothing else."""
    plain, mine = draw_plan(7, 12), draw_plan(7, 12, prefix="mine-")
    assert plain.saga_id == f"{plain.model.name}-7-000012"
    assert mine.saga_id == f"mine-{plain.saga_id}"
    assert replace(mine, saga_id=plain.saga_id) == plain
