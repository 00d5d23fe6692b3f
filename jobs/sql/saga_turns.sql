-- Each start and each end of a saga.
CREATE TEMPORARY VIEW saga_turns AS
SELECT
    event_time,
    saga_name,
    event_type,
    total_duration_ms
FROM valid_events
WHERE event_type IN ('saga_started', 'saga_completed', 'saga_rolled_back', 'saga_failed')
