-- How long each step takes in each hour of the day (UTC): when is what slow.
-- An execution belongs to the hour in which it ended; times median is its p50 against that of the step's whole day.
-- From the statistics; percentiles are nearest rank, at most 1 % off.
-- Span: 7 days
-- Chart: heatmap x=hour y=saga_name,step_name z=times_median
WITH timed AS (
    SELECT *, min(p50_ms) FILTER ("hour" IS NULL) OVER (PARTITION BY saga_name, step_name) AS day_p50_ms
    FROM asked_step_percentiles(saga, attribute, span, TRUE)
    WHERE phase = 'step'
)
SELECT saga_name, step_name, "hour", timed AS executions, p50_ms, p95_ms, p50_ms / nullif(day_p50_ms, 0) AS times_median
FROM timed
WHERE "hour" IS NOT NULL
ORDER BY saga_name, step_name, "hour"
