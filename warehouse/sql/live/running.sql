-- The running sagas, each judged as `saga_runs` has it, and how far each is by its definition.
WITH defined AS (
    SELECT definition_id, list(step.step_name) AS step_names
    FROM (SELECT definition_id, unnest(from_json(steps, '[{"step_name": "VARCHAR"}]')) AS step FROM definitions)
    GROUP BY ALL
)
SELECT run_id, saga_id, saga_name, started_at, last_event_at, age_ms, silent_ms, last_event_type,
    last_step AS current_step,
    coalesce(last_event_type LIKE 'compensation_%', FALSE) OR len(steps_undone) > 0 AS undoing,
    failing_step, error_type, error_message, steps_done, steps_undone,
    len(step_names) AS steps_defined,
    CASE WHEN NOT undoing THEN len(list_filter(step_names, lambda name: NOT list_contains(steps_done, name))) END
        AS steps_remaining,
    attributes
FROM (${running}) LEFT JOIN defined USING (definition_id)
