SELECT window_start, window_start + INTERVAL '${window}' AS window_end, saga_name,
    count(*) FILTER (event_type = 'saga_started') AS started,
    count(*) FILTER (event_type = 'saga_completed') AS completed,
    count(*) FILTER (event_type = 'saga_rolled_back') AS rolled_back,
    count(*) FILTER (event_type = 'saga_failed') AS failed,
    (rolled_back + failed) / nullif(completed + rolled_back + failed, 0) AS failure_rate,
    avg(total_duration_ms) AS avg_ms,
    min(total_duration_ms) AS min_ms,
    max(total_duration_ms) AS max_ms,
    quantile_cont(total_duration_ms::DOUBLE, 0.5) AS p50_ms,
    quantile_cont(total_duration_ms::DOUBLE, 0.95) AS p95_ms,
    quantile_cont(total_duration_ms::DOUBLE, 0.99) AS p99_ms
FROM (
    SELECT time_bucket(INTERVAL '${window}', "timestamp", TIMESTAMPTZ '1970-01-01 00:00:00+00') AS window_start, *
    FROM single_events
    WHERE event_type LIKE 'saga_%'
)
GROUP BY window_start, saga_name
