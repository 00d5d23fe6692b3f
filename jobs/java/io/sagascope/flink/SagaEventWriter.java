package io.sagascope.flink;

import java.util.List;
import java.util.Map;
import org.apache.flink.table.data.GenericArrayData;
import org.apache.flink.table.data.GenericMapData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.data.TimestampData;
import org.apache.flink.table.data.binary.BinaryRowData;
import org.apache.flink.table.data.writer.BinaryRowWriter;
import org.apache.flink.table.runtime.typeutils.ArrayDataSerializer;
import org.apache.flink.table.runtime.typeutils.MapDataSerializer;
import org.apache.flink.table.types.logical.LogicalType;
import org.apache.flink.table.types.logical.VarCharType;

/** Writes rows of {@link SagaEventRow} in Flink's binary format, in which they are shuffled without another conversion. */
final class SagaEventWriter {
    private static final int TYPICAL_BYTES = 512;

    private final BinaryRowData row = new BinaryRowData(SagaEventRow.WIDTH);
    private final BinaryRowWriter out = new BinaryRowWriter(row, TYPICAL_BYTES);
    private final ArrayDataSerializer arrays;
    private final MapDataSerializer maps;

    SagaEventWriter() {
        LogicalType text = new VarCharType(VarCharType.MAX_LENGTH);
        arrays = new ArrayDataSerializer(text);
        maps = new MapDataSerializer(text, text);
    }

    /** What the parser has just read. */
    void event(SagaEventParser event, boolean stored) {
        out.reset();
        for (int field : new int[] {
            SagaEventRow.EVENT_ID,
            SagaEventRow.SAGA_ID,
            SagaEventRow.SAGA_NAME,
            SagaEventRow.RUN_ID,
            SagaEventRow.STEP_NAME,
            SagaEventRow.ERROR_TYPE,
            SagaEventRow.DEFINITION_ID,
            SagaEventRow.PARENT_SAGA_ID,
            SagaEventRow.TRACE_ID,
            SagaEventRow.SERVICE
        }) {
            if (event.present[field]) {
                out.writeString(field, event.text(field));
            } else {
                out.setNullAt(field);
            }
        }
        out.writeString(SagaEventRow.EVENT_TYPE, event.type.data);
        errorMessage(event);
        out.writeLong(SagaEventRow.SEQUENCE, event.numbers[SagaEventRow.SEQUENCE]);
        time(SagaEventRow.EVENT_TIME, event.numbers[SagaEventRow.EVENT_TIME]);
        out.writeInt(SagaEventRow.ATTEMPT, (int) event.numbers[SagaEventRow.ATTEMPT]);
        out.writeInt(SagaEventRow.SCHEMA_VERSION, (int) event.numbers[SagaEventRow.SCHEMA_VERSION]);
        out.writeBoolean(SagaEventRow.DURATION_DERIVED, event.numbers[SagaEventRow.DURATION_DERIVED] == 1);
        for (int field : new int[] {SagaEventRow.DURATION_MS, SagaEventRow.TOTAL_DURATION_MS}) {
            if (event.present[field]) {
                out.writeLong(field, event.numbers[field]);
            } else {
                out.setNullAt(field);
            }
        }
        for (int field : new int[] {SagaEventRow.COMPENSABLE, SagaEventRow.PIVOT}) {
            if (event.present[field]) {
                out.writeBoolean(field, event.numbers[field] == 1);
            } else {
                out.setNullAt(field);
            }
        }
        contextKeys(event.contextKeys);
        attributes(event.attributes);
        out.setNullAt(SagaEventRow.VALUE);
        out.setNullAt(SagaEventRow.REASON);
        out.writeBoolean(SagaEventRow.STORED, stored);
    }

    /** A record that is no event, as it came. */
    void rejected(byte[] value, String reason, boolean stored) {
        out.reset();
        for (int field = 0; field < SagaEventRow.SOURCE_TOPIC; field++) {
            out.setNullAt(field);
        }
        if (value == null) {
            out.setNullAt(SagaEventRow.VALUE);
        } else {
            out.writeBinary(SagaEventRow.VALUE, value);
        }
        text(SagaEventRow.REASON, reason);
        out.writeBoolean(SagaEventRow.STORED, stored);
    }

    /** The row, once it says where its record was. */
    RowData finished(String topic, int partition, long offset, long recordTime) {
        text(SagaEventRow.SOURCE_TOPIC, topic);
        out.writeInt(SagaEventRow.SOURCE_PARTITION, partition);
        out.writeLong(SagaEventRow.SOURCE_OFFSET, offset);
        time(SagaEventRow.RECORD_TIME, recordTime);
        out.complete();
        return row.copy();
    }

    private void text(int field, String text) {
        if (text == null) {
            out.setNullAt(field);
        } else {
            out.writeString(field, StringData.fromString(text));
        }
    }

    private void time(int field, long millis) {
        out.writeTimestamp(field, TimestampData.fromEpochMillis(millis), SagaEventRow.TIME_PRECISION);
    }

    /** Never empty where a type is set. */
    private void errorMessage(SagaEventParser event) {
        String message = event.errorMessage;
        if (event.present[SagaEventRow.ERROR_TYPE] && (message == null || RecordText.isBlank(message))) {
            out.writeString(SagaEventRow.ERROR_MESSAGE, event.text(SagaEventRow.ERROR_TYPE));
        } else if (message == null) {
            out.setNullAt(SagaEventRow.ERROR_MESSAGE);
        } else {
            out.writeString(SagaEventRow.ERROR_MESSAGE, StringData.fromBytes(RecordText.cut(message)));
        }
    }

    private void contextKeys(List<String> keys) {
        if (keys.isEmpty()) {
            out.setNullAt(SagaEventRow.CONTEXT_KEYS);
            return;
        }
        Object[] texts = keys.stream().map(StringData::fromString).toArray();
        out.writeArray(SagaEventRow.CONTEXT_KEYS, new GenericArrayData(texts), arrays);
    }

    private void attributes(Map<String, String> attributes) {
        if (attributes.isEmpty()) {
            out.setNullAt(SagaEventRow.ATTRIBUTES);
            return;
        }
        Map<StringData, StringData> texts = new java.util.LinkedHashMap<>();
        attributes.forEach((key, value) -> texts.put(StringData.fromString(key), StringData.fromString(value)));
        out.writeMap(SagaEventRow.ATTRIBUTES, new GenericMapData(texts), maps);
    }
}
