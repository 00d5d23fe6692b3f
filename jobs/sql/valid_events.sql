-- What is a valid event: the fields every event needs, numbers in their range, and the step's name where the event is
-- about a step.
CREATE TEMPORARY VIEW valid_events AS
SELECT *
FROM saga_events
WHERE
    event_time IS NOT NULL
    AND event_id <> '' AND saga_id <> '' AND saga_name <> '' AND run_id <> ''
    AND `sequence` >= 0
    AND (attempt IS NULL OR attempt >= 1)
    AND (schema_version IS NULL OR schema_version >= 1)
    AND (duration_ms IS NULL OR duration_ms >= 0)
    AND (total_duration_ms IS NULL OR total_duration_ms >= 0)
    AND (
        event_type IN ('saga_started', 'saga_completed', 'saga_rolled_back', 'saga_failed')
        OR (
            event_type IN (
                'step_started', 'step_completed', 'step_failed',
                'compensation_started', 'compensation_completed', 'compensation_failed'
            )
            AND step_name <> ''
        )
    )
