-- How long sagas take, by kind, over 30 days: mean and exact, interpolated percentiles of all that ended, in ms.
-- A saga that fails early is quick, hence those that completed have a median of their own.
-- Span: 30 days
-- Chart: bar x=saga_name y=p50_ms,p95_ms,p99_ms
SELECT saga_name, count(total_ms) AS timed,
    avg(total_ms) AS avg_ms,
    quantile_cont(total_ms, 0.5) AS p50_ms,
    quantile_cont(total_ms, 0.95) AS p95_ms,
    quantile_cont(total_ms, 0.99) AS p99_ms,
    max(total_ms) AS max_ms,
    quantile_cont(total_ms, 0.5) FILTER (outcome = 'completed') AS completed_p50_ms
FROM asked_saga_runs(saga, attribute, span)
GROUP BY saga_name
ORDER BY p95_ms DESC NULLS LAST, saga_name
