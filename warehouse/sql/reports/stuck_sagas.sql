-- Open sagas that have been silent for longer than 99 % of their kind took in all, and for a minute at least.
-- The longest silent one first; where none of the kind has ended, the minute alone decides.
-- Span: 7 days
-- Chart: ranking x=silent_ms y=saga_id color=saga_name
WITH usual AS (
    SELECT saga_name, quantile_cont(total_ms, 0.99) AS kind_p99_ms
    FROM asked_saga_runs(saga, attribute, span)
    GROUP BY saga_name
)
SELECT saga_name, saga_id, run_id, started_at, silent_ms, kind_p99_ms, last_event_type, last_step, error_type,
    error_message
FROM asked_open_runs(saga, attribute, span)
LEFT JOIN usual USING (saga_name)
WHERE silent_ms > greatest(coalesce(kind_p99_ms, 0), 60_000)
ORDER BY silent_ms DESC, run_id
