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
), gathered AS (
    SELECT saga_name, step_name, count(*) AS ended, count(*) FILTER (is_failure) AS failed,
        list_sort(list(ms) FILTER (ms IS NOT NULL)) AS durations
    FROM observed
    GROUP BY saga_name, step_name
), judged AS (
    SELECT aimed.saga AS target, aimed.saga_name, aimed.step_name, coalesce(gathered.ended, 0) AS ended, percentile, max_ms,
        durations[greatest(ceil(len(durations) * percentile / 100), 1)::BIGINT] AS at_percentile_ms,
        len(list_filter(durations, lambda ms: ms <= max_ms)) AS in_time,
        in_time / nullif(len(durations), 0) AS within,
        max_failure_rate, failed, failed / gathered.ended AS failure_rate, len(durations) AS timed
    FROM aimed
    LEFT JOIN gathered ON gathered.saga_name = aimed.saga_name AND gathered.step_name = coalesce(aimed.step_name, '')
)
SELECT target, saga_name, step_name, ended, percentile, max_ms, at_percentile_ms,
    CASE WHEN max_ms IS NOT NULL THEN within END AS within, max_failure_rate, failure_rate,
    CASE
        WHEN ended > 0 THEN
            (max_ms IS NULL OR coalesce(in_time * 100 >= percentile * timed, TRUE))
            AND (max_failure_rate IS NULL OR failed <= max_failure_rate * ended)
    END AS is_met
FROM judged
ORDER BY is_met NULLS LAST, target, saga_name, step_name NULLS FIRST, percentile, max_ms
