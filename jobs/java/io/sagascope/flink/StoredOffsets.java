package io.sagascope.flink;

import java.io.Serializable;
import java.util.HashMap;
import org.apache.flink.table.api.ValidationException;

/**
 * Up to which offset of each partition the tables hold the events, and the rejected records: a job that reads them again
 * must not write them again. Flink commits a partition's records in their order, so one bound a table tells it all.
 */
final class StoredOffsets implements Serializable {
    private static final long serialVersionUID = 1L;

    private final HashMap<Integer, Long> events;
    private final HashMap<Integer, Long> rejected;

    /** Each {@code partition:offset,…}, the last one that is stored. */
    StoredOffsets(String events, String rejected) {
        this.events = pairs(events);
        this.rejected = pairs(rejected);
    }

    boolean containsEvent(int partition, long offset) {
        return offset <= events.getOrDefault(partition, -1L);
    }

    boolean containsRejected(int partition, long offset) {
        return offset <= rejected.getOrDefault(partition, -1L);
    }

    /** {@code partition:offset,…} as a map. */
    static HashMap<Integer, Long> pairs(String text) {
        HashMap<Integer, Long> found = new HashMap<>();
        for (String pair : text.isBlank() ? new String[0] : text.trim().split(",")) {
            String[] parts = pair.trim().split(":");
            try {
                found.put(Integer.parseInt(parts[0]), Long.parseLong(parts[1]));
            } catch (NumberFormatException | ArrayIndexOutOfBoundsException error) {
                throw new ValidationException("Got '" + pair + "'; allowed: partition:offset, e.g. 0:1234", error);
            }
        }
        return found;
    }
}
