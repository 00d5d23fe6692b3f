"""Where the plans were until `pipelines.workload` became a package; goes when bench/synthesise.py imports from there."""

from pipelines.workload import SAGAS, draw_plan
from pipelines.workload.plan import Fate, Plan

__all__ = ["SAGAS", "Fate", "Plan", "draw_plan"]
