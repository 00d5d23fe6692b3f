-- By kind of saga and by day or week, whatever `unit` is. Days are counted by their milliseconds: to ask a calendar for that
-- of each window takes longer than all the rest.
WITH counted AS (
    SELECT date_trunc(unit, DATE '1970-01-01' + (epoch_ms(window_start) // 86_400_000)::INTEGER)::DATE AS begin, saga_name,
        sum(completed + rolled_back + failed)::BIGINT AS ended_sagas,
        sum(rolled_back + failed)::BIGINT AS failed_sagas,
        sum(avg_ms * (completed + rolled_back + failed))
            / sum(completed + rolled_back + failed) FILTER (avg_ms IS NOT NULL) AS mean_ms,
        max(max_ms) AS longest_ms
    FROM asked_saga_stats(saga, attribute, span)
    WHERE completed + rolled_back + failed > 0
    GROUP BY begin, saga_name
)
SELECT begin, saga_name, ended_sagas AS ended, failed_sagas AS failed, failed_sagas / ended_sagas AS failure_rate,
    failure_rate - lag(failed_sagas / ended_sagas) OVER (PARTITION BY saga_name ORDER BY begin) AS change,
    mean_ms AS avg_ms, longest_ms AS max_ms
FROM counted
