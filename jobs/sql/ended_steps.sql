-- Each end of a step or of a compensation.
CREATE TEMPORARY VIEW ended_steps AS
SELECT
    event_time,
    saga_name,
    step_name,
    CASE WHEN event_type LIKE 'step_%' THEN 'step' ELSE 'compensation' END AS phase,
    event_type LIKE '%_failed' AS is_failure,
    duration_ms
FROM valid_events
WHERE event_type IN ('step_completed', 'step_failed', 'compensation_completed', 'compensation_failed')
