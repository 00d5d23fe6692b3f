package io.sagascope.flink;

import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.metrics.Counter;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.util.Collector;

/**
 * Passes each event id on once within the horizon, which is event time: an outage, however long, forgets nothing.
 *
 * <p>An id is remembered until the watermark has passed the horizon after its event's time (or after the watermark at its
 * arrival, where it came late). Ids are spread over {@link #KEYS} keys, each with one {@link EventIds} as its state: on the
 * heap that is a look-up in an array, where one state entry an id would cost an entry, a key and two strings. Rejected
 * records have no id and pass.
 */
final class Deduplicate extends KeyedProcessFunction<Integer, RowData, RowData> {
    private static final long serialVersionUID = 1L;

    static final String NAME = "Deduplicate event_id";
    private static final int KEYS = 1024;
    private static final int SLICES = 16;
    private static final long SHORTEST_SLICE_MILLIS = 2_000;

    private final long horizonMillis;
    private final long sliceMillis;

    private transient ValueState<EventIds> state;
    private transient Counter duplicates;

    Deduplicate(long horizonMillis) {
        this.horizonMillis = horizonMillis;
        this.sliceMillis = Math.max(SHORTEST_SLICE_MILLIS, horizonMillis / SLICES);
    }

    @Override
    public void open(OpenContext context) {
        state = getRuntimeContext().getState(new ValueStateDescriptor<>("ids", EventIdsSerializer.INSTANCE));
        duplicates = getRuntimeContext().getMetricGroup().counter("duplicates");
    }

    @Override
    public void processElement(RowData row, Context context, Collector<RowData> out) throws Exception {
        if (row.isNullAt(SagaEventRow.EVENT_ID)) {
            out.collect(row);
            return;
        }
        long watermark = Math.max(0, context.timerService().currentWatermark()); // the first one is yet to come
        long time = row.getTimestamp(SagaEventRow.EVENT_TIME, SagaEventRow.TIME_PRECISION).getMillisecond();
        EventIds ids = state.value();
        if (ids == null) {
            ids = new EventIds();
        }
        long[] id = idOf(row.getString(SagaEventRow.EVENT_ID));
        int until = slice(Math.max(time, watermark) + horizonMillis) + 1;
        boolean first = ids.add(id[0], id[1], until, slice(watermark));
        state.update(ids);
        if (first) {
            out.collect(row);
        } else {
            duplicates.inc();
        }
    }

    /** Numbers of slices wrap; they are compared by their difference. */
    private int slice(long millis) {
        return (int) Math.floorDiv(millis, sliceMillis);
    }

    static Integer keyOf(RowData row) {
        if (row.isNullAt(SagaEventRow.EVENT_ID)) {
            return (int) (row.getLong(SagaEventRow.SOURCE_OFFSET) & (KEYS - 1));
        }
        long[] id = idOf(row.getString(SagaEventRow.EVENT_ID));
        return (int) EventIds.mixed(id[0], id[1]) & (KEYS - 1);
    }

    /** 128 bits for an id: those of a UUID as it is usually written, else of the text's SHA-256. */
    static long[] idOf(StringData id) {
        byte[] text = id.toBytes();
        long[] bits = new long[2];
        return uuid(text, bits) ? bits : digest(text);
    }

    private static boolean uuid(byte[] text, long[] bits) {
        if (text.length != 36) {
            return false;
        }
        int digits = 0;
        for (int i = 0; i < 36; i++) {
            int c = text[i];
            if (i == 8 || i == 13 || i == 18 || i == 23) {
                if (c != '-') {
                    return false;
                }
                continue;
            }
            int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
            if (digit < 0) {
                return false;
            }
            bits[digits >> 4] = bits[digits >> 4] << 4 | digit;
            digits++;
        }
        return (bits[0] | bits[1]) != 0; // zero marks a free place in EventIds
    }

    private static long[] digest(byte[] text) {
        try {
            ByteBuffer hash = ByteBuffer.wrap(MessageDigest.getInstance("SHA-256").digest(text));
            return new long[] {hash.getLong(), hash.getLong() | 1};
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException("every Java has SHA-256", error);
        }
    }
}
