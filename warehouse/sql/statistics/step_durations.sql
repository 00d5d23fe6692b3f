SELECT window_start, window_start + INTERVAL '${window}' AS window_end, saga_name, step_name, phase, bucket,
    count(*) AS "count"
FROM (
    SELECT time_bucket(INTERVAL '${window}', "timestamp", TIMESTAMPTZ '1970-01-01 00:00:00+00') AS window_start, *,
        ${bucket_of_duration_ms} AS bucket
    FROM ended_steps
    WHERE duration_ms IS NOT NULL
)
GROUP BY window_start, saga_name, step_name, phase, bucket
