-- What ended steps and compensations add to the windows of their timestamps.
SELECT window_start, saga_name, step_name, phase, bucket,
    count(*) FILTER (NOT is_failure) AS completed,
    count(*) FILTER (is_failure) AS failed,
    count(duration_ms) AS timed,
    sum(duration_ms::DOUBLE) AS sum_ms
FROM (
    SELECT time_bucket(INTERVAL '${window}', "timestamp", TIMESTAMPTZ '1970-01-01 00:00:00+00') AS window_start, *,
        ${bucket_of_duration_ms} AS bucket
    FROM ended_steps
)
GROUP BY ALL
