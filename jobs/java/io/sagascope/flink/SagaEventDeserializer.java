package io.sagascope.flink;

import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.runtime.typeutils.InternalTypeInfo;
import org.apache.flink.util.Collector;

/** A record of the topic as a row of {@link SagaEventRow}; none is dropped, and none stops the job. */
final class SagaEventDeserializer implements KafkaRecordDeserializationSchema<RowData> {
    private static final long serialVersionUID = 1L;

    private final StoredOffsets stored;
    private transient SagaEventParser parser;

    SagaEventDeserializer(StoredOffsets stored) {
        this.stored = stored;
    }

    @Override
    public void open(DeserializationSchema.InitializationContext context) {
        parser = new SagaEventParser(stored);
    }

    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<RowData> out) {
        out.collect(
                parser.parse(
                        record.value(), record.topic(), record.partition(), record.offset(), record.timestamp()));
    }

    @Override
    public TypeInformation<RowData> getProducedType() {
        return InternalTypeInfo.of(SagaEventRow.TYPE);
    }
}
