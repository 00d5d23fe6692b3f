-- Starts and ends of sagas; a saga that failed has a total duration, too.
SELECT
    CAST(window_start AS TIMESTAMP_LTZ(6)) AS window_start,
    CAST(window_end AS TIMESTAMP_LTZ(6)) AS window_end,
    saga_name,
    started,
    completed,
    rolled_back,
    failed,
    CAST(rolled_back + failed AS DOUBLE) / NULLIF(completed + rolled_back + failed, 0) AS failure_rate,
    avg_ms,
    min_ms,
    max_ms,
    quantiles[1] AS p50_ms,
    quantiles[2] AS p95_ms,
    quantiles[3] AS p99_ms
FROM (
    SELECT
        window_start,
        window_end,
        saga_name,
        COUNT(*) FILTER (WHERE event_type = 'saga_started') AS started,
        COUNT(*) FILTER (WHERE event_type = 'saga_completed') AS completed,
        COUNT(*) FILTER (WHERE event_type = 'saga_rolled_back') AS rolled_back,
        COUNT(*) FILTER (WHERE event_type = 'saga_failed') AS failed,
        AVG(CAST(total_duration_ms AS DOUBLE)) AS avg_ms,
        MIN(total_duration_ms) AS min_ms,
        MAX(total_duration_ms) AS max_ms,
        PERCENTILE(total_duration_ms, ARRAY[0.5, 0.95, 0.99]) AS quantiles
    FROM TABLE(TUMBLE(TABLE saga_turns, DESCRIPTOR(event_time), INTERVAL '${window}' DAY TO SECOND))
    GROUP BY window_start, window_end, saga_name
)
