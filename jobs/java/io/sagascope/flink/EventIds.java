package io.sagascope.flink;

import java.util.Arrays;

/** A set of 128-bit ids, each until a moment: open addressing in two arrays, 20 bytes a place, at most 3 of 4 taken. */
final class EventIds {
    private static final int SMALLEST = 8;

    /** Two longs a place; a place whose two are zero is free. */
    long[] ids;

    /** Until which moment the id of each place counts. Moments are numbers of slices, which wrap. */
    int[] until;

    int size;

    /** When forgotten ids were last thrown out. */
    int swept;

    EventIds() {
        this(SMALLEST);
    }

    EventIds(int places) {
        ids = new long[2 * places];
        until = new int[places];
    }

    EventIds(EventIds other) {
        ids = other.ids.clone();
        until = other.until.clone();
        size = other.size;
        swept = other.swept;
    }

    /** Remember an id until a moment; false where it was remembered already, at the moment {@code now}. */
    boolean add(long high, long low, int remembered, int now) {
        if (now - swept > 0 || size == 0) {
            if (size > 0) {
                rebuild(now);
            }
            swept = now;
        }
        if (4 * (size + 1) > 3 * until.length) {
            rebuild(now);
        }
        int place = placeOf(high, low);
        boolean found = (ids[2 * place] | ids[2 * place + 1]) != 0;
        if (found && until[place] - now >= 0) {
            return false;
        }
        put(place, high, low, remembered);
        return true;
    }

    /** Where the id is, or the free place where it belongs. */
    private int placeOf(long high, long low) {
        int mask = until.length - 1;
        int place = (int) (mixed(high, low) >>> 32) & mask;
        while ((ids[2 * place] != high || ids[2 * place + 1] != low)
                && (ids[2 * place] | ids[2 * place + 1]) != 0) {
            place = place + 1 & mask;
        }
        return place;
    }

    void put(int place, long high, long low, int remembered) {
        if ((ids[2 * place] | ids[2 * place + 1]) == 0) {
            size++;
        }
        ids[2 * place] = high;
        ids[2 * place + 1] = low;
        until[place] = remembered;
    }

    /** Throw out what is forgotten at {@code now}, and make room for as many again as then are left. */
    private void rebuild(int now) {
        long[] oldIds = ids;
        int[] oldUntil = until;
        int left = 0;
        for (int i = 0; i < oldUntil.length; i++) {
            if ((oldIds[2 * i] | oldIds[2 * i + 1]) != 0 && oldUntil[i] - now >= 0) {
                left++;
            }
        }
        int places = placesFor(left);
        ids = new long[2 * places];
        until = new int[places];
        size = 0;
        for (int i = 0; i < oldUntil.length; i++) {
            if ((oldIds[2 * i] | oldIds[2 * i + 1]) != 0 && oldUntil[i] - now >= 0) {
                put(placeOf(oldIds[2 * i], oldIds[2 * i + 1]), oldIds[2 * i], oldIds[2 * i + 1], oldUntil[i]);
            }
        }
    }

    /** A power of two of which {@code size} ids take half at most. */
    static int placesFor(int size) {
        return Math.max(SMALLEST, Integer.highestOneBit(Math.max(1, 2 * size - 1)) * 2);
    }

    void restore(long high, long low, int remembered) {
        put(placeOf(high, low), high, low, remembered);
    }

    /** Spreads ids that share most of their bits, as UUIDs of one moment do (the finalizer of MurmurHash3). */
    static long mixed(long high, long low) {
        long hash = high * 31 + low;
        hash ^= hash >>> 33;
        hash *= 0xff51afd7ed558ccdL;
        hash ^= hash >>> 33;
        hash *= 0xc4ceb9fe1a85ec53L;
        return hash ^ hash >>> 33;
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof EventIds
                && Arrays.equals(ids, ((EventIds) other).ids)
                && Arrays.equals(until, ((EventIds) other).until);
    }

    @Override
    public int hashCode() {
        return Arrays.hashCode(ids);
    }
}
