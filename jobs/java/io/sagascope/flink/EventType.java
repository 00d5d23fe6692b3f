package io.sagascope.flink;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.stream.Collectors;
import org.apache.flink.table.data.binary.BinaryStringData;

/** What can happen in a saga's life. */
enum EventType {
    SAGA_STARTED,
    STEP_STARTED,
    STEP_COMPLETED,
    STEP_FAILED,
    COMPENSATION_STARTED,
    COMPENSATION_COMPLETED,
    COMPENSATION_FAILED,
    SAGA_COMPLETED,
    SAGA_ROLLED_BACK,
    SAGA_FAILED;

    static final String NAMES =
            Arrays.stream(values()).map(type -> type.text).collect(Collectors.joining(", "));

    private static final Map<String, EventType> BY_TEXT = new HashMap<>();

    static {
        for (EventType type : values()) {
            BY_TEXT.put(type.text, type);
        }
    }

    final String text = name().toLowerCase(java.util.Locale.ROOT);
    final boolean isOfStep = !text.startsWith("saga_");

    /** The text as rows have it. */
    final BinaryStringData data = BinaryStringData.fromBytes(text.getBytes(StandardCharsets.UTF_8));

    /** Null where there is none of that name. */
    static EventType of(String text) {
        return BY_TEXT.get(text);
    }
}
