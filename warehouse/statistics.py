"""The statistics as DuckDB computes them from `events`: for windows still open, and to judge what the job has stored.

They are written a second time on purpose: a fault in the job's SQL would else be invisible to the check that shares it.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from warehouse.tables import STEP_DURATIONS

if TYPE_CHECKING:
    from warehouse.settings import Settings
    from warehouse.tables import Table

SQL = Path(__file__).parent / "sql" / "statistics"
MINUTE_SECONDS = 60

_RATIO = "1.01e0 / 0.99e0"
BUCKET_MS = f"CASE bucket WHEN 0 THEN 0 ELSE 2 * pow({_RATIO}, bucket) / ({_RATIO} + 1) END"
"""SQL for what a `bucket` stands for: at most 1 % off any duration in it."""

_SOURCES = """
WITH given AS NOT MATERIALIZED (
    SELECT event_id, event_type, saga_name, step_name, "timestamp", duration_ms, total_duration_ms,
        source_partition, source_offset
    FROM {events}
), doubled AS MATERIALIZED (
    -- Few or none: to number all rows by their id would cost several times the rest of the query.
    SELECT hash(event_id) AS id_hash FROM given GROUP BY id_hash HAVING count(*) > 1
), single_events AS NOT MATERIALIZED (
    SELECT * FROM given ANTI JOIN doubled ON hash(event_id) = id_hash
    UNION ALL (
        SELECT * FROM given SEMI JOIN doubled ON hash(event_id) = id_hash
        QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY source_partition, source_offset) = 1
    )
), ended_steps AS NOT MATERIALIZED (
    SELECT *, CASE WHEN event_type LIKE 'step_%' THEN 'step' ELSE 'compensation' END AS phase,
        event_type LIKE '%_failed' AS is_failure
    FROM single_events
    WHERE event_type IN ('step_completed', 'step_failed', 'compensation_completed', 'compensation_failed')
)
"""


def window_seconds(settings: Settings, table: Table) -> int:
    """The width of the table's windows; those of `step_durations` are a minute wide whatever the settings say."""
    return MINUTE_SECONDS if table is STEP_DURATIONS else settings.window_seconds


def query(settings: Settings, table: Table, events: str = "events") -> str:
    """The rows that `table` must hold, its columns in order, given the rows of the DuckDB relation `events`.

    An event id counts once. Windows are whole multiples of their width since the epoch. Percentiles are exact and
    interpolated.

    Raises:
        FileNotFoundError: the table holds no statistics.
    """
    text = (SQL / f"{table.name}.sql").read_text(encoding="utf-8")
    return over_events(text, window_seconds(settings, table), events)


def over_events(text: str, window_seconds: int, events: str = "events") -> str:
    """A SELECT of a file, over `single_events` and `ended_steps`, made a query over the DuckDB relation `events`.

    Args:
        text: May hold `${window}`, the width of a window, and `${bucket_of_duration_ms}` or `${bucket_of_total_duration_ms}`.
        window_seconds: That width.
        events: The relation's name.
    """
    buckets = {f"bucket_of_{name}": bucket_of(name) for name in ("duration_ms", "total_duration_ms")}
    return _SOURCES.format(events=events) + Template(text).substitute(window=f"{window_seconds} seconds", **buckets)


def bucket_of(duration: str) -> str:
    """SQL for the bucket of a duration in ms, as `step_durations` has it; NULL of NULL."""
    return f"CASE WHEN {duration} = 0 THEN 0 ELSE 1 + floor(ln({duration}) / ln({_RATIO}))::INTEGER END"
