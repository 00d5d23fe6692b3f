-- What runs now, by kind of saga: how many, of them how many are undoing, how old the oldest is and where it stands.
-- Silent is for how long no event of the run has come: where it is far above the age of others, see `stuck_sagas`.
-- Span: 7 days
-- Chart: bar x=saga_name y=running,undoing
SELECT saga_name, count(*) AS running,
    count(*) FILTER (last_event_type LIKE 'compensation_%') AS undoing,
    quantile_cont(age_ms, 0.5) AS median_age_ms,
    max(age_ms) AS oldest_age_ms,
    max(silent_ms) AS longest_silent_ms,
    arg_max(saga_id, age_ms) AS oldest_saga_id,
    arg_max(last_step, age_ms) AS oldest_last_step
FROM asked_open_runs(saga, attribute, span)
GROUP BY saga_name
ORDER BY running DESC, saga_name
