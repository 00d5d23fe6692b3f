package io.sagascope.flink;

import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.KafkaSourceBuilder;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.TopicPartition;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.connector.ChangelogMode;
import org.apache.flink.table.connector.ProviderContext;
import org.apache.flink.table.connector.source.DataStreamScanProvider;
import org.apache.flink.table.connector.source.DynamicTableSource;
import org.apache.flink.table.connector.source.ScanTableSource;
import org.apache.flink.table.connector.source.abilities.SupportsWatermarkPushDown;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.runtime.typeutils.InternalTypeInfo;

/**
 * The topic, each record once: read by Flink's Kafka source with a watermark for each partition, judged by {@link
 * SagaEventParser}, and passed on unless its event id is known to {@link Deduplicate}.
 */
final class SagaEventsSource implements ScanTableSource, SupportsWatermarkPushDown {
    private final String topic;
    private final Properties kafka;
    private final boolean bounded;
    private final long horizonMillis;
    private final Map<Integer, Long> start;
    private final StoredOffsets stored;
    private WatermarkStrategy<RowData> watermarks = WatermarkStrategy.noWatermarks();

    SagaEventsSource(
            String topic,
            Properties kafka,
            boolean bounded,
            long horizonMillis,
            Map<Integer, Long> start,
            StoredOffsets stored) {
        this.topic = topic;
        this.kafka = kafka;
        this.bounded = bounded;
        this.horizonMillis = horizonMillis;
        this.start = start;
        this.stored = stored;
    }

    @Override
    public ChangelogMode getChangelogMode() {
        return ChangelogMode.insertOnly();
    }

    @Override
    public void applyWatermark(WatermarkStrategy<RowData> strategy) {
        watermarks = new EventWatermarks(strategy);
    }

    @Override
    public ScanRuntimeProvider getScanRuntimeProvider(ScanContext context) {
        return new DataStreamScanProvider() {
            @Override
            public DataStream<RowData> produceDataStream(
                    ProviderContext provider, StreamExecutionEnvironment environment) {
                return read(provider, environment);
            }

            @Override
            public boolean isBounded() {
                return bounded;
            }
        };
    }

    private DataStream<RowData> read(ProviderContext provider, StreamExecutionEnvironment environment) {
        KafkaSourceBuilder<RowData> source =
                KafkaSource.<RowData>builder()
                        .setTopics(topic)
                        .setProperties(kafka)
                        .setStartingOffsets(startingOffsets())
                        .setDeserializer(new SagaEventDeserializer(stored));
        if (bounded) {
            source.setBounded(OffsetsInitializer.latest());
        }
        SingleOutputStreamOperator<RowData> records =
                environment.fromSource(source.build(), watermarks, "Topic " + topic);
        provider.generateUid("topic").ifPresent(records::uid);
        if (horizonMillis == 0) {
            return named(records);
        }
        SingleOutputStreamOperator<RowData> once =
                records.keyBy(Deduplicate::keyOf)
                        .process(new Deduplicate(horizonMillis), InternalTypeInfo.of(SagaEventRow.TYPE))
                        .name(Deduplicate.NAME);
        provider.generateUid("deduplicate").ifPresent(once::uid);
        return named(once);
    }

    /** The planner names the last transformation after the table; so it gets one that is no operator. */
    private static DataStream<RowData> named(SingleOutputStreamOperator<RowData> operator) {
        return operator.forward();
    }

    /** Where nothing else is said, the earliest; what retention deletes before it is read fails the job, no silent jump. */
    private OffsetsInitializer startingOffsets() {
        Map<TopicPartition, Long> offsets = new HashMap<>();
        start.forEach((partition, offset) -> offsets.put(new TopicPartition(topic, partition), offset));
        return new StartingOffsets(offsets);
    }

    @Override
    public DynamicTableSource copy() {
        SagaEventsSource copy = new SagaEventsSource(topic, kafka, bounded, horizonMillis, start, stored);
        copy.watermarks = watermarks;
        return copy;
    }

    @Override
    public String asSummaryString() {
        return "saga events of topic " + topic;
    }
}
