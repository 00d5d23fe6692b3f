package io.sagascope.flink;

import java.io.Serializable;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import org.apache.flink.table.api.ValidationException;

/** Which offsets the tables hold already: all below a bound for each partition, with exceptions. */
final class StoredOffsets implements Serializable {
    private static final long serialVersionUID = 1L;

    private final HashMap<Integer, Long> bounds;
    private final HashMap<Integer, HashSet<Long>> exceptions = new HashMap<>();

    private StoredOffsets(Map<Integer, Long> bounds) {
        this.bounds = new HashMap<>(bounds);
    }

    /** From {@code partition:offset,…}, twice. */
    static StoredOffsets of(String bounds, String exceptions) {
        StoredOffsets stored = new StoredOffsets(pairs(bounds));
        for (String pair : split(exceptions)) {
            long[] numbers = numbers(pair);
            stored.exceptions.computeIfAbsent((int) numbers[0], partition -> new HashSet<>()).add(numbers[1]);
        }
        return stored;
    }

    boolean isEmpty() {
        return bounds.isEmpty();
    }

    boolean contains(int partition, long offset) {
        Long bound = bounds.get(partition);
        return bound != null
                && offset < bound
                && !exceptions.getOrDefault(partition, NONE).contains(offset);
    }

    private static final HashSet<Long> NONE = new HashSet<>();

    /** {@code partition:offset,…} as a map. */
    static Map<Integer, Long> pairs(String text) {
        Map<Integer, Long> found = new TreeMap<>();
        for (String pair : split(text)) {
            long[] numbers = numbers(pair);
            found.put((int) numbers[0], numbers[1]);
        }
        return found;
    }

    private static Set<String> split(String text) {
        return text.isBlank() ? Set.of() : new HashSet<>(java.util.List.of(text.trim().split(",")));
    }

    private static long[] numbers(String pair) {
        String[] parts = pair.trim().split(":");
        try {
            return new long[] {Integer.parseInt(parts[0]), Long.parseLong(parts[1])};
        } catch (NumberFormatException | ArrayIndexOutOfBoundsException error) {
            throw new ValidationException("Got '" + pair + "'; allowed: partition:offset, e.g. 0:1234", error);
        }
    }
}
