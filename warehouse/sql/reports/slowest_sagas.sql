-- The 20 sagas that took longest, and the longest execution in each of a step or of its undoing.
-- Times median is how many times the median of its kind it took.
-- Span: 7 days
-- Chart: ranking x=total_ms y=saga_id color=saga_name
WITH slowest AS (
    SELECT *, total_ms / nullif(quantile_cont(total_ms, 0.5) OVER (PARTITION BY saga_name), 0) AS times_median
    FROM asked_saga_runs(saga, attribute, span)
    QUALIFY row_number() OVER (ORDER BY total_ms DESC NULLS LAST, run_id) <= 20
), longest AS (
    SELECT run_id, arg_max(step_name, duration_ms) AS slowest_step,
        CASE WHEN arg_max(event_type, duration_ms) LIKE 'step_%' THEN 'step' ELSE 'compensation' END AS phase,
        max(duration_ms) AS slowest_step_ms
    FROM run_events
    WHERE run_id IN (SELECT run_id FROM slowest) AND duration_ms IS NOT NULL
    GROUP BY run_id
)
SELECT saga_name, saga_id, run_id, outcome, ended_at, total_ms, times_median, slowest_step, phase, slowest_step_ms
FROM slowest
LEFT JOIN longest USING (run_id)
ORDER BY total_ms DESC NULLS LAST, run_id
