-- Percentiles of each step's and compensation's durations by hour of the day (UTC), and over all (NULL), from buckets:
-- nearest rank, at most 1 % off. Buckets merge by summing; r = 1.01 / 0.99 is the ratio of one bucket to the next. Neither
-- a calendar is asked for the hour of each row, nor are counts summed as 128 bit: each takes as long as the rest.
WITH merged AS (
    SELECT saga_name, step_name, phase, CASE WHEN hourly THEN hour(make_timestamp(epoch_us(window_start))) END AS "hour", bucket, sum("count"::DOUBLE) AS durations
    FROM asked_step_durations(saga, attribute, span)
    GROUP BY saga_name, step_name, phase, "hour", bucket
), by_hour AS (
    SELECT * FROM merged WHERE "hour" IS NOT NULL
    UNION ALL
    SELECT saga_name, step_name, phase, NULL, bucket, sum(durations) FROM merged GROUP BY saga_name, step_name, phase, bucket
), ranked AS (
    SELECT *, CASE bucket WHEN 0 THEN 0 ELSE 2 * pow(1.01e0 / 0.99e0, bucket) / (1.01e0 / 0.99e0 + 1) END AS ms,
        sum(durations) OVER (PARTITION BY saga_name, step_name, phase, "hour" ORDER BY bucket) AS up_to,
        sum(durations) OVER (PARTITION BY saga_name, step_name, phase, "hour") AS timed
    FROM by_hour
)
SELECT saga_name, step_name, phase, "hour", any_value(timed)::BIGINT AS timed,
    min(ms) FILTER (up_to * 100 >= timed * 50) AS p50_ms,
    min(ms) FILTER (up_to * 100 >= timed * 95) AS p95_ms,
    min(ms) FILTER (up_to * 100 >= timed * 99) AS p99_ms
FROM ranked
GROUP BY saga_name, step_name, phase, "hour"
