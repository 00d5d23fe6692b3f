-- Compensations never exercised: steps that can be undone, by the newest definition of their saga, and never were.
-- Of the kinds of saga that were seen; ran is how often the step completed meanwhile, known since is when the definition
-- was first seen. An undoing that nobody has seen work may not.
-- Span: 30 days
-- Chart: ranking x=ran y=saga_name,step_name
WITH newest AS (
    SELECT saga_name, arg_max(steps, first_seen) AS steps, min(first_seen) AS known_since
    FROM known_definitions
    WHERE saga_name GLOB saga
    GROUP BY saga_name
), defined AS (
    SELECT saga_name, known_since, unnest(from_json(steps, '[{"step_name": "VARCHAR", "compensable": "BOOLEAN"}]')) AS step
    FROM newest
), seen AS (
    SELECT saga_name, step_name,
        sum(completed) FILTER (phase = 'step') AS ran,
        max(window_end) FILTER (phase = 'step' AND completed > 0) AS last_ran_at,
        coalesce(sum(completed + failed) FILTER (phase = 'compensation'), 0) AS undone
    FROM asked_step_stats(saga, attribute, span)
    GROUP BY saga_name, step_name
)
SELECT defined.saga_name, step.step_name AS step_name, coalesce(ran, 0)::BIGINT AS ran, last_ran_at, known_since
FROM defined
LEFT JOIN seen ON seen.saga_name = defined.saga_name AND seen.step_name = step.step_name
WHERE step.compensable
    AND coalesce(undone, 0) = 0
    AND defined.saga_name IN (SELECT saga_name FROM seen)
ORDER BY ran DESC, defined.saga_name, step_name
