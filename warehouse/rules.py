"""What must hold of each table's rows, made from `warehouse.tables`: the rules that `warehouse.quality` judges by.

A rule is a condition in SQL that is true of a row which breaks it, and a relation whose rows it looks at:

- `partition_rows`: the rows of one day's partitions, with `partition_start`, the moment their partition begins;
- `doubled_keys`, `doubtful_runs`: what `warehouse/sql/quality/<relation>.sql` finds in them;
- none: the facts come from elsewhere, and are named where they are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from pyiceberg.types import IntegerType, LongType

from sagascope.events import STEP_EVENTS, EventType
from warehouse.saga_runs import OUTCOMES
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, SAGA_RUNS, STATISTICS, Table

LONGEST = timedelta(days=7)
"""A duration above it is doubted, and so far back the start of a run is looked for: a recompute looks no further either."""
ALLOWED: dict[str, tuple[str, ...]] = {
    "event_type": tuple(EventType),
    "phase": ("step", "compensation"),
    "outcome": OUTCOMES,
}
"""The values of each column that is an enumeration."""

ROWS, KEYS, RUNS = "partition_rows", "doubled_keys", "doubtful_runs"


class Severity(StrEnum):
    """What a broken rule means."""

    ERROR = "error"
    """Rows are wrong: what is computed from them is, too."""
    WARN = "warn"
    """Rows are strange: somebody should look."""


@dataclass(frozen=True)
class Rule:
    """What must hold.

    Attributes:
        name: Of its table's rules, this one; the column of the facts that counts the rows which break it.
        promise: What holds of each row, as a sentence.
        severity: What it means where it does not.
        relation: Whose rows are looked at; empty: none's.
        fails: SQL, true of a row that breaks it.
        what: SQL for a text that says what is wrong with such a row.
        key: The relation's columns that name the row.
    """

    name: str
    promise: str
    severity: Severity = Severity.ERROR
    relation: str = ""
    fails: str = ""
    what: str = ""
    key: tuple[str, ...] = ()


def rules(table: Table) -> tuple[Rule, ...]:
    """All rules of a table."""
    return (
        FILES_READABLE,
        Rule(
            "key_unique",
            f"{' and '.join(table.key)} {'name' if len(table.key) > 1 else 'names'} one row",
            relation=KEYS,
            fails="times > 1",
            what="times || ' rows'",
            key=table.key,
        ),
        *(_not_null(table, column.name) for column in table.columns if column.required),
        _in_partition(table),
        *(_allowed(table, column.name) for column in table.columns if column.name in ALLOWED),
        *_durations(table),
        *_counts(table),
        *_own_rules(table),
    )


FILES_READABLE = Rule(
    "files_readable", "Every file of the partition can be read; what is in one that can't is not judged"
)
EQUALS_EVENTS = Rule(
    "equals_events", "Each closed window counts the very events that `events` has of it, and its figures are theirs"
)
RUNS_EQUAL_EVENTS = Rule(
    "equals_events", "Each run that ended in an hour that a recompute has covered is the very row that its events say"
)


def _not_null(table: Table, column: str) -> Rule:
    return Rule(
        f"{column}_not_null",
        f"{column} is not NULL",
        relation=ROWS,
        fails=f"{_name(column)} IS NULL",
        what=f"'{column} is NULL'",
        key=_row_key(table),
    )


def _in_partition(table: Table) -> Rule:
    time = _name(table.time_column)
    return Rule(
        f"{table.time_column}_in_partition",
        f"{table.time_column} is of the {table.granularity}, UTC, in whose partition the row is: elsewhere no query finds it",
        relation=ROWS,
        fails=f"{time} < partition_start OR {time} >= partition_start + INTERVAL 1 {table.granularity}",
        what=f"concat('{table.time_column} is ', {time}, ', the partition is ', partition_start)",
        key=_row_key(table),
    )


def _allowed(table: Table, column: str) -> Rule:
    values = ALLOWED[column]
    return Rule(
        f"{column}_known",
        f"{column} is one of {', '.join(values)}",
        relation=ROWS,
        fails=f"{_name(column)} NOT IN ({', '.join(map(_quoted, values))})",
        what=f"concat('{column} is ', {_name(column)})",
        key=_row_key(table),
    )


def _durations(table: Table) -> tuple[Rule, ...]:
    columns = [column.name for column in table.columns if column.name.endswith("_ms")]
    if not columns:
        return ()
    longest = int(LONGEST.total_seconds() * 1000)
    return (
        _of_any(table, "durations_not_negative", "No duration is below 0", columns, "< 0"),
        _of_any(
            table,
            "durations_below_bound",
            f"No duration is above {LONGEST.days} days, {longest:,} ms",
            columns,
            f"> {longest}",
            severity=Severity.WARN,
        ),
    )


def _counts(table: Table) -> tuple[Rule, ...]:
    columns = [
        column.name
        for column in table.columns
        if isinstance(column.type, IntegerType | LongType) and not column.name.endswith("_ms")
    ]
    return (
        (_of_any(table, "counts_not_negative", "No count and no number is below 0", columns, "< 0"),) if columns else ()
    )


def _of_any(
    table: Table, name: str, promise: str, columns: list[str], wrong: str, *, severity: Severity = Severity.ERROR
) -> Rule:
    """A rule of several columns, each of which breaks it where `column wrong`."""
    told = ", ".join(f"CASE WHEN {_name(one)} {wrong} THEN '{one} is ' || {_name(one)} END" for one in columns)
    return Rule(
        name,
        f"{promise}: {', '.join(columns)}",
        severity,
        relation=ROWS,
        fails=" OR ".join(f"{_name(one)} {wrong}" for one in columns),
        what=f"concat_ws(', ', {told})",
        key=_row_key(table),
    )


def _own_rules(table: Table) -> tuple[Rule, ...]:
    if table in STATISTICS:
        return (EQUALS_EVENTS,)
    if table is SAGA_RUNS:
        return (RUNS_EQUAL_EVENTS,)
    if table is SAGA_DEFINITIONS:
        return (
            Rule(
                "steps_are_json",
                "steps is a JSON list",
                relation=ROWS,
                fails="steps IS NOT NULL AND coalesce(json_type(TRY_CAST(steps AS JSON)), '') <> 'ARRAY'",
                what="concat('steps is ', steps[:80])",
                key=_row_key(table),
            ),
        )
    return _rules_of_events() if table is EVENTS else ()


def _rules_of_events() -> tuple[Rule, ...]:
    run, days = ("run_id", "saga_id", "saga_name"), LONGEST.days
    return (
        Rule(
            "step_named",
            "An event of a step or a compensation names the step",
            relation=ROWS,
            fails=f"event_type IN ({', '.join(map(_quoted, sorted(STEP_EVENTS)))}) AND coalesce(step_name, '') = ''",
            what="event_type || ' without step_name'",
            key=_row_key(EVENTS),
        ),
        Rule(
            "error_told",
            "error_message says something where error_type is set",
            Severity.WARN,
            relation=ROWS,
            fails="error_type IS NOT NULL AND trim(coalesce(error_message, '')) = ''",
            what="error_type || ' without error_message'",
            key=_row_key(EVENTS),
        ),
        Rule(
            "run_starts_once",
            f"No run has two starts, its events of the {days} days before included",
            relation=RUNS,
            fails="starts > 1",
            what="starts || ' starts'",
            key=run,
        ),
        Rule(
            "run_ends_once",
            f"No run has two ends, its events of the {days} days before included",
            relation=RUNS,
            fails="ends > 1",
            what="ends || ' ends'",
            key=run,
        ),
        Rule(
            "run_has_start",
            f"A run has a start, on its day or in the {days} days before; one from before the history began has none. Nor has one of sagaz's outbox, which tells of no start: it breaks no rule",
            Severity.WARN,
            relation=RUNS,
            fails="starts = 0 AND NOT is_startless",
            what="'no start'",
            key=run,
        ),
    )


def _row_key(table: Table) -> tuple[str, ...]:
    """What a failing row is shown by: its key, and its time where that is not in it."""
    return table.key if table.time_column in table.key else (*table.key, table.time_column)


def _name(column: str) -> str:
    return f'"{column}"'


def _quoted(text: str) -> str:
    return f"'{text}'"
