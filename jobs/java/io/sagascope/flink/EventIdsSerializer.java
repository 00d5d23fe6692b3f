package io.sagascope.flink;

import java.io.IOException;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.base.TypeSerializerSingleton;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/** {@link EventIds} in a checkpoint: how many, when swept, then 20 bytes an id. */
public final class EventIdsSerializer extends TypeSerializerSingleton<EventIds> {
    private static final long serialVersionUID = 1L;

    static final EventIdsSerializer INSTANCE = new EventIdsSerializer();

    @Override
    public boolean isImmutableType() {
        return false;
    }

    @Override
    public EventIds createInstance() {
        return new EventIds();
    }

    @Override
    public EventIds copy(EventIds from) {
        return new EventIds(from);
    }

    @Override
    public EventIds copy(EventIds from, EventIds reuse) {
        return copy(from);
    }

    @Override
    public int getLength() {
        return -1;
    }

    @Override
    public void serialize(EventIds set, DataOutputView target) throws IOException {
        target.writeInt(set.size);
        target.writeInt(set.swept);
        for (int i = 0; i < set.until.length; i++) {
            if ((set.ids[2 * i] | set.ids[2 * i + 1]) != 0) {
                target.writeLong(set.ids[2 * i]);
                target.writeLong(set.ids[2 * i + 1]);
                target.writeInt(set.until[i]);
            }
        }
    }

    @Override
    public EventIds deserialize(DataInputView source) throws IOException {
        int size = source.readInt();
        EventIds set = new EventIds(EventIds.placesFor(size));
        set.swept = source.readInt();
        for (int i = 0; i < size; i++) {
            set.restore(source.readLong(), source.readLong(), source.readInt());
        }
        return set;
    }

    @Override
    public EventIds deserialize(EventIds reuse, DataInputView source) throws IOException {
        return deserialize(source);
    }

    @Override
    public void copy(DataInputView source, DataOutputView target) throws IOException {
        int size = source.readInt();
        target.writeInt(size);
        target.writeInt(source.readInt());
        target.write(source, size * (2 * Long.BYTES + Integer.BYTES));
    }

    @Override
    public TypeSerializerSnapshot<EventIds> snapshotConfiguration() {
        return new Snapshot();
    }

    /** Tells a later version that these are ours. */
    public static final class Snapshot extends SimpleTypeSerializerSnapshot<EventIds> {
        public Snapshot() {
            super(() -> INSTANCE);
        }
    }
}
