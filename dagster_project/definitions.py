"""What Dagster loads: `dagster dev -m dagster_project.definitions`."""

import dagster as dg

from dagster_project.assets import SPECS
from dagster_project.imports import IMPORTS, ImportResource
from dagster_project.lake import LakeResource
from dagster_project.observe_tables import new_rows, observe_tables

defs = dg.Definitions(
    assets=[*SPECS, *IMPORTS],
    jobs=[observe_tables],
    sensors=[new_rows],
    resources={"lake": LakeResource(), "imports": ImportResource()},
)
