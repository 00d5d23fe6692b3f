-- Whether sagas and steps keep their targets: how long they may take at a percentile, how many may fail.
-- Within is the share that took no longer than allowed; at percentile is nearest rank, so that a target is met where
-- within is at least the percentile. What failed counts, too. NULL where nothing ended. Targets: see `--targets`.
-- Span: 30 days
-- Takes: targets
-- Chart: ranking x=within y=saga_name,step_name color=is_met
WITH wanted AS (
    SELECT unnest(targets::STRUCT(
        saga VARCHAR, step VARCHAR, percentile DOUBLE, max_ms DOUBLE, max_failure_rate DOUBLE
    )[], recursive := TRUE)
), sagas AS MATERIALIZED (
    SELECT saga_name, outcome <> 'completed' AS is_failure, total_ms AS ms FROM asked_saga_runs(saga, attribute, span)
), kinds AS (
    SELECT DISTINCT saga_name, NULL::VARCHAR AS step_name FROM sagas
    UNION ALL
    SELECT DISTINCT saga_name, step_name FROM asked_step_stats(saga, attribute, span) WHERE phase = 'step'
), aimed AS (
    SELECT wanted.*, kinds.saga_name, kinds.step_name
    FROM wanted
    LEFT JOIN kinds ON kinds.saga_name GLOB wanted.saga
        AND (kinds.step_name GLOB wanted.step OR (kinds.step_name IS NULL AND wanted.step IS NULL))
), observed AS (
    SELECT saga_name, '' AS step_name, is_failure, ms FROM sagas
    UNION ALL
    SELECT saga_name, step_name, event_type = 'step_failed', duration_ms
    FROM asked_step_events(saga, attribute, span, ['step_completed', 'step_failed'])
    SEMI JOIN (SELECT DISTINCT saga_name, step_name FROM aimed) USING (saga_name, step_name)
)
SELECT aimed.saga AS target, aimed.saga_name, aimed.step_name, count(is_failure) AS ended,
    percentile, max_ms,
    list_sort(list(ms) FILTER (ms IS NOT NULL))[greatest(ceil(count(ms) * percentile / 100), 1)::BIGINT] AS at_percentile_ms,
    count(*) FILTER (ms <= max_ms) / nullif(count(ms) FILTER (max_ms IS NOT NULL), 0) AS within,
    max_failure_rate,
    count(*) FILTER (is_failure) / nullif(count(is_failure), 0) AS failure_rate,
    CASE
        WHEN count(is_failure) > 0 THEN
            (max_ms IS NULL OR count(*) FILTER (ms <= max_ms) * 100 >= percentile * count(ms))
            AND (max_failure_rate IS NULL OR count(*) FILTER (is_failure) <= max_failure_rate * count(is_failure))
    END AS is_met
FROM aimed
LEFT JOIN observed ON observed.saga_name = aimed.saga_name AND observed.step_name = coalesce(aimed.step_name, '')
GROUP BY aimed.saga, aimed.saga_name, aimed.step_name, percentile, max_ms, max_failure_rate
ORDER BY is_met NULLS LAST, target, aimed.saga_name, aimed.step_name NULLS FIRST, percentile, max_ms
