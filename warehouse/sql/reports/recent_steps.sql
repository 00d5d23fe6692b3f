-- Each step's last minute, its open windows included: counts and mean over it, percentiles of its newest window.
-- They can't be averaged. The minute ends where the newest window of all ends, but not after now: a service whose clock
-- is ahead would else hide all others. From the statistics.
-- Span: 1 minute
-- Chart: ranking x=p95_ms y=saga_name,step_name
WITH newest AS MATERIALIZED (
    SELECT least(max(window_end), now()) AS moment FROM asked_step_stats(saga, attribute, NULL::INTERVAL) WHERE phase = 'step'
)
SELECT saga_name, step_name, sum(completed + failed)::BIGINT AS ended, sum(failed) / ended AS failure_rate,
    sum(avg_ms * (completed + failed)) / sum(completed + failed) FILTER (avg_ms IS NOT NULL) AS avg_ms,
    arg_max(p50_ms, window_end) AS p50_ms, arg_max(p95_ms, window_end) AS p95_ms,
    arg_max(p99_ms, window_end) AS p99_ms, max(window_end) AS up_to
FROM asked_step_stats(saga, attribute, NULL::INTERVAL)
WHERE phase = 'step' AND window_end > (SELECT moment FROM newest) - coalesce(span, INTERVAL 1 MINUTE)
GROUP BY saga_name, step_name
ORDER BY saga_name, step_name
