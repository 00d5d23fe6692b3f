SELECT window_start, window_start + INTERVAL '${window}' AS window_end, saga_name, step_name, phase, bucket,
    count(*) AS "count"
FROM (
    SELECT time_bucket(INTERVAL '${window}', "timestamp", TIMESTAMPTZ '1970-01-01 00:00:00+00') AS window_start, *,
        CASE WHEN duration_ms = 0 THEN 0 ELSE 1 + floor(ln(duration_ms) / ln(1.01e0 / 0.99e0))::INTEGER END AS bucket
    FROM ended_steps
    WHERE duration_ms IS NOT NULL
)
GROUP BY window_start, saga_name, step_name, phase, bucket
