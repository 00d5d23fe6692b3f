SELECT
    source_topic,
    source_partition,
    source_offset,
    CAST(record_time AS TIMESTAMP_LTZ(6)) AS record_time,
    `value`,
    reason
FROM saga_events
WHERE reason IS NOT NULL AND NOT stored
