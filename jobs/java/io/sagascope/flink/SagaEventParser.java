package io.sagascope.flink;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.StreamReadConstraints;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.binary.BinaryStringData;

/**
 * What is a valid event, as {@code sagascope.events.decode} has it: both are held to the same vectors. A record that is none
 * becomes a row with its bytes and the first thing that is wrong with it.
 *
 * <p>An instance is used by one thread; it keeps a record's fields between {@link #read} and writing them out.
 */
public final class SagaEventParser {
    /** An event whose timestamp is further ahead of its record's own would close every window before it. */
    static final long FARTHEST_AHEAD_MILLIS = 5 * 60 * 1000;

    private static final String RECORD = "one JSON object in UTF-8";
    private static final int SHOWN_CHARACTERS = 120;

    /** How deep objects and lists may be nested, also in fields that are skipped. */
    private static final int NESTING_LIMIT = 700;

    /** Where each field goes; the order of the required ones is that in which a missing one is named. */
    private static final Map<String, Integer> FIELDS = new HashMap<>();

    private static final int TIMESTAMP = SagaEventRow.EVENT_TIME;
    private static final int[] REQUIRED = {
        SagaEventRow.EVENT_ID,
        SagaEventRow.EVENT_TYPE,
        SagaEventRow.SAGA_ID,
        SagaEventRow.SAGA_NAME,
        SagaEventRow.RUN_ID,
        SagaEventRow.SEQUENCE,
        TIMESTAMP
    };

    static {
        SagaEventRow.TYPE.getFieldNames().subList(0, SagaEventRow.SOURCE_TOPIC).forEach(
                name -> FIELDS.put(name, SagaEventRow.TYPE.getFieldIndex(name)));
        FIELDS.put("timestamp", FIELDS.remove("event_time"));
    }

    private final JsonFactory json =
            JsonFactory.builder()
                    .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
                    .disable(JsonFactory.Feature.FAIL_ON_SYMBOL_HASH_OVERFLOW)
                    .streamReadConstraints(
                            StreamReadConstraints.builder()
                                    .maxNestingDepth(NESTING_LIMIT)
                                    .maxNumberLength(Integer.MAX_VALUE)
                                    .maxStringLength(Integer.MAX_VALUE)
                                    .maxNameLength(Integer.MAX_VALUE)
                                    .build())
                    .build();

    private final SagaEventWriter writer = new SagaEventWriter();
    private final StoredOffsets stored;

    /** The record's texts in UTF-8, one behind the other: a String for each would be half of what the job allocates. */
    private byte[] utf8 = new byte[1024];

    private int used;
    private final int[] begins = new int[SagaEventRow.WIDTH];
    private final int[] lengths = new int[SagaEventRow.WIDTH];

    final long[] numbers = new long[SagaEventRow.WIDTH];
    final boolean[] present = new boolean[SagaEventRow.WIDTH];
    final List<String> contextKeys = new ArrayList<>();
    final Map<String, String> attributes = new LinkedHashMap<>();
    EventType type;
    String errorMessage;
    private String reason;

    SagaEventParser(StoredOffsets stored) {
        this.stored = stored;
    }

    /** The row of a record: of its event, or of the rejected record. */
    RowData parse(byte[] value, String topic, int partition, long offset, long recordTime) {
        String wrong = read(value, recordTime);
        if (wrong == null) {
            writer.event(this, stored.containsEvent(partition, offset));
        } else {
            writer.rejected(value, wrong, stored.containsRejected(partition, offset));
        }
        return writer.finished(topic, partition, offset, recordTime);
    }

    /** Why a record's value is no valid event, {@code field: got …; allowed: …}; null where it is one. For the tests. */
    public static String reasonOf(byte[] value, long recordTime) {
        return new SagaEventParser(new StoredOffsets("", "")).read(value, recordTime);
    }

    private String read(byte[] value, long recordTime) {
        if (value == null || value.length == 0) {
            return wrong("record", "nothing", RECORD);
        }
        if (!RecordText.isUnicode(value)) {
            return wrong("record", RecordText.shown(value, SHOWN_CHARACTERS), RECORD);
        }
        reset();
        try (JsonParser parser = json.createParser(value)) {
            if (parser.nextToken() != JsonToken.START_OBJECT) {
                return wrong("record", RecordText.shown(value, SHOWN_CHARACTERS), RECORD);
            }
            while (parser.nextToken() != JsonToken.END_OBJECT) {
                Integer field = FIELDS.get(parser.currentName());
                parser.nextToken();
                if (field == null) {
                    parser.skipChildren();
                } else {
                    field(field, parser);
                }
            }
            if (parser.nextToken() != null) {
                return wrong("record", RecordText.shown(value, SHOWN_CHARACTERS), RECORD);
            }
        } catch (IOException error) {
            return wrong("record", RecordText.shown(value, SHOWN_CHARACTERS), RECORD);
        }
        return reason == null ? judged(recordTime) : reason;
    }

    private void reset() {
        used = 0;
        Arrays.fill(present, false);
        numbers[SagaEventRow.ATTEMPT] = 1;
        numbers[SagaEventRow.SCHEMA_VERSION] = 1;
        numbers[SagaEventRow.DURATION_DERIVED] = 0;
        errorMessage = null;
        contextKeys.clear();
        attributes.clear();
        reason = null;
    }

    /** What no field can tell alone. */
    private String judged(long recordTime) {
        for (int field : REQUIRED) {
            if (!present[field]) {
                return wrong(nameOf(field), "nothing", "required in every event");
            }
        }
        if (type.isOfStep && !present[SagaEventRow.STEP_NAME]) {
            return wrong("step_name", "nothing", "a non-empty string, as " + type.text + " is about a step");
        }
        long timestamp = numbers[TIMESTAMP];
        if (timestamp - FARTHEST_AHEAD_MILLIS > recordTime) {
            return wrong(
                    "timestamp",
                    Long.toString(timestamp),
                    "at most 5 minutes after the record's own timestamp, " + recordTime);
        }
        return null;
    }

    private void field(int field, JsonParser parser) throws IOException {
        switch (field) {
            case SagaEventRow.EVENT_ID:
            case SagaEventRow.SAGA_ID:
            case SagaEventRow.SAGA_NAME:
            case SagaEventRow.RUN_ID:
                text(field, parser, false);
                break;
            case SagaEventRow.EVENT_TYPE:
                eventType(parser);
                break;
            case SagaEventRow.ERROR_MESSAGE:
                errorMessage(parser);
                break;
            case SagaEventRow.SEQUENCE:
            case TIMESTAMP:
                number(field, parser, 0, Long.MAX_VALUE, false);
                break;
            case SagaEventRow.DURATION_MS:
            case SagaEventRow.TOTAL_DURATION_MS:
                number(field, parser, 0, Long.MAX_VALUE, true);
                break;
            case SagaEventRow.ATTEMPT:
            case SagaEventRow.SCHEMA_VERSION:
                number(field, parser, 1, Integer.MAX_VALUE, false);
                break;
            case SagaEventRow.COMPENSABLE:
            case SagaEventRow.PIVOT:
                flag(field, parser, true);
                break;
            case SagaEventRow.DURATION_DERIVED:
                flag(field, parser, false);
                break;
            case SagaEventRow.CONTEXT_KEYS:
                contextKeys(parser);
                break;
            case SagaEventRow.ATTRIBUTES:
                attributes(parser);
                break;
            default:
                text(field, parser, true);
        }
    }

    /** The text of a field that is present; it holds until the next record. */
    BinaryStringData text(int field) {
        return BinaryStringData.fromBytes(utf8, begins[field], lengths[field]);
    }

    private void text(int field, JsonParser parser, boolean nullable) throws IOException {
        present[field] = false;
        if (parser.currentToken() == JsonToken.VALUE_STRING) {
            begins[field] = used;
            append(parser);
            lengths[field] = used - begins[field];
            present[field] = true;
            if (lengths[field] == 0) {
                reject(field, "''", "a non-empty string");
            }
        } else if (!nullable || parser.currentToken() != JsonToken.VALUE_NULL) {
            wrongType(field, parser, "a string");
        }
    }

    private void append(JsonParser parser) throws IOException {
        char[] text = parser.getTextCharacters();
        int offset = parser.getTextOffset();
        int length = parser.getTextLength();
        makeRoom(length);
        for (int i = 0; i < length; i++) {
            char c = text[offset + i];
            if (c >= 0x80) {
                byte[] bytes = new String(text, offset, length).getBytes(StandardCharsets.UTF_8);
                makeRoom(bytes.length);
                System.arraycopy(bytes, 0, utf8, used, bytes.length);
                used += bytes.length;
                return;
            }
            utf8[used + i] = (byte) c;
        }
        used += length;
    }

    private void makeRoom(int bytes) {
        if (used + bytes > utf8.length) {
            utf8 = Arrays.copyOf(utf8, Math.max(2 * utf8.length, used + bytes));
        }
    }

    private void eventType(JsonParser parser) throws IOException {
        int field = SagaEventRow.EVENT_TYPE;
        present[field] = false;
        if (parser.currentToken() != JsonToken.VALUE_STRING) {
            wrongType(field, parser, "a string");
            return;
        }
        type = EventType.of(parser.getText());
        present[field] = type != null;
        if (type == null) {
            reject(field, parser.getText(), "one of " + EventType.NAMES);
        }
    }

    private void errorMessage(JsonParser parser) throws IOException {
        errorMessage = null;
        if (parser.currentToken() == JsonToken.VALUE_STRING) {
            errorMessage = parser.getText();
        } else if (parser.currentToken() != JsonToken.VALUE_NULL) {
            wrongType(SagaEventRow.ERROR_MESSAGE, parser, "a string");
        }
    }

    private void number(int field, JsonParser parser, long least, long most, boolean nullable) throws IOException {
        present[field] = false;
        if (parser.currentToken() == JsonToken.VALUE_NUMBER_INT) {
            String allowed = "an integer from " + least + " to " + most;
            if (parser.getNumberType() == JsonParser.NumberType.BIG_INTEGER) {
                reject(field, parser.getText(), allowed);
                return;
            }
            numbers[field] = parser.getLongValue();
            present[field] = true;
            if (numbers[field] < least || numbers[field] > most) {
                reject(field, parser.getText(), allowed);
            }
        } else if (!nullable || parser.currentToken() != JsonToken.VALUE_NULL) {
            wrongType(field, parser, "an integer");
        }
    }

    private void flag(int field, JsonParser parser, boolean nullable) throws IOException {
        present[field] = false;
        JsonToken token = parser.currentToken();
        if (token == JsonToken.VALUE_TRUE || token == JsonToken.VALUE_FALSE) {
            numbers[field] = token == JsonToken.VALUE_TRUE ? 1 : 0;
            present[field] = true;
        } else if (!nullable || token != JsonToken.VALUE_NULL) {
            wrongType(field, parser, "true or false");
        }
    }

    private void contextKeys(JsonParser parser) throws IOException {
        contextKeys.clear();
        if (parser.currentToken() != JsonToken.START_ARRAY) {
            wrongType(SagaEventRow.CONTEXT_KEYS, parser, "a list of strings");
            return;
        }
        while (parser.nextToken() != JsonToken.END_ARRAY) {
            if (parser.currentToken() == JsonToken.VALUE_STRING) {
                contextKeys.add(parser.getText());
            } else {
                wrongType(SagaEventRow.CONTEXT_KEYS, parser, "a list of strings");
            }
        }
    }

    private void attributes(JsonParser parser) throws IOException {
        attributes.clear();
        if (parser.currentToken() != JsonToken.START_OBJECT) {
            wrongType(SagaEventRow.ATTRIBUTES, parser, "an object of strings");
            return;
        }
        while (parser.nextToken() != JsonToken.END_OBJECT) {
            String key = parser.currentName();
            if (parser.nextToken() == JsonToken.VALUE_STRING) {
                attributes.put(key, parser.getText());
            } else {
                wrongType(SagaEventRow.ATTRIBUTES, parser, "an object of strings");
            }
        }
    }

    private void wrongType(int field, JsonParser parser, String allowed) throws IOException {
        String got = parser.currentToken().isScalarValue() ? parser.getText() : parser.currentToken().asString() + "…";
        parser.skipChildren();
        reject(field, got, allowed);
    }

    private void reject(int field, String got, String allowed) {
        if (reason == null) {
            reason = wrong(nameOf(field), got, allowed);
        }
    }

    private static String nameOf(int field) {
        return field == TIMESTAMP ? "timestamp" : SagaEventRow.TYPE.getFieldNames().get(field);
    }

    private static String wrong(String field, String got, String allowed) {
        String shown =
                got.length() <= SHOWN_CHARACTERS
                        ? got
                        : got.substring(0, SHOWN_CHARACTERS) + "… (" + got.length() + " characters)";
        return field + ": got " + shown + "; allowed: " + allowed;
    }
}
