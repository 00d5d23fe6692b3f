package io.sagascope.flink;

import org.apache.flink.api.common.eventtime.TimestampAssigner;
import org.apache.flink.api.common.eventtime.TimestampAssignerSupplier;
import org.apache.flink.api.common.eventtime.WatermarkGenerator;
import org.apache.flink.api.common.eventtime.WatermarkGeneratorSupplier;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.table.data.RowData;

/**
 * The watermarks of another strategy, from events alone: a rejected record has no event time, and a partition in which only
 * such records come is as idle as a silent one. Else it would hold every window open.
 */
final class EventWatermarks implements WatermarkStrategy<RowData> {
    private static final long serialVersionUID = 1L;

    private final WatermarkStrategy<RowData> strategy;

    EventWatermarks(WatermarkStrategy<RowData> strategy) {
        this.strategy = strategy;
    }

    @Override
    public TimestampAssigner<RowData> createTimestampAssigner(TimestampAssignerSupplier.Context context) {
        return strategy.createTimestampAssigner(context);
    }

    @Override
    public WatermarkGenerator<RowData> createWatermarkGenerator(WatermarkGeneratorSupplier.Context context) {
        WatermarkGenerator<RowData> generator = strategy.createWatermarkGenerator(context);
        return new WatermarkGenerator<RowData>() {
            @Override
            public void onEvent(RowData row, long timestamp, WatermarkOutput output) {
                if (!row.isNullAt(SagaEventRow.EVENT_TIME)) {
                    generator.onEvent(row, timestamp, output);
                }
            }

            @Override
            public void onPeriodicEmit(WatermarkOutput output) {
                generator.onPeriodicEmit(output);
            }
        };
    }
}
