-- The topic. Event time is NULL, and so moves no watermark, where the timestamp is none to trust: more than five
-- minutes ahead of the record's own.
CREATE TEMPORARY TABLE saga_events (
    event_id STRING,
    event_type STRING,
    saga_id STRING,
    saga_name STRING,
    run_id STRING,
    `sequence` BIGINT,
    `timestamp` BIGINT,
    step_name STRING,
    attempt INT,
    compensable BOOLEAN,
    `pivot` BOOLEAN,
    duration_ms BIGINT,
    duration_derived BOOLEAN,
    total_duration_ms BIGINT,
    error_type STRING,
    error_message STRING,
    context_keys ARRAY<STRING>,
    attributes MAP<STRING, STRING>,
    definition_id STRING,
    parent_saga_id STRING,
    trace_id STRING,
    service STRING,
    schema_version INT,
    source_topic STRING METADATA FROM 'topic' VIRTUAL,
    source_partition INT METADATA FROM 'partition' VIRTUAL,
    source_offset BIGINT METADATA FROM 'offset' VIRTUAL,
    record_time TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
    event_time AS CASE
        WHEN `timestamp` >= 0 AND TO_TIMESTAMP_LTZ(`timestamp`, 3) <= record_time + INTERVAL '5' MINUTE
            THEN TO_TIMESTAMP_LTZ(`timestamp`, 3)
    END,
    WATERMARK FOR event_time AS event_time - INTERVAL '${watermark_delay}' DAY TO SECOND
) WITH (
    'connector' = 'kafka',
    'topic' = '${topic}',
    'properties.bootstrap.servers' = '${bootstrap_servers}',
    'properties.group.id' = 'analytics',
    'scan.startup.mode' = 'earliest-offset',
    'scan.bounded.mode' = '${bounded_mode}',
    'format' = 'json',
    'json.ignore-parse-errors' = 'true'
)
