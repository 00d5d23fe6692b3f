"""The days into which every table is cut, and the one date on which they begin."""

from datetime import UTC, datetime, timedelta

import dagster as dg

START = "2026-01-01"
"""No table has rows of an earlier day; move it back before importing older history."""

DAYS = dg.DailyPartitionsDefinition(
    start_date=START,
    timezone="UTC",
    end_offset=1,  # today is there while it is being written
)


def day_before(moment: datetime, days: int) -> str:
    """The partition so many days before that of the moment, UTC."""
    return f"{moment.astimezone(UTC) - timedelta(days=days):%Y-%m-%d}"
