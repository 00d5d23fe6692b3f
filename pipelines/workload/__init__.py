"""Realistic load: real sagaz sagas, drawn from a seed, started at a rate, and the truth that statistics must find in them.

stop = asyncio.Event()
async with KafkaListener("localhost:9092") as kafka:
    report = await run_workload([kafka], rate=50, seconds=60, seed=7, scale_time=20, stop=stop)
"""

from pipelines.workload.modelled_saga import ModelledSaga, saga_class
from pipelines.workload.plan import draw_plan
from pipelines.workload.run import SagaCounts, WorkloadReport, WorkloadSettings, run_workload
from pipelines.workload.sagas import SAGAS
from pipelines.workload.truth import StepTruth, Truth, print_truth

__all__ = [
    "SAGAS",
    "ModelledSaga",
    "SagaCounts",
    "StepTruth",
    "Truth",
    "WorkloadReport",
    "WorkloadSettings",
    "draw_plan",
    "print_truth",
    "run_workload",
    "saga_class",
]
