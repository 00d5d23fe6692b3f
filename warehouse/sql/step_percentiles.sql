-- Each step's and compensation's percentiles over the whole span, open windows included: nearest rank, at most 1 % off.
-- Buckets merge by summing, so any span has its percentiles; r = 1.01 / 0.99 is the ratio of one bucket to the next.
WITH merged AS (
    SELECT saga_name, step_name, phase, bucket, sum("count") AS durations
    FROM step_durations
    GROUP BY saga_name, step_name, phase, bucket
), ranked AS (
    SELECT *, CASE bucket WHEN 0 THEN 0 ELSE 2 * pow(1.01e0 / 0.99e0, bucket) / (1.01e0 / 0.99e0 + 1) END AS ms,
        sum(durations) OVER (PARTITION BY saga_name, step_name, phase ORDER BY bucket) AS up_to,
        sum(durations) OVER (PARTITION BY saga_name, step_name, phase) AS timed
    FROM merged
)
SELECT saga_name, step_name, phase, any_value(timed)::BIGINT AS timed,
    min(ms) FILTER (up_to * 100 >= timed * 50) AS p50_ms,
    min(ms) FILTER (up_to * 100 >= timed * 95) AS p95_ms,
    min(ms) FILTER (up_to * 100 >= timed * 99) AS p99_ms
FROM ranked
GROUP BY saga_name, step_name, phase
ORDER BY saga_name, step_name, phase
