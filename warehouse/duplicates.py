"""Removes from `events` what it holds twice: a record that came again after the job's horizon, or a row that was doubled."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import And, BooleanExpression, In, Or, Reference
from pyiceberg.expressions.literals import literal
from pyiceberg.expressions.parser import parse

from warehouse import history
from warehouse.replace import ReplacedMeanwhileError, replace_rows
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

    from warehouse.settings import Settings

ATTEMPTS = 5

# By the ids' hashes first: 8 bytes a row in memory instead of the id.
_RANKED = """
WITH ranked AS (
    SELECT *, row_number() OVER (
        PARTITION BY event_id ORDER BY source_partition, source_offset, source_topic, "timestamp"
    ) AS place
    FROM events
    WHERE source_offset IS NOT NULL
        AND hash(event_id) IN (SELECT hash(event_id) FROM events GROUP BY 1 HAVING count(*) > 1)
)
"""
_EXTRA = (
    _RANKED + 'SELECT event_id, source_topic, source_partition, source_offset, "timestamp" FROM ranked WHERE place > 1'  # noqa: S608 - ours
)
# A filter names a day's offsets, not rows: what else is at them has to be written back.
_KEPT = (
    _RANKED  # noqa: S608 - ours
    + """, extra_at AS (
    SELECT DISTINCT "timestamp"::DATE AS day, source_topic, source_partition, source_offset FROM ranked WHERE place > 1
), firsts AS (
    SELECT * EXCLUDE (place) FROM ranked WHERE place = 1
    UNION ALL
    SELECT * FROM events
    WHERE event_id NOT IN (SELECT event_id FROM ranked)
        AND (source_partition, source_offset) IN (SELECT (source_partition, source_offset) FROM extra_at)
)
SELECT * EXCLUDE (day)
FROM (SELECT *, "timestamp"::DATE AS day FROM firsts)
    SEMI JOIN extra_at USING (day, source_topic, source_partition, source_offset)
"""
)


class DayOfDuplicates(NamedTuple):
    """What one day of `events` holds twice."""

    day: date
    rows: int
    """Rows beyond the first of their event id."""
    ids: int
    hours: tuple[datetime, ...]
    """The hours of event time that they are of: those to recompute."""


def find(settings: Settings, catalog: Catalog | None = None) -> list[DayOfDuplicates]:
    """The days whose rows are not each the first of its event id, in order."""
    with history.open(settings, catalog=catalog) as tables:
        extra = tables.sql(_EXTRA).to_arrow_table()
    return [_told(day, rows) for day, rows in _by_day(extra)]


def remove(settings: Settings, catalog: Catalog) -> list[DayOfDuplicates]:
    """Keep only the first row of each event id, by partition and offset, however far apart they are; says what went.

    One commit a day. Only files that hold such rows are written anew, and the stream may append meanwhile. The
    statistics stay as they are: recompute the hours named.

    Raises:
        ReplacedMeanwhileError: somebody else removes rows all the time.
    """
    done: list[DayOfDuplicates] = []
    for attempt in range(1, ATTEMPTS + 1):
        with history.open(settings, catalog=catalog) as tables:
            extra, kept = (tables.sql(query).to_arrow_table() for query in (_EXTRA, _KEPT))
        try:
            for day, rows in _by_day(extra):
                where = _at(day, rows)
                replace_rows(settings, catalog, EVENTS, kept.filter(_is_of(kept, day)), where)
                done.append(_told(day, rows))
        except ReplacedMeanwhileError:
            if attempt == ATTEMPTS:
                raise
        else:
            break
    return done


def _by_day(extra: pa.Table) -> list[tuple[date, pa.Table]]:
    days = sorted(set(_days(extra).to_pylist()))
    return [(day, extra.filter(_is_of(extra, day))) for day in days]


def _days(rows: pa.Table) -> pa.ChunkedArray:
    return pc.cast(rows["timestamp"].cast(pa.timestamp("us", "UTC")), pa.date32())


def _is_of(rows: pa.Table, day: date) -> pa.ChunkedArray:
    return pc.equal(_days(rows), pa.scalar(day))


def _told(day: date, rows: pa.Table) -> DayOfDuplicates:
    moments = rows["timestamp"].to_pylist()
    hours = {moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0) for moment in moments}
    return DayOfDuplicates(day, rows.num_rows, len(set(rows["event_id"].to_pylist())), tuple(sorted(hours)))


def _at(day: date, rows: pa.Table) -> BooleanExpression:
    """The rows of the day at the offsets of `rows`: offsets of old, which no append of the stream has."""
    begin = datetime.combine(day, time(), UTC)
    offsets: dict[tuple[str, int], set[int]] = {}
    for row in rows.select(["source_topic", "source_partition", "source_offset"]).to_pylist():
        offsets.setdefault((row["source_topic"], row["source_partition"]), set()).add(row["source_offset"])
    of_day = f"timestamp >= '{begin.isoformat()}' and timestamp < '{(begin + timedelta(days=1)).isoformat()}'"
    at_offsets: list[BooleanExpression] = [
        And(
            # A long list of values alone would prune no file.
            parse(f"source_partition = {partition} and source_offset >= {min(held)} and source_offset <= {max(held)}"),
            parse(f"source_topic = '{topic}'"),
            In(term=Reference("source_offset"), values={literal(offset) for offset in held}),
        )
        for (topic, partition), held in offsets.items()
    ]
    return And(parse(of_day), reduce(Or, at_offsets))
