-- The events of some hours, from the table, where an id stands in it twice: the first record counts.
CREATE TEMPORARY VIEW valid_events AS
SELECT
    CAST(`timestamp` AS TIMESTAMP_LTZ(3)) AS event_time,
    event_type,
    saga_name,
    step_name,
    duration_ms,
    total_duration_ms
FROM (
    SELECT
        *,
        ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY source_partition, source_offset) AS copy
    FROM lake.saga.events
    WHERE `timestamp` >= TO_TIMESTAMP_LTZ(${since}, 3) AND `timestamp` < TO_TIMESTAMP_LTZ(${until}, 3)
)
WHERE copy = 1
