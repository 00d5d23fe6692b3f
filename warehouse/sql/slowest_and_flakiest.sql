-- Every step's durations and failures over all history; the slowest and the flakiest one first.
SELECT saga_name, step_name, count(*) AS ended,
    round(avg((event_type = 'step_failed')::INT), 4) AS failure_rate,
    quantile_cont(duration_ms, 0.5) AS p50_ms, quantile_cont(duration_ms, 0.95) AS p95_ms,
    CASE 1
        WHEN rank() OVER (ORDER BY p50_ms DESC) THEN 'slowest'
        WHEN rank() OVER (ORDER BY failure_rate DESC) THEN 'flakiest'
    END AS finding
FROM events
WHERE event_type IN ('step_completed', 'step_failed')
GROUP BY saga_name, step_name
ORDER BY finding IS NULL, p95_ms DESC
LIMIT 8
