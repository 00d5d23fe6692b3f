-- A completed and a failed step both count in the durations.
SELECT
    CAST(window_start AS TIMESTAMP_LTZ(6)) AS window_start,
    CAST(window_end AS TIMESTAMP_LTZ(6)) AS window_end,
    saga_name,
    step_name,
    phase,
    completed,
    failed,
    CAST(failed AS DOUBLE) / (completed + failed) AS failure_rate,
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
        step_name,
        phase,
        COUNT(*) FILTER (WHERE NOT is_failure) AS completed,
        COUNT(*) FILTER (WHERE is_failure) AS failed,
        AVG(CAST(duration_ms AS DOUBLE)) AS avg_ms,
        MIN(duration_ms) AS min_ms,
        MAX(duration_ms) AS max_ms,
        PERCENTILE(duration_ms, ARRAY[0.5, 0.95, 0.99]) AS quantiles
    FROM TABLE(TUMBLE(TABLE ended_steps, DESCRIPTOR(event_time), INTERVAL '${window}' DAY TO SECOND))
    GROUP BY window_start, window_end, saga_name, step_name, phase
)
