"""`sagascope seed`: history to look at, where there is none."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated

import typer

from pipelines.terminal import make_console
from warehouse.settings import Settings

console = make_console()


def seed(
    days: Annotated[int, typer.Option(min=5, max=60, help="So many days, UTC, that end with yesterday.")] = 7,
    sagas_a_day: Annotated[int, typer.Option("--sagas-a-day", min=1, help="About how many start each day.")] = 1_000,
    number: Annotated[int, typer.Option("--seed", help="Of which all follows: the same sagas each time.")] = 7,
    *,
    if_empty: Annotated[
        bool,
        typer.Option("--if-empty", help="Do nothing where there is history already, or where Kafka is somebody's own."),
    ] = False,
) -> None:
    """Fill the tables with a week of sagas, two days of which are to be mended by a backfill."""
    from pipelines import seed as seed_module

    settings = Settings.from_environment(os.environ)
    if if_empty and settings.bootstrap_servers:
        return
    with console.status(f"a week of sagas passes, {sagas_a_day:,} a day"):
        try:
            seeded = seed_module.seed(settings, datetime.now(UTC), days=days, sagas_a_day=sagas_a_day, number=number)
        except seed_module.AlreadyHistoryError:
            if if_empty:
                return
            raise
    console.print(
        f"{seeded.events:,} events of {seeded.days} days since {seeded.first}, straight into the tables. To be mended by a "
        f"backfill:\n  {seeded.late_day}: {seeded.late_events:,} events came after its statistics were computed\n"
        f"  {seeded.wrong_day}: its step_stats count every event twice",
        highlight=False,
    )
