-- How many of the sagas that ended have failed, by kind, over the last five minutes.
-- Failed is what did not complete, whatever could be undone; the rate is that of the statistics.
-- Span: 5 minutes
SELECT saga_name, count(*) AS ended,
    count(*) FILTER (outcome = 'completed') AS completed,
    count(*) FILTER (outcome <> 'completed') AS failed,
    failed / ended AS failure_rate,
    mode(failing_step) AS most_failing_step,
    max(ended_at) AS last_ended_at
FROM asked_saga_runs(saga, attribute, span)
GROUP BY saga_name
ORDER BY failure_rate DESC, ended DESC, saga_name
