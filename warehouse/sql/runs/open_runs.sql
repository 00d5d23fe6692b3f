-- The runs that started and have not ended: how old each is, for how long it has been silent, and what it did last.
SELECT run_id, saga_id, saga_name, started_at, last_event_at,
    greatest(date_diff('millisecond', started_at, as_of()), 0) AS age_ms,
    greatest(date_diff('millisecond', last_event_at, as_of()), 0) AS silent_ms,
    last_event_type, last_step, failing_step, error_type, error_message, steps_done, steps_undone, attributes,
    definition_id
FROM ${runs}
WHERE outcome IS NULL AND ${span}
