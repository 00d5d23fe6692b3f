"""Every table, once: its columns, its key, how it is partitioned."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Literal

from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import DayTransform, HourTransform, Transform
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DoubleType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestamptzType,
)

NAMESPACE = "saga"


@dataclass(frozen=True)
class Column:
    """A column. `doc` is what `DESCRIBE` and the Dagster UI show."""

    name: str
    type: IcebergType
    doc: str
    required: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the namespace `saga`.

    Attributes:
        name: Plural noun.
        doc: What one row is.
        columns: In order; their Iceberg field ids follow from it, so a new column goes last.
        key: The columns that identify a row.
        time_column: The column that it is partitioned by.
        granularity: The partition's width, UTC.
        sorted_by: How compaction sorts the rows of a file; None: by the key.
    """

    name: str
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    time_column: str
    granularity: Literal["day", "hour"]
    sorted_by: tuple[str, ...] | None = None

    @property
    def identifier(self) -> tuple[str, str]:
        """Namespace and name, as PyIceberg takes them."""
        return NAMESPACE, self.name

    @property
    def schema(self) -> Schema:
        """As an Iceberg schema. Nested fields take ids above 1000, clear of any column to come."""
        return Schema(
            *(
                NestedField(number, column.name, column.type, required=column.required, doc=column.doc)
                for number, column in enumerate(self.columns, start=1)
            )
        )

    @property
    def partition_spec(self) -> PartitionSpec:
        """By day or hour of the time column."""
        source = 1 + [column.name for column in self.columns].index(self.time_column)
        transform: Transform[Any, Any] = DayTransform() if self.granularity == "day" else HourTransform()
        field = PartitionField(source, 1000, transform, f"{self.time_column}_{self.granularity}")
        return PartitionSpec(field)

    def partition_start(self, value: object) -> datetime:
        """The moment that a partition begins, by its value: a date, or the days or hours since the epoch."""
        if isinstance(value, date):
            return datetime.combine(value, time(), UTC)
        if not isinstance(value, int):
            msg = f"{self.name}: got a partition {value!r}; allowed: a number of {self.granularity}s since 1970"
            raise TypeError(msg)
        return datetime.fromtimestamp(value * (86_400 if self.granularity == "day" else 3_600), UTC)


_STRING, _BYTES, _LONG, _INT, _DOUBLE, _BOOL, _TIME = (
    StringType(),
    BinaryType(),
    LongType(),
    IntegerType(),
    DoubleType(),
    BooleanType(),
    TimestamptzType(),
)

EVENTS = Table(
    name="events",
    doc="Every event of every saga, one row each; append only.",
    columns=(
        Column("event_id", _STRING, "UUIDv7; the event's identity", required=True),
        Column("event_type", _STRING, "what happened, e.g. step_completed", required=True),
        Column("saga_id", _STRING, "whose event it is", required=True),
        Column("saga_name", _STRING, "the kind of saga", required=True),
        Column("run_id", _STRING, "UUIDv7 of one execution of the saga", required=True),
        Column("sequence", _LONG, "order within the run, from 0", required=True),
        Column("timestamp", _TIME, "event time, by the service's clock, whole milliseconds", required=True),
        Column("step_name", _STRING, "of step and compensation events"),
        Column("attempt", _INT, "of the step, from 1", required=True),
        Column("compensable", _BOOL, "the step has a compensation"),
        Column("pivot", _BOOL, "once this step completed there is no way back"),
        Column("duration_ms", _LONG, "of the step or compensation, monotonic clock"),
        Column("duration_derived", _BOOL, "duration_ms is a difference of timestamps, not measured", required=True),
        Column("total_duration_ms", _LONG, "of the saga, on the event that ends it"),
        Column("error_type", _STRING, "class of the error"),
        Column("error_message", _STRING, "its text, cut at 8 KiB"),
        Column("context_keys", ListType(1001, _STRING, element_required=False), "names of the context's keys"),
        Column("attributes", MapType(1002, _STRING, 1003, _STRING, value_required=False), "allow-listed values"),
        Column("definition_id", _STRING, "hash of the saga's definition"),
        Column("parent_saga_id", _STRING, "the saga inside which this one ran"),
        Column("trace_id", _STRING, "of the OpenTelemetry trace"),
        Column("service", _STRING, "who reported it"),
        Column("schema_version", _INT, "of the record", required=True),
        Column("source_topic", _STRING, "Kafka topic of the record it came from"),
        Column("source_partition", _INT, "its partition"),
        Column("source_offset", _LONG, "its offset"),
    ),
    key=("event_id",),
    time_column="timestamp",
    granularity="day",
    sorted_by=("timestamp", "run_id", "sequence"),
)

STEP_STATS = Table(
    name="step_stats",
    doc="Durations and failures of each step and compensation in each closed window of event time.",
    columns=(
        Column("window_start", _TIME, "inclusive", required=True),
        Column("window_end", _TIME, "exclusive", required=True),
        Column("saga_name", _STRING, "the kind of saga", required=True),
        Column("step_name", _STRING, "the step", required=True),
        Column("phase", _STRING, "step, or compensation: the undoing of it", required=True),
        Column("completed", _LONG, "how many succeeded", required=True),
        Column("failed", _LONG, "how many failed or timed out", required=True),
        Column("failure_rate", _DOUBLE, "failed / (completed + failed)", required=True),
        Column("avg_ms", _DOUBLE, "mean duration of completed and failed ones"),
        Column("min_ms", _LONG, "shortest"),
        Column("max_ms", _LONG, "longest"),
        Column("p50_ms", _DOUBLE, "median: exact, interpolated"),
        Column("p95_ms", _DOUBLE, "95th percentile: exact, interpolated; never average it over windows"),
        Column("p99_ms", _DOUBLE, "99th percentile: exact, interpolated; never average it over windows"),
    ),
    key=("window_start", "saga_name", "step_name", "phase"),
    time_column="window_start",
    granularity="hour",
)

SAGA_STATS = Table(
    name="saga_stats",
    doc="Starts, ends and durations of each kind of saga in each closed window of event time.",
    columns=(
        Column("window_start", _TIME, "inclusive", required=True),
        Column("window_end", _TIME, "exclusive", required=True),
        Column("saga_name", _STRING, "the kind of saga", required=True),
        Column("started", _LONG, "how many started", required=True),
        Column("completed", _LONG, "how many succeeded", required=True),
        Column("rolled_back", _LONG, "how many ended in failure, with all undone that had to be", required=True),
        Column("failed", _LONG, "how many ended in failure, with something left", required=True),
        Column("failure_rate", _DOUBLE, "(rolled_back + failed) / all that ended; NULL where none did"),
        Column("avg_ms", _DOUBLE, "mean total duration of those that ended"),
        Column("min_ms", _LONG, "shortest"),
        Column("max_ms", _LONG, "longest"),
        Column("p50_ms", _DOUBLE, "median: exact, interpolated"),
        Column("p95_ms", _DOUBLE, "95th percentile: exact, interpolated; never average it over windows"),
        Column("p99_ms", _DOUBLE, "99th percentile: exact, interpolated; never average it over windows"),
    ),
    key=("window_start", "saga_name"),
    time_column="window_start",
    granularity="hour",
)

BUCKET_RATIO = 1.01 / 0.99
"""Each bucket of `step_durations` is this much wider than the one before: a relative error of at most 1 %."""

STEP_DURATIONS = Table(
    name="step_durations",
    doc="How many steps and compensations took how long, per minute of event time: rows of any span merge by summing.",
    columns=(
        Column("window_start", _TIME, "inclusive", required=True),
        Column("window_end", _TIME, "exclusive, one minute later", required=True),
        Column("saga_name", _STRING, "the kind of saga", required=True),
        Column("step_name", _STRING, "the step", required=True),
        Column("phase", _STRING, "step, or compensation: the undoing of it", required=True),
        Column("bucket", _INT, "0: 0 ms; b: from r^(b-1) ms to below r^b ms, r = 1.01 / 0.99", required=True),
        Column("count", _LONG, "how many durations fell into it", required=True),
    ),
    key=("window_start", "saga_name", "step_name", "phase", "bucket"),
    time_column="window_start",
    granularity="hour",
)

REJECTED_EVENTS = Table(
    name="rejected_events",
    doc="Every record of the topic that is no valid event, as it came; append only.",
    columns=(
        Column("source_topic", _STRING, "Kafka topic of the record", required=True),
        Column("source_partition", _INT, "its partition", required=True),
        Column("source_offset", _LONG, "its offset", required=True),
        Column("record_time", _TIME, "the record's own timestamp", required=True),
        Column("value", _BYTES, "its bytes; NULL where it had none"),
        Column("reason", _STRING, "which field is wrong, what it is and what is allowed", required=True),
    ),
    key=("source_topic", "source_partition", "source_offset"),
    time_column="record_time",
    granularity="day",
    sorted_by=("record_time", "source_partition", "source_offset"),
)

SAGA_DEFINITIONS = Table(
    name="saga_definitions",
    doc="Each definition of a saga that was ever seen, one row each; append only.",
    columns=(
        Column("definition_id", _STRING, "hash of the definition", required=True),
        Column("saga_name", _STRING, "the kind of saga", required=True),
        Column(
            "steps", _STRING, "JSON list: step_name, depends_on, compensable, pivot, timeout_seconds …", required=True
        ),
        Column("first_seen", _TIME, "the time of the record that told of it first", required=True),
        Column("service", _STRING, "who reported it"),
    ),
    key=("definition_id",),
    time_column="first_seen",
    granularity="day",
)

SAGA_RUNS = Table(
    name="saga_runs",
    doc="What became of each run that ended; written by recomputes, and computed from events where none was yet.",
    columns=(
        Column("run_id", _STRING, "one execution of the saga", required=True),
        Column("saga_id", _STRING, "whose run it was", required=True),
        Column("saga_name", _STRING, "the kind of saga", required=True),
        Column("outcome", _STRING, "completed, rolled_back, compensation_failed …", required=True),
        Column("started_at", _TIME, "its start, or its first event that is known", required=True),
        Column("ended_at", _TIME, "its end", required=True),
        Column("total_ms", _LONG, "from start to end"),
        Column("total_derived", _BOOL, "total_ms is a difference of timestamps, not measured", required=True),
        Column("failing_step", _STRING, "the step that failed first, for good"),
        Column("error_type", _STRING, "class of its error"),
        Column("error_message", _STRING, "the error's text, cut at 8 KiB"),
        Column("steps_done", ListType(1001, _STRING, element_required=False), "steps that succeeded, in order"),
        Column("steps_undone", ListType(1002, _STRING, element_required=False), "of these, those undone, in order"),
        Column(
            "residual_effects",
            ListType(
                1003,
                StructType(
                    NestedField(1004, "step_name", _STRING, required=False),
                    NestedField(1005, "reason", _STRING, required=False),
                ),
                element_required=False,
            ),
            "steps that succeeded and stand though the run failed, and why",
        ),
        Column("wasted_ms", _LONG, "work that was undone, and the undoing"),
        Column("attributes", MapType(1006, _STRING, 1007, _STRING, value_required=False), "allow-listed values"),
        Column("definition_id", _STRING, "hash of the saga's definition"),
    ),
    key=("run_id",),
    time_column="ended_at",
    granularity="day",
)

STATISTICS = (STEP_STATS, SAGA_STATS, STEP_DURATIONS)
"""What is computed from `events`, window by window, and can be computed again."""

COMPUTED = (*STATISTICS, SAGA_RUNS)
"""What a recompute writes."""

TABLES = (EVENTS, REJECTED_EVENTS, *COMPUTED, SAGA_DEFINITIONS)
