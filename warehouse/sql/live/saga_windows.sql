-- What starts and ends of sagas add to the windows of their timestamps.
SELECT window_start, saga_name, '' AS step_name, 'saga' AS phase, bucket,
    count(*) FILTER (event_type = 'saga_started') AS started,
    count(*) FILTER (event_type = 'saga_completed') AS completed,
    count(*) FILTER (event_type = 'saga_rolled_back') AS rolled_back,
    count(*) FILTER (event_type = 'saga_failed') AS failed,
    count(total_duration_ms) AS timed,
    sum(total_duration_ms::DOUBLE) AS sum_ms
FROM (
    SELECT time_bucket(INTERVAL '${window}', "timestamp", TIMESTAMPTZ '1970-01-01 00:00:00+00') AS window_start, *,
        ${bucket_of_total_duration_ms} AS bucket
    FROM single_events
    WHERE event_type LIKE 'saga_%'
)
GROUP BY ALL
