-- How the undoing of each step goes: how often it began, succeeded, failed or has not ended, and how long it takes.
-- Left standing is in how many failed sagas the step's effect remained, for whatever reason: see `residual_effects`.
-- Span: 7 days
-- Chart: ranking x=completed,failed,unfinished y=saga_name,step_name
WITH undoing AS (
    SELECT saga_name, step_name, count(DISTINCT (run_id, attempt)) AS begun,
        count(*) FILTER (event_type = 'compensation_completed') AS completed,
        count(*) FILTER (event_type = 'compensation_failed') AS failed,
        begun - count(DISTINCT (run_id, attempt)) FILTER (event_type <> 'compensation_started') AS unfinished,
        failed / nullif(completed + failed, 0) AS failure_rate,
        avg(duration_ms) AS avg_ms,
        quantile_cont(duration_ms, 0.95) AS p95_ms
    FROM asked_step_events(
        saga, attribute, span, ['compensation_started', 'compensation_completed', 'compensation_failed']
    )
    GROUP BY saga_name, step_name
), standing AS (
    SELECT saga_name, effect.step_name AS step_name, count(*) AS left_standing, mode(effect.reason) AS most_frequent_reason
    FROM (SELECT saga_name, unnest(residual_effects) AS effect FROM asked_saga_runs(saga, attribute, span))
    GROUP BY saga_name, effect.step_name
)
SELECT saga_name, step_name, coalesce(begun, 0) AS begun, coalesce(completed, 0) AS completed,
    coalesce(failed, 0) AS failed, coalesce(unfinished, 0) AS unfinished, failure_rate, avg_ms, p95_ms,
    coalesce(left_standing, 0) AS left_standing, most_frequent_reason
FROM undoing
FULL JOIN standing USING (saga_name, step_name)
ORDER BY failed DESC, left_standing DESC, saga_name, step_name
