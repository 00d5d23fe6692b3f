package io.sagascope.flink;

import java.time.Duration;
import java.util.Properties;
import java.util.Set;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.ConfigOptions;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.table.api.ValidationException;
import org.apache.flink.table.connector.source.DynamicTableSource;
import org.apache.flink.table.factories.DynamicTableSourceFactory;
import org.apache.flink.table.factories.FactoryUtil;
import org.apache.flink.table.types.logical.RowType;

/** {@code 'connector' = 'saga-events'}: a Kafka topic of saga events as a table, see {@link SagaEventsSource}. */
public final class SagaEventsTableFactory implements DynamicTableSourceFactory {
    private static final String KAFKA_PREFIX = "properties.";

    static final ConfigOption<String> TOPIC =
            ConfigOptions.key("topic").stringType().noDefaultValue().withDescription("The topic to read.");
    static final ConfigOption<Boolean> BOUNDED =
            ConfigOptions.key("bounded")
                    .booleanType()
                    .defaultValue(false)
                    .withDescription("End at what the topic holds when the job starts.");
    static final ConfigOption<Duration> HORIZON =
            ConfigOptions.key("deduplicate.horizon")
                    .durationType()
                    .defaultValue(Duration.ZERO)
                    .withDescription("How long, in event time, an event id is remembered; 0: not at all.");
    static final ConfigOption<String> START =
            ConfigOptions.key("start.offsets")
                    .stringType()
                    .defaultValue("")
                    .withDescription("Where to start without a checkpoint, partition:offset,…; else at the earliest.");
    static final ConfigOption<String> STORED_EVENTS =
            ConfigOptions.key("stored.events")
                    .stringType()
                    .defaultValue("")
                    .withDescription("The last offsets whose events are stored, partition:offset,….");
    static final ConfigOption<String> STORED_REJECTED =
            ConfigOptions.key("stored.rejected")
                    .stringType()
                    .defaultValue("")
                    .withDescription("The last offsets whose rejected records are stored, partition:offset,….");

    @Override
    public String factoryIdentifier() {
        return "saga-events";
    }

    @Override
    public Set<ConfigOption<?>> requiredOptions() {
        return Set.of(TOPIC);
    }

    @Override
    public Set<ConfigOption<?>> optionalOptions() {
        return Set.of(BOUNDED, HORIZON, START, STORED_EVENTS, STORED_REJECTED);
    }

    @Override
    public DynamicTableSource createDynamicTableSource(Context context) {
        FactoryUtil.TableFactoryHelper helper = FactoryUtil.createTableFactoryHelper(this, context);
        helper.validateExcept(KAFKA_PREFIX);
        RowType declared = (RowType) context.getPhysicalRowDataType().getLogicalType();
        if (!declared.getFields().equals(SagaEventRow.TYPE.getFields())) {
            throw new ValidationException(
                    "The columns of a saga-events table are " + SagaEventRow.TYPE + "; got " + declared);
        }
        Properties kafka = new Properties();
        context.getCatalogTable()
                .getOptions()
                .forEach(
                        (key, value) -> {
                            if (key.startsWith(KAFKA_PREFIX)) {
                                kafka.setProperty(key.substring(KAFKA_PREFIX.length()), value);
                            }
                        });
        ReadableConfig options = helper.getOptions();
        StoredOffsets stored = new StoredOffsets(options.get(STORED_EVENTS), options.get(STORED_REJECTED));
        return new SagaEventsSource(
                options.get(TOPIC),
                kafka,
                options.get(BOUNDED),
                options.get(HORIZON).toMillis(),
                StoredOffsets.pairs(options.get(START)),
                stored);
    }
}
