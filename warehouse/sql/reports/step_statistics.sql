-- Each step and each undoing over the whole span: how often, how many failed, how long; the slowest and the flakiest first.
-- From the statistics, open windows included; percentiles are nearest rank, at most 1 % off.
-- Span: 7 days
-- Chart: ranking x=p95_ms y=saga_name,step_name,phase
WITH counted AS (
    SELECT saga_name, step_name, phase, sum(completed + failed)::BIGINT AS executions,
        sum(failed) / executions AS failure_rate
    FROM asked_step_stats(saga, attribute, span)
    GROUP BY saga_name, step_name, phase
)
SELECT saga_name, step_name, phase, executions, failure_rate, p50_ms, p95_ms, p99_ms,
    CASE 1
        WHEN rank() OVER (PARTITION BY phase ORDER BY p50_ms DESC NULLS LAST) THEN 'slowest'
        WHEN rank() OVER (PARTITION BY phase ORDER BY failure_rate DESC) THEN 'flakiest'
    END AS finding
FROM counted
LEFT JOIN asked_step_percentiles(saga, attribute, span, FALSE) USING (saga_name, step_name, phase)
ORDER BY phase DESC, finding IS NULL, finding DESC, p95_ms DESC NULLS LAST, saga_name, step_name
