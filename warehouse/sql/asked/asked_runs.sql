-- Runs that ended and open ones, with what is known of both. The duration of an open one is its age.
SELECT saga_id, saga_name, outcome AS status, started_at, ended_at, total_ms AS duration_ms, failing_step, error_type,
    run_id
FROM asked_saga_runs(saga, attribute, span)
UNION ALL
SELECT saga_id, saga_name, 'open', started_at, NULL, age_ms, failing_step, error_type, run_id
FROM asked_open_runs(saga, attribute, span)
