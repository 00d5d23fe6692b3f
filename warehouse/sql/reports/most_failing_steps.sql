-- Which steps fail most: their executions, how many of these failed, and how many sagas failed because of that.
-- A failed attempt that was tried again with success counts as a failed execution, and has failed no saga.
-- Span: 7 days
-- Chart: ranking x=failed y=saga_name,step_name
WITH executions AS (
    SELECT saga_name, step_name, sum(completed + failed)::BIGINT AS executions, sum(failed)::BIGINT AS failed_executions,
        failed_executions / executions AS failure_rate
    FROM asked_step_stats(saga, attribute, span)
    WHERE phase = 'step'
    GROUP BY saga_name, step_name
), failing AS (
    SELECT saga_name, failing_step AS step_name, count(*) AS sagas_failed
    FROM asked_saga_runs(saga, attribute, span)
    WHERE failing_step IS NOT NULL
    GROUP BY saga_name, failing_step
), errors AS (
    SELECT saga_name, step_name, mode(error_type) AS most_frequent_error
    FROM asked_step_events(saga, attribute, span, ['step_failed'])
    GROUP BY saga_name, step_name
)
SELECT saga_name, step_name, executions, failed_executions AS failed, failure_rate,
    coalesce(sagas_failed, 0) AS sagas_failed, most_frequent_error
FROM executions
LEFT JOIN failing USING (saga_name, step_name)
LEFT JOIN errors USING (saga_name, step_name)
WHERE failed_executions > 0
ORDER BY sagas_failed DESC, failed DESC, saga_name, step_name
