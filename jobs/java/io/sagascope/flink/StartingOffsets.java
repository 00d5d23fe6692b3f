package io.sagascope.flink;

import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.OffsetResetStrategy;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition;

/**
 * The offsets given, and the earliest for other partitions. Unlike Flink's own initializers it lets no consumer jump from an
 * offset that the broker no longer has: that the job's next records were deleted is an error to be told.
 */
final class StartingOffsets implements OffsetsInitializer {
    private static final long serialVersionUID = 1L;

    private final HashMap<TopicPartition, Long> offsets;

    StartingOffsets(Map<TopicPartition, Long> offsets) {
        this.offsets = new HashMap<>(offsets);
    }

    @Override
    public Map<TopicPartition, Long> getPartitionOffsets(
            Collection<TopicPartition> partitions, PartitionOffsetsRetriever retriever) {
        Set<TopicPartition> others = new HashSet<>(partitions);
        others.removeAll(offsets.keySet());
        // As numbers: a split that holds "the earliest" until its first record would jump over what is deleted before.
        Map<TopicPartition, Long> found = new HashMap<>(retriever.beginningOffsets(others));
        for (TopicPartition partition : partitions) {
            found.computeIfAbsent(partition, offsets::get);
        }
        return found;
    }

    @Override
    public OffsetResetStrategy getAutoOffsetResetStrategy() {
        return OffsetResetStrategy.NONE;
    }
}
