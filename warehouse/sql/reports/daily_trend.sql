-- Each day (UTC) by kind of saga: how many ended and failed, how long they took, what was wasted on work later undone.
-- Change is that of the failure rate against the day before on which one of the kind ended.
-- Span: 30 days
SELECT date_trunc('day', ended_at)::DATE AS "day", saga_name, count(*) AS ended,
    count(*) FILTER (outcome <> 'completed') AS failed,
    failed / ended AS failure_rate,
    failure_rate - lag(failure_rate) OVER (PARTITION BY saga_name ORDER BY "day") AS change,
    quantile_cont(total_ms, 0.5) AS p50_ms,
    quantile_cont(total_ms, 0.95) AS p95_ms,
    sum(wasted_ms)::BIGINT AS wasted_ms
FROM asked_saga_runs(saga, attribute, span)
GROUP BY "day", saga_name
ORDER BY "day", saga_name
