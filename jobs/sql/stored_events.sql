-- The events of some hours, from the table.
CREATE TEMPORARY VIEW valid_events AS
SELECT
    CAST(`timestamp` AS TIMESTAMP_LTZ(3)) AS event_time,
    event_type,
    saga_name,
    step_name,
    duration_ms,
    total_duration_ms
FROM lake.saga.events
WHERE `timestamp` >= TO_TIMESTAMP_LTZ(${since}, 3) AND `timestamp` < TO_TIMESTAMP_LTZ(${until}, 3)
