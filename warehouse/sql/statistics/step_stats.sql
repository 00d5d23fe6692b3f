SELECT window_start, window_start + INTERVAL '${window}' AS window_end, saga_name, step_name, phase,
    count(*) FILTER (NOT is_failure) AS completed,
    count(*) FILTER (is_failure) AS failed,
    count(*) FILTER (is_failure) / count(*) AS failure_rate,
    avg(duration_ms) AS avg_ms,
    min(duration_ms) AS min_ms,
    max(duration_ms) AS max_ms,
    quantile_cont(duration_ms::DOUBLE, 0.5) AS p50_ms,
    quantile_cont(duration_ms::DOUBLE, 0.95) AS p95_ms,
    quantile_cont(duration_ms::DOUBLE, 0.99) AS p99_ms
FROM (SELECT time_bucket(INTERVAL '${window}', "timestamp", TIMESTAMPTZ '1970-01-01 00:00:00+00') AS window_start, * FROM ended_steps)
GROUP BY window_start, saga_name, step_name, phase
