-- What the statistics need of the events.
CREATE TEMPORARY VIEW valid_events AS
SELECT
    event_time,
    event_type,
    saga_name,
    step_name,
    duration_ms,
    total_duration_ms
FROM saga_events
WHERE reason IS NULL
