-- How long each step takes in each hour of the day (UTC): when is what slow.
-- An execution belongs to the hour in which it ended; times median is its p50 against that of the step's whole day.
-- Span: 7 days
WITH timed AS (
    SELECT *, hour(ended_at) AS "hour" FROM asked_step_runs(saga, attribute, span)
    WHERE phase = 'step' AND duration_ms IS NOT NULL
), whole_day AS (
    SELECT saga_name, step_name, quantile_cont(duration_ms, 0.5) AS day_p50_ms
    FROM timed
    GROUP BY saga_name, step_name
)
SELECT saga_name, step_name, "hour", count(*) AS executions,
    quantile_cont(duration_ms, 0.5) AS p50_ms,
    quantile_cont(duration_ms, 0.95) AS p95_ms,
    p50_ms / nullif(any_value(day_p50_ms), 0) AS times_median
FROM timed
JOIN whole_day USING (saga_name, step_name)
GROUP BY saga_name, step_name, "hour"
ORDER BY saga_name, step_name, "hour"
