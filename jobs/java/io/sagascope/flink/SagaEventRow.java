package io.sagascope.flink;

import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.flink.table.types.logical.ArrayType;
import org.apache.flink.table.types.logical.BigIntType;
import org.apache.flink.table.types.logical.BooleanType;
import org.apache.flink.table.types.logical.IntType;
import org.apache.flink.table.types.logical.LocalZonedTimestampType;
import org.apache.flink.table.types.logical.LogicalType;
import org.apache.flink.table.types.logical.MapType;
import org.apache.flink.table.types.logical.RowType;
import org.apache.flink.table.types.logical.VarBinaryType;
import org.apache.flink.table.types.logical.VarCharType;

/** The columns that a record of the topic becomes: of an event, or, where {@link #REASON} is set, of a rejected record. */
final class SagaEventRow {
    static final int EVENT_ID = 0;
    static final int EVENT_TYPE = 1;
    static final int SAGA_ID = 2;
    static final int SAGA_NAME = 3;
    static final int RUN_ID = 4;
    static final int SEQUENCE = 5;
    static final int EVENT_TIME = 6;
    static final int STEP_NAME = 7;
    static final int ATTEMPT = 8;
    static final int COMPENSABLE = 9;
    static final int PIVOT = 10;
    static final int DURATION_MS = 11;
    static final int DURATION_DERIVED = 12;
    static final int TOTAL_DURATION_MS = 13;
    static final int ERROR_TYPE = 14;
    static final int ERROR_MESSAGE = 15;
    static final int CONTEXT_KEYS = 16;
    static final int ATTRIBUTES = 17;
    static final int DEFINITION_ID = 18;
    static final int PARENT_SAGA_ID = 19;
    static final int TRACE_ID = 20;
    static final int SERVICE = 21;
    static final int SCHEMA_VERSION = 22;
    static final int SOURCE_TOPIC = 23;
    static final int SOURCE_PARTITION = 24;
    static final int SOURCE_OFFSET = 25;
    static final int RECORD_TIME = 26;
    static final int VALUE = 27;
    static final int REASON = 28;
    static final int STORED = 29;
    static final int WIDTH = 30;

    /** Milliseconds. */
    static final int TIME_PRECISION = 3;

    static final RowType TYPE = type();

    private SagaEventRow() {}

    private static RowType type() {
        LogicalType text = new VarCharType(VarCharType.MAX_LENGTH);
        LogicalType number = new BigIntType();
        LogicalType integer = new IntType();
        LogicalType flag = new BooleanType();
        LogicalType time = new LocalZonedTimestampType(TIME_PRECISION);
        LogicalType bytes = new VarBinaryType(VarBinaryType.MAX_LENGTH);
        List<String> names =
                List.of(
                        "event_id", "event_type", "saga_id", "saga_name", "run_id", "sequence", "event_time",
                        "step_name", "attempt", "compensable", "pivot", "duration_ms", "duration_derived",
                        "total_duration_ms", "error_type", "error_message", "context_keys", "attributes",
                        "definition_id", "parent_saga_id", "trace_id", "service", "schema_version", "source_topic",
                        "source_partition", "source_offset", "record_time", "value", "reason", "stored");
        List<LogicalType> types =
                List.of(
                        text, text, text, text, text, number, time,
                        text, integer, flag, flag, number, flag,
                        number, text, text, new ArrayType(text), new MapType(text, text),
                        text, text, text, text, integer, text,
                        integer, number, time, bytes, text, flag);
        return new RowType(
                IntStream.range(0, WIDTH)
                        .mapToObj(i -> new RowType.RowField(names.get(i), types.get(i)))
                        .collect(Collectors.toList()));
    }
}
